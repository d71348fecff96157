"""Every public name that takes an array, with every kind of array: the value of the plain one, or a refusal by name."""

import dataclasses
import re
from functools import partial

import jax
import ml_dtypes
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from matplotlib import pyplot as plt

import bayes_brg as brg
from bayes_brg import diagnostics, plots, theory

KEY = jax.random.key(0)
NET = brg.mlp((), weight_std=1.0, likelihood=brg.gaussian(0.5))
X = np.array([[0.0], [1.0], [1.0], [0.0], [1.0], [0.0]])
Y = np.array([0.0, 1.0, 0.0, 0.0, 1.0, 1.0])
SAMPLES = np.array([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0]]).reshape(2, 4, 1, 1)
DRAWS = np.array(np.meshgrid(*[[0.0, 1.0]] * 3)).reshape(3, 8).T  # (sample, point), the corners of a cube
PAIR = np.array([[1.0, 0.0], [0.0, 1.0]])
KERNEL = dict(depth=1, activation="relu", weight_var=1.0, bias_var=1.0)
COS = dict(dim=1, mass=1.0, radius=2.0)


class Made:
    """A posterior, a metric, a flow and a field theory, made once for all."""

    def __init__(self):
        self.posterior = brg.Posterior(samples={"w0": SAMPLES.astype(np.float32)})
        self.metric = brg.fisher(NET, self.posterior, X)
        self.flow = brg.renormalize(NET, self.posterior, self.metric, cutoffs=[0.0, 1.0], key=KEY)
        self.k = brg.Cumulants(mean=np.zeros(2), k2=np.eye(2), k3=np.full((2, 2, 2), 0.1), k4=np.full((2,) * 4, 0.1))
        self.action = brg.action(self.k)
        self.deformed = brg.deform(NET, lambda phi: 0.1 * (phi**2).sum(), X)

    def flowed(self, cutoffs):
        return brg.renormalize(NET, self.posterior, self.metric, cutoffs=cutoffs, key=KEY).cutoffs

    def drawn(self, phi):
        fig, ax = plt.subplots()
        plots.distribution(phi, ax=ax)
        drawn = [np.asarray(p.get_data().values) for p in ax.patches]
        plt.close(fig)
        assert drawn
        return drawn


@pytest.fixture(scope="module")
def made():
    return Made()


@dataclasses.dataclass(frozen=True)
class Door:
    """A public name, the argument read there, what it is by default, and a call. `same`: values are compared, too.

    Expensive calls are only shown what they refuse before they compute; they read through the doors compared here.
    """

    argument: str
    plain: np.ndarray
    call: object
    same: bool = True


def infer(name, argument, **options):
    method = partial(getattr(brg, name), NET, key=KEY, **options)
    call = (lambda m, a: method(a, Y)) if argument == "x" else (lambda m, a: method(X, a))
    return Door(argument, X if argument == "x" else Y, call, same=False)


def exact(x, y):
    return brg.readout_posterior(NET, x, y, key=KEY, num_samples=4).samples["w0"]


