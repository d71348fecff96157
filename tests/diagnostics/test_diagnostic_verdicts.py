"""Every verdict of the diagnostics, on numbers that bear it out and on numbers that contradict it."""

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import bayes_brg as brg
from bayes_brg.diagnostics.calibration import SBC, uniformity
from bayes_brg.diagnostics.compare import Comparison
from bayes_brg.diagnostics.convergence import judge
from bayes_brg.diagnostics.scores import _loo_faults


@pytest.mark.parametrize(("p", "said"), [
    ([0.4, 0.06, 1.0, 0.2], "no difference found at any of 4 cutoffs (smallest adjusted p = 0.06, alpha = 0.05)"),
    ([0.01, 0.02, 0.3, 0.04], "the predictive laws differ at Λ = 0 to 0.1, Λ = 10: 3 of 4 cutoffs "
                              "(energy distance, family-wise alpha = 0.05)"),
    ([0.2, 0.01, 0.01, 0.01], "the predictive laws differ at Λ = 0.1 to 10: 3 of 4 cutoffs "
                              "(energy distance, family-wise alpha = 0.05)"),
])
def test_whether_two_flows_differ(p, said):
    p = np.array(p)
    found = Comparison(xr.Dataset({"energy_p_adjusted": ("cutoff", p), "differs": ("cutoff", p < 0.05)},
                                  {"cutoff": [0.0, 0.1, 1.0, 10.0]}, {"alpha": 0.05}))
    assert found.verdict == said and found.differs == ("differ at" in said)


@pytest.mark.parametrize(("phi", "stats", "holds", "said"), [
    ("mixed", {}, True, "converged in function space: yes, because the worst R-hat is 1.00"),
    ("apart", {}, False, "converged in function space: no, because the worst R-hat is"),
    ("slow", {}, False, "converged in function space: no, because"),
    ("stuck", {}, False, "no, because"),
    ("mixed", {"diverging": np.ones((4, 500))}, True, "2000 transitions diverged"),
    ("apart", {"independent": True}, True, "independent; 2000 members"),
    ("infinite", {"independent": True}, False, "independent; 2000 members; 1 of 2000 draws give a phi that is not"),
])
def test_whether_chains_have_converged(phi, stats, holds, said):
    rng = np.random.default_rng(1)
    good = rng.normal(size=(4, 500, 3))
    values = {"mixed": good, "apart": good + np.arange(4.0)[:, None, None],
              "slow": np.cumsum(good, axis=1), "stuck": 0 * good + np.arange(4.0)[:, None, None],
              "infinite": np.where(np.arange(6000).reshape(4, 500, 3) == 7, np.inf, good)}[phi]
    found = judge(xr.Dataset({"phi": (("chain", "draw", "point"), values)}),
                  brg.Posterior({"w": jnp.asarray(good)}, stats))
    assert bool(found) is holds and said in found.verdict


@pytest.mark.parametrize(("k", "each", "said"), [
    (0.3, 0.05, ""), (0.8, 0.05, "20 of 20 data have a Pareto k above 0.7"),
    (np.nan, 0.05, "20 of 20 data have a Pareto k above 0.7"),
    (0.3, 0.5, "p_loo = 10 is above the model's 2 parameters"),
    (0.3, np.inf, "the elpd of 20 of 20 data are not finite"),
])
def test_whether_leave_one_out_can_be_used(k, each, said):
    each = np.full(20, each)
    faults = "; ".join(_loo_faults(each, np.full(20, k), each.sum(), 2))
    assert said in faults and bool(said) == bool(faults)
    one = np.where(np.arange(20) == 0, 10.0, 0.0)  # a single datum: its scatter excuses half a parameter each, no more
    assert "p_loo = 10 is above" in "; ".join(_loo_faults(one, np.full(20, 0.1), 10.0, 2))
    assert _loo_faults(one, np.full(20, 0.1), 2.9, 2) == []
    some = np.where(np.arange(20) < 9, 0.9, 0.1)  # fewer than half
    assert _loo_faults(np.full(20, 0.05), some, 1.0, 2) == []


def test_whether_ranks_are_uniform():
    rng = np.random.default_rng(2)
    assert uniformity(rng.integers(0, 64, 400), 63, 20) > 1e-3
    assert uniformity(rng.binomial(63, 0.5, 400), 63, 20) < 1e-12  # draws too wide
    dataset = xr.Dataset({v: ("quantity", [0.5]) for v in ("p_value", "shift", "spread")},
                         {"quantity": ["phi"], "simulation": np.arange(400)}, {"num_draws": 63})
    for passed, word in ((True, "passed:"), (False, "FAILED:")):
        assert str(SBC(passed, 1e-3, dataset)).startswith(word)
