"""Boards: every cell once, failures counted, scores in own units, pairs compared; peers that fit what they should."""

import functools
import gzip
import json
import os
import pathlib
import time

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import bayes_brg as brg
from bayes_brg.cli import main
from bayes_brg.core import files
from bayes_brg.core.keys import name_key
from bayes_brg.diagnostics import correlated_t, signed_rank
from bayes_brg.runs.methods import METHODS
from bayes_brg.runs.predictive import as_predictive

KEY = jax.random.key(0)
CALLS: list = []


def linear(x, y, x_test, *, key, num_classes=0):
    """Least squares."""
    CALLS.append("linear")
    w, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
    scale = np.std(y - np.c_[x, np.ones(len(x))] @ w)
    return {"loc": np.c_[x_test, np.ones(len(x_test))] @ w, "scale": np.full(len(x_test), scale)}


def guess(x, y, x_test, *, key, num_classes=0):
    CALLS.append("guess")
    return np.asarray(y.mean() + y.std() * jax.random.normal(key, (500, len(x_test))))


def broken(x, y, x_test, *, key, num_classes=0):
    CALLS.append("broken")
    raise RuntimeError("no such luck")


def dying(x, y, x_test, *, key, num_classes=0):
    os._exit(7)


def sleeping(x, y, x_test, *, key, num_classes=0):
    time.sleep(100)


def tables():
    rng = np.random.default_rng(0)
    found = {}
    for name, scale in (("small", 1.0), ("large", 1e4)):
        x = rng.normal(size=(60, 2))
        found[name] = brg.Table(x, scale * (7 + x @ [1.0, -2.0] + 0.5 * rng.normal(size=60)))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("board")
    CALLS.clear()
    found = brg.board(tables(), [linear, guess, broken], splits=3, key=KEY, path=path, progress_bar=False)
    assert len(CALLS) == 2 * 3 * 3
    return path, found


def test_a_board_has_a_cell_for_all_and_makes_each_once(made):
    path, found = made
    assert len(found.table) == 18 and len(list(path.rglob("*.json"))) == 18
    CALLS.clear()
    again = brg.board(tables(), [linear, guess, broken], splits=3, key=KEY, path=path, progress_bar=False)
    assert not CALLS
    pd.testing.assert_frame_equal(again.table, found.table, rtol=1e-12)
    (path / "small" / "1" / "guess.json").unlink()
    brg.board(tables(), [linear, guess, broken], splits=3, key=KEY, path=path, progress_bar=False)
    assert CALLS == ["guess"]
    brg.board(tables(), [broken], splits=3, key=KEY, path=path, progress_bar=False, retry_failed=True)
    assert CALLS == ["guess"] + ["broken"] * 6
    pd.testing.assert_frame_equal(pd.read_csv(path / "board.csv").drop(columns="error"), brg.board(
        tables(), [broken], splits=3, key=KEY, path=path, progress_bar=False).table.drop(columns="error"),
        check_dtype=False)