DOORS = {
    # inputs
    "predict x": Door("x", X, lambda m, a: brg.predict(NET, m.posterior, a)),
    "prior x": Door("x", X, lambda m, a: brg.prior(NET, a, key=KEY, num_samples=4).samples["w0"]),
    "fisher x": Door("x", X, lambda m, a: brg.fisher(NET, m.posterior, a).stiffness["w0"]),
    "flow.predict x": Door("x", X, lambda m, a: m.flow.predict(a)),
    "flow.loss x": Door("x", X, lambda m, a: m.flow.loss(a, Y)),
    "readout_posterior x": Door("x", X, lambda m, a: exact(a, Y)),
    "deform mesh": Door("mesh", X, lambda m, a: brg.deform(NET, lambda phi: (phi**2).sum(), a).mesh, False),
    "convergence x": Door("x", X, lambda m, a: diagnostics.convergence(NET, m.posterior, a), False),
    "scores x": Door("x", X, lambda m, a: diagnostics.scores(NET, m.posterior, a, Y), False),
    "loo x": Door("x", X, lambda m, a: diagnostics.loo(NET, m.posterior, a, Y), False),
    "compare x": Door("x", X, lambda m, a: brg.compare(m.flow, m.flow, a, Y), False),
    "sbc x": Door("x", X, lambda m, a: diagnostics.sbc(NET, a, brg.nuts, key=KEY), False),
    "to_arviz x": Door("x", X, lambda m, a: brg.to_arviz(m.posterior, NET, a), False),
    "closed_form_flow x": Door("x", X, lambda m, a: brg.closed_form_flow(m.flow, a), False),
    "learning_vs_flow x": Door("x", X, lambda m, a: diagnostics.learning_vs_flow(
        {0: m.posterior, 1: m.posterior}, m.flow, a), False),
    "learning_rate x": infer("learning_rate", "x"),
    "Data x": Door("x", X, lambda m, a: brg.Data(a, Y, X, Y).x),
    "Table x": Door("x", X, lambda m, a: brg.Table(a, Y).x),
    "nngp x1": Door("x1", X, lambda m, a: theory.nngp(a, **KERNEL)),
    "ntk x2": Door("x2", X, lambda m, a: theory.ntk(X, a, **KERNEL)),
    "descent x_train": Door("x_train", X[:2], lambda m, a: theory.descent(
        a, Y[:2], X, t=1.0, kernel="nngp", **KERNEL)[0]),
    "gp_posterior x_test": Door("x_test", X, lambda m, a: theory.gp_posterior(X, Y, a, noise_var=1.0, **KERNEL)[0]),
    # targets
    "flow.loss y": Door("y", Y, lambda m, a: m.flow.loss(X, a)),
    "critical_scale y": Door("y", Y, lambda m, a: m.flow.critical_scale(X, a), False),
    "fisher y": Door("y", Y, lambda m, a: brg.fisher(NET, m.posterior, X, estimator="empirical", y=a).stiffness["w0"]),
    "readout_posterior y": Door("y", Y, lambda m, a: exact(X, a)),
    "targets": Door("y", Y, lambda m, a: brg.bernoulli().targets(a, 1), False),
    "scores y": Door("y", Y, lambda m, a: diagnostics.scores(NET, m.posterior, X, a), False),
    "Data y_test": Door("y", Y, lambda m, a: brg.Data(X, Y, X, a).y_test),
    "gp_posterior y_train": Door("y_train", Y, lambda m, a: theory.gp_posterior(X, a, X, noise_var=1.0, **KERNEL)[0]),
    **{f"{name} {argument}": infer(name, argument) for argument in ("x", "y") for name in (
        "nuts", "hmc", "split_hmc", "mclmc", "sgld", "sghmc", "tempered_smc", "pathfinder", "laplace", "svi",
        "sample", "map_estimate", "ensemble")},
    # parameters
    "Posterior samples": Door("samples['w0']", SAMPLES, lambda m, a: brg.Posterior(samples={"w0": a}).samples["w0"]),
    "fisher at": Door("at['w0']", PAIR[:1, :1], lambda m, a: brg.fisher(NET, None, X, at={"w0": a}).stiffness["w0"]),
    "laplace params": Door("params['w0']", PAIR[:1, :1], lambda m, a: brg.laplace(
        NET, X, Y, key=KEY, params={"w0": a}), False),
    "readout_posterior hidden": Door("hidden['w0']", np.ones((1, 2)), lambda m, a: brg.readout_posterior(
        brg.mlp((2,)), X, Y, key=KEY, hidden={"w0": a}, num_samples=4).samples["w1"], False),
    "nuts init": Door("init['w0']", PAIR[:1, :1], lambda m, a: brg.nuts(NET, X, Y, key=KEY, init={"w0": a}), False),
    "nuts inverse_mass": Door("inverse_mass['w0']", PAIR[:1, :1], lambda m, a: brg.nuts(
        NET, X, Y, key=KEY, inverse_mass={"w0": a}), False),
    # scales
    "renormalize cutoffs": Door("cutoffs", np.array([0.0, 1.0]), lambda m, a: m.flowed(a)),
    "flow.loss cutoffs": Door("cutoffs", np.array([0.0, 1.0]), lambda m, a: m.flow.loss(X, Y, cutoffs=a)),
    # fields
    "cumulants phi": Door("phi", DRAWS, lambda m, a: brg.cumulants(a, order=4).k4),
    "cumulants weights": Door("weights", np.ones(8), lambda m, a: brg.cumulants(DRAWS, order=2, weights=a).k2),
    "block_cumulants phi": Door("phi", DRAWS, lambda m, a: brg.block_cumulants(a, order=2, num_blocks=2).k2),
    "moments phi": Door("phi", DRAWS, lambda m, a: brg.moments(a, order=2)),
    "Moments update": Door("batch", DRAWS, lambda m, a: brg.Moments.init(3).update(a).finalize().k2),
    "Cumulants k2": Door("k2", PAIR, lambda m, a: brg.action(brg.Cumulants(mean=np.zeros(2), k2=a), order=0).quadratic),
    "edgeworth_pdf phi": Door("phi", PAIR, lambda m, a: brg.edgeworth_pdf(a, m.k)),
    "edgeworth_marginal grid": Door("grid", Y, lambda m, a: brg.edgeworth_marginal(m.k, 0, grid=a)),
    "edgeworth_report phi": Door("phi", PAIR, lambda m, a: brg.edgeworth_report(m.k, phi=a).fraction),
    "action phi": Door("phi", PAIR, lambda m, a: m.action(a)),
    "log_generating_functional J": Door("J", DRAWS[:2], lambda m, a: brg.log_generating_functional(DRAWS, a).value),
    "gaussian_wasserstein": Door("a", DRAWS, lambda m, a: diagnostics.gaussian_wasserstein(a, DRAWS * 2).value),
    "kolmogorov_smirnov": Door("a", DRAWS, lambda m, a: diagnostics.kolmogorov_smirnov(a, DRAWS * 2).statistic),
    "adjust": Door("p_values", Y, lambda m, a: diagnostics.adjust(a)),
    "plots.distribution": Door("phi", Y, lambda m, a: m.drawn(a)),
    # theory
    "dual": Door("a", Y, lambda m, a: theory.dual("relu", a, 1.0, 0.0)[2]),
    "weight_var": Door("weight_var", np.array([1.0, 1.0]), lambda m, a: theory.nngp(X, **KERNEL | {"weight_var": a})),
    "descent t": Door("t", Y, lambda m, a: theory.descent(X[:2], Y[:2], X, t=a, kernel="nngp", **KERNEL)[0]),
    "readout_moments": Door("draws", DRAWS, lambda m, a: theory.readout_moments(a)[1]),
    "renormalized_readout cov": Door("cov", PAIR, lambda m, a: theory.renormalized_readout(
        np.zeros(2), a, np.ones(2), 0.5, 1.0)[1]),
    "predictive_gp": Door("V1_x", PAIR[0], lambda m, a: theory.predictive_gp(
        np.zeros(1), np.eye(1), a, np.ones(2), np.eye(2))[2]),
    "cosnet_covariance": Door("r", Y, lambda m, a: theory.cosnet_covariance(a, **COS)),
    "cosnet_spectrum": Door("p", Y, lambda m, a: theory.cosnet_spectrum(a, **COS)),
}


