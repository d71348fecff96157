"""A kind of metric from outside the package, in one file, against the exact eigenmodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayes_brg as brg
from bayes_brg.core.batching import map_draws
from bayes_brg.metric import spectrum_table
from bayes_brg.metric.geometry import draw_key, hold, ravel, unravel
from bayes_brg.metric.kinds import KINDS, Found, Kind

NET = brg.mlp((3,), activation="tanh", bias_std=0.7, likelihood=brg.gaussian(0.4))
X = np.random.default_rng(0).normal(size=(5, 2))
KEY = jax.random.key(2)


def dense_one(geometry, own, shared):
    """Eigenvalues and eigenvectors of the P × P matrix BᵀB."""
    held = hold((own, shared))
    rows = geometry.rows(held.params, held.data.numbered(), draw_key(held), geometry.sites)
    if held.scale is not None:
        rows = {s: r * held.scale[s] for s, r in rows.items()}
    b = jnp.concatenate([rows[s].reshape(-1, geometry.size((s,))) for s in geometry.sites], axis=1)
    values, vectors = jnp.linalg.eigh(b.T @ b / len(jax.tree.leaves(shared.data.x)[0]))
    return jnp.where(values > 1e-12 * values[-1], values, 0.0)[::-1], vectors[:, ::-1]


class Dense(Kind):
    name = "dense"

    def find(self, geometry, draws, shared, show):
        values, vectors = map_draws(dense_one, (geometry,), draws, (shared,))
        host = np.asarray(values)
        return Found((values, vectors), np.isfinite(host).all(1), host, np.zeros(len(host)))

    def spectrum(self, geometry, held):
        return held.modes[0]

    def to_modes(self, geometry, held, delta):
        if held.scale is not None:
            delta = {s: v / held.scale[s] for s, v in delta.items()}
        return held.modes[1].T @ ravel(delta, geometry.sites)

    def from_modes(self, geometry, held, modes):
        delta = unravel(held.modes[1] @ modes, geometry.shapes())
        return delta if held.scale is None else {s: v * held.scale[s] for s, v in delta.items()}

    def scaled(self, modes, factor):
        return modes[0] * factor, modes[1]


@pytest.fixture(scope="module")
def post():
    with jax.enable_x64(True):
        return brg.prior(NET, X, key=jax.random.key(0), num_samples=4)


COMBINATIONS = [pytest.param(at, whiten, marks=pytest.mark.slow) for at in ("draw", "mean") for whiten in (False, True)
                if (at, whiten) != ("mean", True)]


@pytest.mark.parametrize("at, whiten", [*COMBINATIONS, ("mean", True)])
def test_a_kind_from_outside(x64, post, at, whiten):
    """Products, table, amount of data and the flow, sharp and smooth, per draw and shared: to 1e-6 of kind="full"."""
    ours = brg.fisher(NET, post, X, kind=Dense(), at=at, whiten=whiten)
    full = brg.fisher(NET, post, X, kind="full", at=at, whiten=whiten)
    assert ours.kind == "dense" and not ours.geometry.entrywise
    count = full.eigenvalues.shape[-1]
    np.testing.assert_allclose(ours.eigenvalues[..., :count], full.eigenvalues, rtol=1e-8,
                               atol=1e-10 * np.max(full.eigenvalues))
    np.testing.assert_allclose(ours.total(7.0).values()[-5:], full.total(7.0).values()[-5:], rtol=1e-8)
    delta = {s: jnp.ones(shape) for s, shape in full.geometry.shapes().items()}
    for s, v in ours.matvec(delta).items():
        np.testing.assert_allclose(v, full.matvec(delta)[s], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.quadratic(delta), full.quadratic(delta), rtol=1e-6)
    np.testing.assert_allclose(ours.stiffness["w0"], full.stiffness["w0"], rtol=1e-10)
    assert spectrum_table(ours).attrs["kind"] == "dense"
    scales = np.r_[0.0, np.quantile(full.values(), [0.3, 0.7]) * 1.01]
    for rule in (brg.unlearning(5) if whiten else "sharp", lambda lam, cut: lam / (lam + cut)):
        flows = [brg.renormalize(NET, post, m, cutoffs=scales, key=KEY, regulator=rule) for m in (ours, full)]
        a, b = (flow.predict(X, progress_bar=False) for flow in flows)
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(flows[0].stiff_fraction, flows[1].stiff_fraction, atol=1e-12)
    one, other = (brg.renormalize(NET, post, m, cutoffs=scales, key=KEY).by_site()["w0"].predict(X)
                  for m in (ours, full))
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


def test_kinds_are_found_by_name_where_the_metric_is_made(post):
    assert set(KINDS) >= {"diagonal", "full", "block", "lowrank"}
    for name, make in KINDS.items():
        assert make(3).name == name and make(3) == make(3) and hash(make(3)) == hash(make(3))
    with pytest.raises(ValueError, match="did you mean 'diagonal'"):
        brg.fisher(NET, post, X, kind="diagnoal")
