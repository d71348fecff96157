"""Every sentence that judges, on data that bear it out and on data made to contradict it: it must turn."""

import ast
import pathlib
import re

import numpy as np
import pytest
import xarray as xr

from bayes_brg import verdicts
from bayes_brg.runs.verdicts import VERDICTS

ROOT = pathlib.Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(5)
CUTOFFS = [0.0, 0.01, 0.1, 1.0, 10.0]
NORMAL = RNG.normal(size=(4, 500))


def loss(curve, units="squared"):
    noise = RNG.normal(1, 0.05, (1, 4, 50))
    values = np.asarray(curve)[:, None, None] + (noise if units == "nats" else 0)
    values = values if units == "nats" else values * noise
    return xr.DataArray(values, {"cutoff": CUTOFFS}, ("cutoff", "chain", "draw"), attrs={"units": units})


STIFF = [1.0, 0.9, 0.871, 0.3, 0.0]
# name: [(arguments under which the claim holds, words), (arguments under which it does not, words)]
CASES = {
    "flat": [((loss([2, 2.001, 2.002, 9, 30]), STIFF, 0.079), "flat up to Λ_C: at Λ = 0.1, .* grown by 0%"),
             ((loss([2, 2.02, 3.14, 9, 30]), STIFF, 0.079),
              "not flat up to Λ_C: at Λ = 0.1, .* grown by 57% .*within 5% .* up to Λ = 0.01, and is up by 57% at "
              "Λ = 0.1. 12.9% of the directions are given back at Λ = 0.1; 7.9% have no stiffness"),
             ],
    "agree": [((1.02, 0.02, 1.0, "the mass"), "the mass: as expected, 1.020 ± 0.020 against 1, 1.0 standard"),
              ((1.2, 0.02, 1.0, "the mass"), "the mass: not as expected, .* 10.0 standard errors")],
    "ahead": [((0.5, 0.1, "NUTS", "SVI", "nats"), "NUTS is ahead of SVI: 0.50 ± 0.10 nats"),
              ((-0.5, 0.1, "NUTS", "SVI", "nats"), "NUTS is behind SVI")],
    "signed": [(([-1, -2], [0.1, 0.1], "g4"), "g4: negative"), (([-1, 2], [0.1, 0.1], "g4"), "g4: not negative")],
    "follow": [((CUTOFFS, np.ones(5), 0.1 * np.ones(5), np.ones(5) + 0.05, "the amplitude"), "met at every Λ"),
               ((CUTOFFS, [1, 2, 1, 1, 1], 0.1 * np.ones(5), np.ones(5), "the amplitude"),
                "off at 1 of 5 scales, the last Λ = 0.01, by up to 10 standard errors")],
    "told_apart": [(([0.001, 0.5, 0.7], "the laws"), "the laws differ .p < .05 at 1 of 3"),
                   (([0.04, 0.5, 0.7], "the laws"), "are not told apart by so many draws")],
    "gaussian": [((NORMAL,), "is Gaussian as far"), ((NORMAL**3,), "is not Gaussian: excess kurtosis .* p = ")],
    "calibrated": [((0.88, 0.03, 0.9, 100, "sample"), "as they should"),
                   ((0.7, 0.03, 0.9, 100, "sample"), "90% intervals hold 70.0 ± 3.0 % of 100 data; they are too narr")],
    "trained": [((RNG.normal(8, 0.1, 40), RNG.normal(9, 0.1, 40), "gd", "SGD"), "gd trains as well as SGD: .* 0.8"),
                ((RNG.normal(350, 9, 40), RNG.normal(8, 0.1, 40), "gd", "SGD"),
                 "gd does not train as SGD does: its median loss is 3.., 4\\S* times that of SGD")],
}


@pytest.mark.parametrize("name", VERDICTS)
def test_each_turns(name, capsys):
    for (arguments, words), expected in zip(CASES[name], (True, False), strict=True):
        found = VERDICTS[name](*arguments)
        print(f"{expected}: {found}")
        assert found.holds is expected and bool(found) is expected
        assert re.search(words, found.text), found.text


def test_all_have_cases():
    assert set(CASES) == set(VERDICTS)


@pytest.mark.parametrize(("found", "words"), [
    (verdicts.flat(loss([2, 2, 2, 2, 2])), "There is no Λ_C .* up to Λ = 10"),
    (verdicts.flat(loss([2, 5, 6, 7, 8])), "There is no Λ_C"),
    (verdicts.agree(1.0, np.nan, 1.0, "it"), "no error is known"),
    (verdicts.ahead(0.01, 0.1, "a", "b", "nats"), "not told apart"),
    (verdicts.ahead(0.01, np.nan, "a", "b", "nats"), "cannot be compared"),
    (verdicts.signed(-0.1, 0.1, "g4"), "of no certain sign"),
    (verdicts.told_apart([np.nan], "laws"), "nothing was tested"),
    (verdicts.gaussian(np.ones((4, 50))), "do not tell"),
    (verdicts.trained([2.0, 2.0, 2.0], [0.5, 1.0, 1.5], "gd", "SGD"), "is open"),
])
def test_what_is_open_is_said_to_be(found, words):
    assert found.holds is None and re.search(words, found.text), found.text


