"""Numbers that floating point does not hold, or just holds: the function that meets them says so by name, or is right.

No NumPy warning escapes, and no figure is empty.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

import bayes_brg as brg
from bayes_brg import diagnostics, plots

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
RNG = np.random.default_rng(0)
PHI = RNG.normal(size=(4, 50, 3, 1))
PLAIN = PHI.reshape(-1, 3)
ONE = np.arange(50)[None, :, None, None] == 7
KINDS = {"1e200": PHI * 1e200, "1e80": PHI * 1e80, "1e-200": PHI * 1e-200, "an infinity": np.where(ONE, np.inf, PHI),
         "a NaN": np.where(ONE, np.nan, PHI), "far from 0": PHI + 1e12}
K = brg.cumulants(PLAIN, order=4)


def along(phi):
    return xr.DataArray(phi[None] * np.ones((3, 1, 1, 1, 1)), {"cutoff": [0, 0.1, 1.0]},
                        ("cutoff", "chain", "draw", "point", "output"))


FUNCTIONS = {
    "cumulants": lambda phi: brg.cumulants(phi.reshape(-1, 3), order=4).k4,
    "cumulants along a flow": lambda phi: brg.cumulants(along(phi), order=4).k2,
    "action": lambda phi: brg.action(K)(phi.reshape(-1, 3)),
    "edgeworth_pdf": lambda phi: brg.edgeworth_pdf(phi.reshape(-1, 3), K),
    "energy_distance": lambda phi: diagnostics.energy_distance(phi.reshape(-1, 3), PLAIN, key=jax.random.key(0),
                                                               num_permutations=19).value,
    "gaussian_wasserstein": lambda phi: diagnostics.gaussian_wasserstein(phi.reshape(-1, 3), PLAIN).value,
    "kolmogorov_smirnov": lambda phi: diagnostics.kolmogorov_smirnov(phi.reshape(-1, 3), PLAIN).p_value,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_right_or_refused_by_name(name, kind):
    """A number that is returned is finite; what is refused names phi and where."""
    phi = KINDS[kind]
    try:
        found = np.asarray(FUNCTIONS[name](phi))
    except ValueError as error:
        assert "phi" in str(error) and any(word in str(error) for word in ("index", "sample", "draw")), str(error)
    else:
        if name in ("action", "edgeworth_pdf") and kind in ("an infinity", "a NaN"):
            pytest.fail("a value was made of no value")
        assert np.isfinite(found).all()
        if kind == "far from 0" and name == "cumulants":
            np.testing.assert_allclose(found, K.k4, atol=1e-3)  # 1e12 leaves φ four digits


def test_small_fields_do_not_vanish():
    """Of 1e-40, fourth powers are 1e-160: still there. Of 1e-200 they are not."""
    np.testing.assert_allclose(brg.cumulants(PLAIN * 1e-30, order=4).k4 * 1e120, K.k4, rtol=1e-9)
    with pytest.raises(ValueError, match="phi moves by .*e-200 only .*scale the field"):
        brg.cumulants(PLAIN * 1e-200, order=4)


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_a_verdict_does_not_depend_on_units(scale):
    one, other = (brg.verdicts.gaussian(PHI[:, :, 0, 0] * s, independent=True) for s in (1.0, scale))
    assert one.text == other.text and one.holds


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_figures_of_draws_that_agree_are_not_empty(value):
    phi = along(PHI * 0 + value).isel(point=0, output=0)
    figure = plots.moments_along_flow(phi)
    for ax in figure.axes:
        low, high = ax.get_ylim()
        assert np.isfinite([low, high]).all() and any(len(line.get_ydata()) for line in ax.lines)
    assert "no critical scale" in str(brg.critical_scale(phi**2))


X = RNG.normal(size=(6, 2)).astype(np.float32)
Y = RNG.normal(size=6).astype(np.float32)


def linear(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


@pytest.fixture(scope="module")
def flow():
    posterior = brg.Posterior(samples={"w": RNG.normal(size=(2, 4, 2)).astype(np.float32)})
    metric = brg.fisher(linear, posterior, X, progress_bar=False)
    return brg.renormalize(linear, posterior, metric, cutoffs=[0.0, 0.5], key=jax.random.key(0))


def test_targets_in_the_wrong_units_are_told_by_each_function(flow):
    with pytest.warns(UserWarning, match="flow.loss: losses: 16 of 16 are not finite, the first inf at cutoff 0"):
        flow.loss(X, Y * 1e20, progress_bar=False)
    with pytest.warns(UserWarning, match="flow.log_predictive: log densities: .* are not finite, the first -inf"):
        flow.log_predictive(X, Y * 1e20)
    with pytest.warns(UserWarning, match="the log predictive density of .* is not finite"):
        diagnostics.scores(linear, flow.posterior, X, Y * 1e20)
    found = diagnostics.convergence(linear, flow.posterior, X, Y * 1e20, progress_bar=False)
    assert not found and "loss that is not finite" in found.reason


def test_outputs_that_overflow_are_told_by_each_function(flow):
    large = flow.posterior.replace(samples={"w": flow.posterior.samples["w"].at[0, 1].set(3e38)})
    with pytest.warns(UserWarning, match="predict: outputs: .* of 48 are not finite, the first .* at chain 0, draw 1"):
        brg.predict(linear, large, X * 10, progress_bar=False)
    lost = flow.posterior.replace(samples={"w": jnp.full((2, 4, 2), jnp.nan)})
    with pytest.raises(ValueError, match="'w' is not finite at chain 0, draw 0"):
        brg.fisher(linear, lost, X, progress_bar=False)