def test_scores_are_in_own_units_against_numpy(made):
    path, found = made
    row = found.table.query("table == 'large' and split == 2 and method == 'linear'").iloc[0]
    table = tables()["large"]
    order = np.asarray(jax.random.permutation(jax.random.fold_in(name_key(KEY, "large"), 2), 60))
    held, train = order[:6], order[6:]
    a = np.c_[table.x, np.ones(60)]
    w, *_ = np.linalg.lstsq(a[train], table.y[train], rcond=None)
    sd, error = np.std(table.y[train] - a[train] @ w), table.y[held] - a[held] @ w
    assert row["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
    assert row["log_density"] == pytest.approx(stats.norm.logpdf(error, 0, sd).mean(), rel=1e-5)
    z = error / sd
    crps = sd * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert row["crps"] == pytest.approx(crps.mean(), rel=1e-4)
    assert row["coverage_80"] == pytest.approx((np.abs(z) < stats.norm.ppf(0.9)).mean())
    assert (row["num_train"], row["num_test"]) == (54, 6) and row["seconds"] >= 0


def test_failures_keep_their_error_and_count_against_their_method(made):
    path, found = made
    failed = found.table[found.table["method"] == "broken"]
    assert (failed["error"] == "RuntimeError: no such luck").all() and failed["rmse"].isna().all()
    assert "no such luck" in json.loads((path / "small" / "0" / "broken.json").read_text())["traceback"]
    filled = found.filled("log_density")
    assert (filled["broken"] <= filled[["linear", "guess"]].min(axis=1)).all()
    assert found.summary().loc[("small", "broken"), "failed"] == 3
    for score in ("log_density", "rmse", "crps"):
        over = found.comparison(score).query("table == ''").set_index(["first", "second"])
        assert over.loc[("linear", "broken"), "better"] > 0.9 and over.loc[("linear", "guess"), "better"] > 0.9
        assert over.loc[("guess", "broken"), "worse"] == 0
    assert "broken failed in every cell, which counts as the worst: RuntimeError: no such luck" in str(found)
    assert "signed rank, 2 tables" in str(found) and found.figure().axes[1].get_title() == (
        "P(row better than column), 2 tables")


def test_pairs_are_compared_as_the_tests_say(made):
    found = made[1]
    wide = found.table.pivot(index=["table", "split"], columns="method", values="rmse")
    d = np.log(wide["guess"] / wide["linear"])
    compared = found.comparison("rmse", rope=0.02).query("first == 'linear' and second == 'guess'").set_index("table")
    one = correlated_t(d["large"], test_fraction=0.1, rope=0.02)
    assert compared.loc["large", ["better", "equal", "worse"]].tolist() == pytest.approx(list(one))
    over = signed_rank([d["small"].mean(), d["large"].mean()], rope=0.02)
    assert compared.loc["", ["better", "equal", "worse"]].tolist() == pytest.approx(list(over))
    with pytest.raises(ValueError, match="score must be one of"):
        found.comparison("rsme")


def test_cells_of_another_board_are_not_taken_for_ones_own(made, tmp_path):
    path = made[0]
    with pytest.raises(ValueError, match="key = .* there, .* now"):
        brg.board(tables(), [linear], splits=1, key=jax.random.key(1), path=path, progress_bar=False)
    other = {"small": brg.Table(tables()["small"].x + 1, tables()["small"].y)}
    with pytest.raises(ValueError, match="data = "):
        brg.board(other, [linear], splits=1, key=KEY, path=path, progress_bar=False)
    with pytest.raises(ValueError, match="method = .*linear.* there, .*guess.* now"):
        brg.board(tables(), {"linear": guess}, splits=1, key=KEY, path=path, progress_bar=False)
    (tmp_path / "small" / "0").mkdir(parents=True)
    (tmp_path / "small" / "0" / "linear.json").write_text("{}")
    with pytest.raises(ValueError, match="is no cell of a board"):
        brg.board(tables(), [linear], splits=1, key=KEY, path=tmp_path, progress_bar=False)


class Constant:
    def __init__(self, value):
        self.value = value

    def __call__(self, x, y, x_test, *, key, num_classes=0):
        return {"loc": np.full(len(x_test), self.value), "scale": np.ones(len(x_test))}


def test_cells_are_known_by_their_bytes_and_methods_by_what_they_hold(tmp_path):
    one = {"small": tables()["small"]}

    def held(value):
        return lambda x, y, x_test, *, key, num_classes=0: Constant(value)(x, y, x_test, key=key)

    def made(value):
        return brg.board(one, {"object": Constant(value), "function": held(value)}, splits=1, key=KEY, path=tmp_path,
                         progress_bar=False).table["rmse"].tolist()

    first = made(7.0)
    left = tmp_path / "small" / "0" / f".object.json~{files.host_name()}~{2**22 + 1}~1~0.tmp"  # a dead process's
    left.write_text("{")
    assert made(7.0) == first and not left.exists()
    cell = tmp_path / "small" / "0" / "object.json"
    with pytest.raises(ValueError, match="object.json is that of another board: method = "):
        made(8.0)
    cell.unlink()
    with pytest.raises(ValueError, match="function.json is that of another board: method = "):
        made(8.0)
    made_again = made(7.0)
    content = cell.read_bytes()
    assert made_again == first
    for bad, said in ((content.replace(b'"rmse": ', b'"rmse": 1'), "is damaged"), (content[:-9], "cannot be read"),
                      (b"[]", "no JSON object"), (b'{"identity": []}', "no cell of a board")):
        cell.write_bytes(bad)
        with pytest.raises(ValueError, match=f"object.json {said}|object.json .*{said}"):
            made(7.0)


def test_tables_with_fixed_splits_and_names(tmp_path, monkeypatch):
    table = tables()["small"]
    mask = (np.arange(60)[:, None] % 3 == np.arange(3)).astype(int)
    for part, values in (("data", np.c_[table.x, table.y]), ("test_mask", mask)):
        with gzip.open(tmp_path / f"fixed.{part}.csv.gz", "wt") as file:
            np.savetxt(file, values, delimiter=",")
    monkeypatch.setenv("BAYES_BRG_TABLES", str(tmp_path))
    boards = [brg.board(t, linear, splits=[0, 2, 7], key=KEY, path=tmp_path / str(i), progress_bar=False).table
              for i, t in enumerate([str(tmp_path), tmp_path / "fixed", "fixed"])]
    for one in boards:
        assert one["table"].unique() == ["fixed"] and list(one["split"]) == [0, 2] and (one["num_test"] == 20).all()
        np.testing.assert_allclose(one["rmse"], boards[0]["rmse"])
    a, held = np.c_[table.x, np.ones(60)], mask[:, 2] == 1
    w, *_ = np.linalg.lstsq(a[~held], table.y[~held], rcond=None)
    assert boards[0]["rmse"][1] == pytest.approx(np.sqrt(((a[held] @ w - table.y[held]) ** 2).mean()), rel=1e-3)
    with pytest.raises(ValueError, match="no table 'fixt': .* none of diabetes"):
        brg.board("fixt", linear, key=KEY, path=tmp_path / "x")


@pytest.mark.parametrize("methods, options, match", [
    (["lniear"], {}, "method must be one of"),
    ([linear, linear], {}, "two methods are called 'linear'"),
    ([], {}, "name a method"),
    ([3], {}, "a method is a function or one of default, map"),
    ({"a/b": linear}, {}, "label names files"),
    ({"here": lambda x, y, x_test, **_: 0}, {"num_processes": 2}, "cannot be sent to another process"),
    ([linear], {"splits": 0}, "splits must be"),
    ([linear], {"test_fraction": 1.5}, "test_fraction must be between 0 and 1"),
])
def test_bad_boards_are_refused(methods, options, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        brg.board(tables(), methods, key=KEY, path=tmp_path, **options)


@pytest.mark.parametrize("value, classes, match", [
    (np.ones((1, 4)), 0, "two draws at least"), (np.ones((5, 4)), 0, "all draws agree"),
    ({"loc": np.ones(4), "scale": np.zeros(4)}, 0, "scale must be above 0"), ({"mean": 1}, 0, "it may return loc"),
    ({"loc": np.ones(3), "scale": np.ones(3)}, 0, "predicts 3 points of 4"),
    ({"phi": 1}, 0, "must return loc and scale"),
    ({"loc": np.full(4, np.nan), "scale": np.ones(4)}, 0, "loc.* is nan"),
    (np.ones((4, 3)) / 3, 2, "probs must be"), (np.ones((4, 2)), 2, "must sum to 1"), ({"loc": 1}, 2, "return probs"),
])
def test_predictions_of_no_use_are_refused(value, classes, match):
    with pytest.raises(ValueError, match=match):
        as_predictive(value, 4, classes)


def test_draws_have_the_density_of_their_law():
    rng = np.random.default_rng(0)
    found = as_predictive(rng.normal(2.0, 3.0, (4000, 2)), 2, 0)
    density = np.exp(stats.norm.logpdf(1.0, found.loc, found.scale)).mean(0)
    assert density == pytest.approx([stats.norm.pdf(1.0, 2.0, 3.0)] * 2, rel=0.08)


# -- peers ----------------------------------------------------------------------------------------------------
PEERS = {"ridge": {}, "forest": {"num_trees": 30}, "boosting": {"max_trees": 60}, "gp": {"max_rows": 60}}


@pytest.mark.parametrize("name", PEERS)
def test_peers_find_a_line_and_its_noise(name):
    """Log density within .6 nats of the truth's, intervals near their level; classes better than their shares."""
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(1)
    x, x_test = rng.normal(size=(120, 2)), rng.normal(size=(200, 2))
    f, f_test = (a @ [1.0, -1.0] for a in (x, x_test))
    y, y_test = f + 0.3 * rng.normal(size=120), f_test + 0.3 * rng.normal(size=200)
    method = functools.partial(METHODS[name], **PEERS[name])
    law = as_predictive(method(x, y, x_test, key=KEY), 200, 0)
    gap = stats.norm.logpdf(y_test, f_test, 0.3).mean() - stats.norm.logpdf(y_test, law.loc[0], law.scale[0]).mean()
    assert 0 < gap < (0.1 if name in ("ridge", "gp") else 0.9)
    labels, labels_test = (y > 0).astype(int), (y_test > 0).astype(int)
    probs = as_predictive(method(x, labels, x_test, key=KEY, num_classes=3), 200, 3).probs[0]  # one is never seen
    assert -np.log(probs[np.arange(200), labels_test]).mean() < 0.5 and (probs > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ensemble", "mc_dropout", "map", "default"])
def test_trained_peers_and_networks_find_a_line_and_its_noise(name):
    rng = np.random.default_rng(1)
    x, x_test = rng.normal(size=(200, 2)), rng.normal(size=(300, 2))
    f, f_test = (a @ [1.0, -1.0] / 1.6 for a in (x, x_test))  # targets of variance about one, as on a board
    scale = 0.45
    y, y_test = f + scale * rng.normal(size=200), f_test + scale * rng.normal(size=300)
    few = {"ensemble": {"num_members": 3}, "mc_dropout": {"num_draws": 50}, "map": {"width": 8},
           "default": {"width": 8, "num_warmup": 100, "num_samples": 50}}[name]
    method = functools.partial(METHODS[name], **few)
    law = as_predictive(method(x, y, x_test, key=KEY), 300, 0)
    density = np.log(np.exp(stats.norm.logpdf(y_test, law.loc, law.scale)).mean(0)).mean()
    assert stats.norm.logpdf(y_test, f_test, scale).mean() - density < 0.25
    assert (law.phi is None) == (name != "default")
    labels, labels_test = (y > 0).astype(int), (y_test > 0).astype(int)
    probs = as_predictive(method(x, labels, x_test, key=KEY, num_classes=2), 300, 2).probs.mean(0)
    assert -np.log(probs[np.arange(300), labels_test]).mean() < 0.6


@pytest.mark.slow
def test_cells_in_other_processes_are_those_of_this_one_and_losses_are_kept(tmp_path, made):
    found = brg.board(tables(), [linear, guess, dying], splits=2, key=KEY, path=tmp_path / "board", num_processes=2,
                      timeout=300, progress_bar=False)  # a process begins slowly where the machine is busy
    late = brg.board({"large": tables()["large"]}, [sleeping], splits=[1], key=KEY, path=tmp_path / "late",
                     num_processes=2, timeout=15, progress_bar=False)
    both = [one.table.query("method in ('linear', 'guess') and split < 2").drop(columns="seconds") for one in (
        found, made[1])]
    both = [one.sort_values(["table", "split", "method"]).reset_index(drop=True) for one in both]
    pd.testing.assert_frame_equal(*both, rtol=1e-5)
    errors = found.table.set_index(["table", "split", "method"])["error"]
    assert "its process ended (exit status 7)" in errors[("small", 0, "dying")]
    assert "not done in 15 s" in late.table["error"].item()


@pytest.mark.slow
def test_the_command_line_has_a_board(tmp_path, capsys):
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=80), "b": rng.choice(["u", "v"], 80)})
    frame["y"] = frame["a"] + (frame["b"] == "u") + 0.1 * rng.normal(size=80)
    frame.to_csv(tmp_path / "mine.csv", index=False)
    arguments = ["board", str(tmp_path / "mine.csv"), "--target", "y", "--methods", "ridge", "forest", "--splits", "3",
                 "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "is the first of two better?" in said and "board.csv, comparison.csv, log_density.png" in said
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"mine", "board.csv", "comparison.csv", "log_density.png",
                                                             "rmse.png", "crps.png"}
    compared = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert (compared.query("score == 'rmse'")["better"] > 0.5).all()
    assert main(["board", "nowhere", "--methods", "ridge", "--out", str(tmp_path / "other")]) == 2
    assert "no table 'nowhere'" in capsys.readouterr().err


FOLDER = pathlib.Path(os.environ.get("BAYES_BRG_TABLES", "nowhere"))


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / "energy.data.csv.gz").is_file(), reason="BAYES_BRG_TABLES names no folder of tables")
def test_ridge_and_forest_on_a_published_table(tmp_path):
    found = brg.board("energy", ["ridge", "forest"], splits=3, key=KEY, path=tmp_path, progress_bar=False)
    assert found.table["error"].isna().all()
    mean = found.summary()["rmse"]
    assert mean[("energy", "forest")] < 0.7 < 2 < mean[("energy", "ridge")] < 4