def frame(a):
    return pd.DataFrame(a, columns=[f"c{i}" for i in range(a.shape[1])]) if a.ndim == 2 else pd.Series(a)


def with_entry(value):
    def holder(a):
        out = np.array(a.astype(float), dtype=object)
        out.flat[-1] = value
        return out
    return holder


SAME = {
    "int64": lambda a: a.astype(np.int64), "uint8": lambda a: a.astype(np.uint8), "bool": lambda a: a.astype(bool),
    "objects": lambda a: a.astype(object), "bfloat16": lambda a: a.astype(ml_dtypes.bfloat16),
    "nullable": lambda a: frame(a).astype("Int64") if a.ndim <= 2 else a,
    "masked nowhere": lambda a: np.ma.masked_array(a),
}
REFUSED = {
    "masked": lambda a: np.ma.masked_array(a, np.arange(a.size).reshape(a.shape) == a.size - 1),
    "complex": lambda a: a * 1j,
    "text": with_entry("red"), "missing": with_entry(None), "times": lambda a: a.astype("datetime64[s]"),
    "ragged": lambda a: [[1.0, 2.0], [1.0]],
}


@pytest.mark.parametrize("name", [name for name, door in DOORS.items() if door.same])
def test_every_kind_of_array_has_the_value_of_the_plain_one(made, name):
    door = DOORS[name]
    right = jax.tree.leaves(door.call(made, door.plain))
    for kind, holder in SAME.items():
        found = jax.tree.leaves(door.call(made, holder(door.plain)))
        for a, b in zip(found, right, strict=True):
            np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-6, err_msg=kind)


@pytest.mark.parametrize("name", DOORS)
def test_what_is_no_array_of_numbers_is_refused_by_name(made, name):
    door = DOORS[name]
    for kind, holder in REFUSED.items():
        with pytest.raises((ValueError, TypeError)) as caught:
            door.call(made, holder(door.plain))
        words = str(caught.value)
        assert re.search(rf"\b{re.escape(door.argument)}", words), (kind, words)
        assert re.search("masked|missing|must hold real|rows differ", words), (kind, words)


INTO_JAX = [n for n, d in DOORS.items() if d.argument in ("x", "y", "mesh") and n not in ("Table x",)]


@pytest.mark.parametrize("name", INTO_JAX)
def test_values_that_float32_cannot_hold_are_refused_by_index(made, name):
    door = DOORS[name]
    with pytest.raises(ValueError, match=r"\b[a-z]+\[1(, 0)?\] is 1e\+39, which is infinite in float32"):
        door.call(made, np.where(door.plain == 1, 1e39, door.plain))


@pytest.mark.parametrize("name", ["predict x", "flow.loss y", "Posterior samples", "readout_posterior y"])
def test_integers_beyond_int32_are_the_numbers_they_are(made, name):
    door = DOORS[name]
    big = (door.plain * 3_000_000_000).astype(np.int64)
    np.testing.assert_allclose(np.asarray(door.call(made, big)), np.asarray(door.call(made, big.astype(float))))


def test_a_masked_target_is_not_fitted():
    y = np.ma.masked_equal(np.where(np.arange(6) == 0, -999.0, Y), -999.0)
    with pytest.raises(ValueError, match=r"y\[0\] is masked \(1 of 6"):
        brg.readout_posterior(NET, X, y, key=KEY)


def test_a_model_that_asks_for_columns_by_name_is_told_how_to_get_them():
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(0, 1))
        with numpyro.plate("data", len(x["a"])):
            numpyro.sample("y", dist.Normal(w * x["a"], 1.0), obs=y)

    table = pd.DataFrame({"a": Y, "b": Y})
    with pytest.raises(TypeError, match="pass a dict of columns"):
        brg.prior(model, table, key=KEY)
    assert brg.prior(model, {c: table[c] for c in table}, key=KEY, num_samples=4).samples["w"].shape == (4, 1)
