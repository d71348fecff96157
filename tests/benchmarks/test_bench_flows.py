"""Which flow when: the four flows of one posterior side by side, on a deep net, a table and digits.

    python -m pytest -m slow -s tests/benchmarks/test_bench_flows.py
    python tests/benchmarks/test_bench_flows.py deep_relu table.png     # one case; the figure beside the table
"""

import pathlib
import sys
import warnings

import jax
import numpy as np
import pytest

import bayes_brg as brg
from bayes_brg import plots
from bayes_brg.diagnostics import side_by_side

pytestmark = pytest.mark.slow
KEY = jax.random.key(0)
DEEP_RELU = pathlib.Path(__file__).resolve().parents[2] / "models" / "deep_relu.py"


def deep_relu(width=32):
    experiment = brg.load_experiment(DEEP_RELU)
    settings = experiment.with_settings({"width": width})
    data = experiment.data(settings, KEY)
    probe = experiment.probe(settings, jax.random.key(1))
    return experiment.model(settings), data.x, data.y, data.x_test, data.y_test, probe


def table():
    """The diabetes table, standardised: 300 rows to learn from, the others held out."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (x - x.mean(0))[order] / x.std(0), (y - y.mean())[order] / y.std()
    net = brg.mlp((16,), activation="tanh", bias_std=1.0, likelihood=brg.gaussian(0.7))
    return net, x[:300], y[:300], x[300:], y[300:], x[:100]


def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order] / 16, y[order]
    net = brg.mlp((16,), out=10, activation="tanh", weight_std=2.0, bias_std=0.5, likelihood=brg.categorical())
    return net, x[:200], y[:200], x[200:600], y[200:600], x[:40]


CASES = {"deep_relu": (deep_relu, (0.0, 0.1, 1.0, 10.0)), "table": (table, (0.0, 0.1, 1.0, 10.0)),
         "digits": (digits, (0.0, 0.01, 0.03, 0.1))}


def four_flows(case, *, draws=6, warmup=400, thinning=20, cutoffs=None, tolerance=0.1):
    """Functions that make the four flows of one posterior (4 chains), and the held-out data."""
    make, scales = CASES[case]
    net, x, y, x_test, y_test, probe = make()
    posterior = brg.split_hmc(net, x, y, key=jax.random.key(2), num_warmup=warmup, num_samples=draws, thinning=thinning,
                              progress_bar=False)
    cutoffs = np.asarray(scales if cutoffs is None else cutoffs)

    def straight(**how):
        return brg.renormalize(net, posterior, brg.fisher(net, posterior, probe, **how), cutoffs=cutoffs, key=KEY)

    def fibre():
        metric = brg.fisher(net, posterior, probe, kind="full", whiten=True)
        return brg.renormalize_fibre(net, posterior, metric, cutoffs=cutoffs, key=KEY, tolerance=tolerance,
                                     progress_bar=False)

    flows = {
        "parameters": lambda: straight(whiten=True), "eigenmodes": lambda: straight(kind="full", whiten=True),
        "fibre": fibre,
        "tempered": lambda: brg.renormalize_tempered(net, posterior, x, y, cutoffs=cutoffs, key=KEY,
                                                     progress_bar=False)}
    return flows, x_test, y_test


def compared(case, **options):
    """The table of `side_by_side` for a case."""
    flows, x_test, y_test = four_flows(case, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # eigenmodes say that they leave their linearisation
        return side_by_side(flows, x_test, y_test)


@pytest.mark.parametrize("case", CASES)
def test_which_flow_when(case):
    found = compared(case)
    print(f"\n{case}\n{found.round(3).to_string(index=False)}")
    at = found[found["cutoff"] == found["cutoff"].unique()[1]].set_index("flow")
    assert at.loc["fibre", "loss"] < at.loc["eigenmodes", "loss"]
    assert np.isfinite(found[["loss", "log_density"]]).all(axis=None)


if __name__ == "__main__":
    result = compared(sys.argv[1])
    print(result.round(3).to_string(index=False))
    if len(sys.argv) > 2:
        plots.flows_side_by_side(result).savefig(sys.argv[2], dpi=150)