def with_one(arguments, lost):
    """The same arguments with one number of the first array of measurements lost."""
    at = 1 if isinstance(arguments[0], list) and arguments[0] is CUTOFFS else 0
    found = list(arguments)
    if isinstance(found[at], xr.DataArray):
        found[at] = found[at].copy(deep=True)
        found[at][2, :, :26] = lost  # of most members, further on
    else:
        found[at] = np.array(found[at], float)
        found[at].flat[-1] = lost
    return found


@pytest.mark.parametrize("lost", [np.nan, np.inf])
@pytest.mark.parametrize("name", VERDICTS)
def test_a_number_that_is_not_finite_bears_nothing_out(name, lost):
    """Each claim that holds, once one of its numbers is lost: it must not hold because the rest would."""
    arguments, _ = CASES[name][0]
    found = VERDICTS[name](*with_one(arguments, lost))
    if name == "trained":  # one member of forty that diverged: said, and it counts as worse than all others
        assert found.holds and "1 of 40 members have no finite loss" in found.text
    elif name == "told_apart":  # the others still tell
        assert found.holds and "1 could not be tested" in found.text
    elif name == "gaussian" and np.isnan(lost):  # a chain with a hole
        assert found.holds is None and "missing" in found.text
    else:
        assert not found, found.text


@pytest.mark.parametrize("lost", [np.nan, 0.0])
@pytest.mark.parametrize("name", ["agree", "signed", "follow", "ahead"])
def test_an_error_that_is_not_known_bears_nothing_out(name, lost):
    arguments, _ = CASES[name][0]
    found = list(arguments)
    at = 2 if name == "follow" else 1
    found[at] = np.array(found[at], float)
    found[at].flat[-1] = lost
    assert not VERDICTS[name](*found)


def test_what_was_not_tested_is_not_called_alike():
    found = verdicts.told_apart([0.4, np.nan, 0.7], "the laws")
    assert found.holds is None and "1 could not be tested" in found.text
    assert verdicts.follow(CUTOFFS, [1, np.nan, 1, 1, 1], np.ones(5), np.ones(5), "it").holds is False
    assert verdicts.agree([1.0, 1.0], [0.1, 0.0], [1.0, 1.0], "it")  # equal without an error: nothing to doubt
    assert not verdicts.calibrated(np.nan, 0.1, 0.9, 10, "it")
    assert verdicts.trained([1.0, 2, 3], [np.nan, np.inf, 1], "gd", "SGD").holds is None


def test_other_ways_to_fail():
    assert "too wide" in verdicts.calibrated(1.0, 0.0, 0.5, 100, "x").text
    assert verdicts.calibrated(1.0, 0.0, 0.9, 20, "x").holds  # 20 of 20 in 90 % intervals: 1.5 standard errors
    assert "gd diverges: 3 of 4 members" in verdicts.trained([np.nan, np.inf, np.inf, 1], np.ones(4), "gd", "SGD").text


def test_the_origin_of_a_loss_in_nats_means_nothing():
    curve = np.array([-2, -1.999, -1.98, 1, 4.0])
    one, other = (verdicts.flat(loss(curve + shift, "nats")) for shift in (0.0, 100.0))
    assert one.holds and other.holds and "0.02 nats" in one.text and "0.02 nats" in other.text


def test_correlated_draws_are_not_counted_as_independent():
    """A slow Gaussian chain, whose draws taken for independent ones would often be told from a Gaussian."""
    wrong = 0
    for _ in range(20):
        noise, x = RNG.normal(size=(4, 2000)), np.zeros((4, 2000))
        for t in range(1, 2000):
            x[:, t] = 0.97 * x[:, t - 1] + (1 - 0.97**2) ** 0.5 * noise[:, t]
        wrong += not verdicts.gaussian(x[:, 100:])
    assert wrong <= 2  # chance of a right method with rate .01: 1e-3


def conclusions(path):
    """Cells of words in a notebook that conclude: those under "What it means"."""
    text = path.read_text()
    return [cell for cell in text.split("# %%") if cell.startswith(" [markdown]") and "**What it means.**" in cell]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda p: p.stem)
def test_notebooks_print_their_verdicts(path):
    calls = {node.func.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value).endswith("verdicts")}
    assert calls and calls <= {*VERDICTS, "zero_share"}
    assert not conclusions(path)  # what it means is printed, not typed
