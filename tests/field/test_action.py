"""Edgeworth densities and actions against enumerated pairings, quadrature, and closed forms."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from oracles_fields import covariance, hermite_contraction, outer, phi4, symmetric
from scipy import stats

from bayes_brg.field import symmetric_tensors
from bayes_brg.field.action import Action
from bayes_brg.field.correlators import cumulants
from bayes_brg.field.couplings import action, bias_share, running_couplings
from bayes_brg.field.cumulants import Cumulants
from bayes_brg.field.edgeworth import edgeworth_logpdf, edgeworth_marginal, edgeworth_pdf, edgeworth_report


def random_theory(seed, num_points, scale=0.1, even=False):
    rng = np.random.default_rng(seed)
    return Cumulants(
        mean=rng.normal(size=num_points),
        k2=covariance(rng, num_points),
        k3=None if even else symmetric(rng, num_points, 3, scale),
        k4=symmetric(rng, num_points, 4, scale),
        k6=symmetric(rng, num_points, 6, scale) if even else None,
    )


def gamma_theory(shape):
    root = np.sqrt(shape)
    return Cumulants(k2=np.ones((1, 1)), k3=np.full((1,) * 3, 2 / root), k4=np.full((1,) * 4, 6 / shape))


def gamma_error(shape, order):
    x = np.linspace(-4, 5, 4001)
    exact = stats.gamma.pdf(x * np.sqrt(shape) + shape, shape) * np.sqrt(shape)
    return np.abs(edgeworth_pdf(x[:, None], gamma_theory(shape), order) - exact).max()


def one_site(coupling):
    _, log_z, k2, k4, k6 = phi4(1, coupling)
    return Cumulants(k2=k2, k4=k4, k6=k6), log_z


# --- Edgeworth


def test_gamma_table():
    for order, error, at_one in (
        (0, 2.799093e-2, 0.2419707245),
        (1, 2.436253e-3, 0.2191575058),
        (2, 4.660027e-4, 0.2210395004),
    ):
        assert gamma_error(50, order) == pytest.approx(error, rel=3e-7)
        assert edgeworth_pdf(np.array([1.0]), gamma_theory(50), order) == pytest.approx(at_one, abs=6e-11)


@pytest.mark.parametrize(("order", "power"), [(0, 0.5), (1, 1.0), (2, 1.5)])
def test_edgeworth_converges_at_its_order(order, power):
    errors = [gamma_error(shape, order) for shape in (400, 1600, 6400)]
    slopes = -np.diff(np.log(errors)) / np.log(4)
    assert slopes == pytest.approx(power, abs=0.05)


@pytest.mark.parametrize("num_points", [1, 2, 3])
def test_edgeworth_against_enumerated_pairings(num_points):
    k = random_theory(num_points, num_points)
    precision = np.linalg.inv(k.k2)
    for phi in np.random.default_rng(0).normal(size=(2, num_points)):
        z = phi - k.mean
        h3 = hermite_contraction(k.k3, z, precision)
        h4 = hermite_contraction(k.k4, z, precision)
        h6 = hermite_contraction(outer(k.k3, k.k3), z, precision)
        gaussian = stats.multivariate_normal(k.mean, k.k2).pdf(phi)
        assert edgeworth_pdf(phi, k, 0) == pytest.approx(gaussian, rel=1e-12)
        assert edgeworth_pdf(phi, k, 1) == pytest.approx(gaussian * (1 + h3 / 6), rel=1e-11)
        assert edgeworth_pdf(phi, k, 2) == pytest.approx(
            gaussian * (1 + h3 / 6 + h4 / 24 + h6 / 72), rel=1e-11
        )


def test_marginal_is_the_expansion_of_the_marginal():
    """Integrating the joint expansion over one point leaves the expansion with the other's cumulants."""
    k = random_theory(5, 2)
    joint = edgeworth_marginal(k, [0, 1], num=301, width=9.0)
    step = float(joint.phi2[1] - joint.phi2[0])
    one = edgeworth_marginal(k, 0, num=301, width=9.0)
    np.testing.assert_allclose(joint.sum("phi2") * step, one, atol=1e-10)
    assert float(joint.sum()) * step * float(joint.phi[1] - joint.phi[0]) == pytest.approx(1, abs=1e-9)


def test_negative_regions():
    k = Cumulants(
        k2=np.array([[4.0]]), mean=np.array([1.0]), k3=np.full((1,) * 3, 8 * 0.9), k4=np.zeros((1,) * 4)
    )
    report = edgeworth_report(k, 1, key=jax.random.key(0), num_draws=4000)
    (low, high) = report.intervals[0][0]
    assert low == -np.inf and len(report.intervals[0]) == 1
    assert edgeworth_pdf(np.array([high]), k, 1) == pytest.approx(0, abs=1e-12)
    assert np.isnan(edgeworth_logpdf(np.array([high - 0.1]), k, 1))
    assert edgeworth_logpdf(np.array([high + 0.1]), k, 1) == pytest.approx(
        np.log(edgeworth_pdf(np.array([high + 0.1]), k, 1))
    )
    grid = np.linspace(-20, high, 200_001)
    mass = -edgeworth_pdf(grid[:, None], k, 1).sum() * (grid[1] - grid[0])
    assert report.negative_mass[0] == pytest.approx(mass, rel=1e-4)
    expected = stats.norm.cdf((high - 1) / 2)
    assert abs(report.fraction - expected) < 4 * report.fraction_sem  # fails for 1 key in 16,000
    assert edgeworth_report(gamma_theory(50), 2, phi=np.zeros((3, 1))).intervals == ((),)


def test_edgeworth_in_jax_and_numpy_agree(x64):
    k = random_theory(6, 3)
    phi = np.random.default_rng(1).normal(size=(4, 5, 3))
    host = edgeworth_pdf(phi, k)
    assert isinstance(host, np.ndarray) and host.shape == (4, 5)
    traced = jax.jit(edgeworth_pdf, static_argnames="order")(jnp.asarray(phi), k)
    np.testing.assert_allclose(traced, host, rtol=1e-11)
    slope = jax.grad(lambda p: edgeworth_logpdf(p, k))(jnp.asarray(k.mean + 0.1))
    step = np.array([1e-5, 0, 0])
    change = edgeworth_logpdf(k.mean + 0.1 + step, k) - edgeworth_logpdf(k.mean + 0.1 - step, k)
    assert slope[0] == pytest.approx(change / 2e-5, rel=1e-6)


# --- the action


@pytest.mark.parametrize("num_points", [1, 2, 3])
def test_action_is_minus_the_log_of_the_expansion(num_points):
    """With k3 of order e and k4 of order e^2, -log p to order e^2 is exactly the coupling polynomial."""
    k = random_theory(10 + num_points, num_points)
    precision = np.linalg.inv(k.k2)
    s = action(k)
    for phi in np.random.default_rng(2).normal(size=(3, num_points)):
        z = phi - k.mean
        h3 = hermite_contraction(k.k3, z, precision)
        h4 = hermite_contraction(k.k4, z, precision)
        h33 = hermite_contraction(outer(k.k3, k.k3), z, precision)
        free = -stats.multivariate_normal(k.mean, k.k2).logpdf(phi)
        assert action(k, 0)(phi) == pytest.approx(free, rel=1e-12)
        assert action(k, 1)(phi) == pytest.approx(free - h3 / 6, rel=1e-11)
        assert s(phi) == pytest.approx(free - (h3 / 6 + h4 / 24 + h33 / 72 - h3**2 / 72), rel=1e-10)


@pytest.mark.parametrize("num_points", [1, 2])
def test_next_order_is_minus_the_log_of_the_expansion(num_points):
    """With k4 of order e and k6 of order e^2, to order e^2, constant included."""
    k = random_theory(20 + num_points, num_points, even=True)
    precision = np.linalg.inv(k.k2)
    s = action(k, "next")
    for phi in np.random.default_rng(3).normal(size=(2, num_points)):
        z = phi - k.mean
        h4 = hermite_contraction(k.k4, z, precision)
        h6 = hermite_contraction(k.k6, z, precision)
        h44 = hermite_contraction(outer(k.k4, k.k4), z, precision)
        free = -stats.multivariate_normal(k.mean, k.k2).logpdf(phi)
        assert s(phi) == pytest.approx(free - (h4 / 24 + h6 / 720 + h44 / 1152 - h4**2 / 1152), rel=1e-10)


def test_one_site_table():
    k, _ = one_site(0.01)
    assert k.k2.item() == pytest.approx(0.995065328205, abs=2e-12)
    assert k.k4.item() == pytest.approx(-9.661945200e-3, abs=2e-12)
    s = action(k)
    assert s.quadratic.item() == pytest.approx(1.000055941466, abs=2e-12)
    assert s.quartic.item() == pytest.approx(0.009855035516, abs=2e-12)
    s = action(one_site(0.02)[0])
    assert s.quadratic.item() == pytest.approx(1.000214985448, abs=2e-12)
    assert s.quartic.item() == pytest.approx(0.019438719993, abs=2e-12)


@pytest.mark.parametrize("num_sites", [1, 2, 3])
@pytest.mark.parametrize(("order", "power"), [(2, 2), ("next", 3)])
def test_lattice_phi4_couplings_at_their_order(num_sites, order, power):
    """S0, A and g4 put in are found again; errors fall as lambda^2, and as lambda^3 at the next order."""
    errors = []
    for coupling in (0.001, 0.002):
        a, log_z, k2, k4, k6 = phi4(num_sites, coupling)
        s = action(Cumulants(k2=k2, k4=k4, k6=k6), order)
        vertex = np.zeros((num_sites,) * 4)
        vertex[(np.arange(num_sites),) * 4] = coupling
        errors.append(
            [abs(s.constant - log_z), np.abs(s.quadratic - a).max(), np.abs(s.quartic - vertex).max()]
        )
    slopes = np.log2(np.divide(errors[1], errors[0]))
    assert slopes == pytest.approx(power, abs=0.05)
    assert errors[0][2] < 0.01 * 0.001 * (3 if order == 2 else 0.1)


def test_sextic_of_a_sextic_theory():
    """p ~ exp(-phi^2/2 - mu phi^6/720): with k4 of order mu and k6 of order mu, g6 = mu to leading order."""
    mu = 1e-4
    x = np.linspace(-9, 9, 4001)
    p = np.exp(-0.5 * x**2 - mu * x**6 / 720)
    p /= p.sum()
    m2, m4, m6 = ((p * x**n).sum() for n in (2, 4, 6))
    k4, k6 = m4 - 3 * m2**2, m6 - 15 * m4 * m2 + 30 * m2**3
    k = Cumulants(k2=np.full((1,) * 2, m2), k4=np.full((1,) * 4, k4), k6=np.full((1,) * 6, k6))
    s = action(k, "next")
    assert s.sextic.item() == pytest.approx(mu, rel=0.02)
    assert abs(s.quartic.item()) < 0.02 * mu


def test_about_zero_is_the_same_function():
    s = action(random_theory(7, 3))
    phi = np.random.default_rng(4).normal(size=(6, 3))
    moved = s.about_zero()
    np.testing.assert_allclose(moved(phi), s(phi), rtol=1e-12)
    assert (moved.mean == 0).all() and np.abs(moved.cubic - s.cubic).max() > 1e-3
    np.testing.assert_allclose(
        action(random_theory(7, 3), about="zero").quadratic, moved.quadratic, rtol=1e-12
    )


def test_action_is_differentiable_and_a_pytree(x64):
    s = action(random_theory(8, 2))
    phi = jnp.array([0.3, -0.2])
    z = phi - s.mean
    slope = s.linear + s.quadratic @ z + np.einsum("ijk,j,k", s.cubic, z, z) / 2
    slope = slope + np.einsum("ijkl,j,k,l", s.quartic, z, z, z) / 6
    np.testing.assert_allclose(jax.jit(jax.grad(lambda s, p: s(p), argnums=1))(s, phi), slope, rtol=1e-12)
    assert len(jax.tree_util.tree_leaves(s)) == 7
    traced = jax.jit(action)(random_theory(8, 2))
    np.testing.assert_allclose(traced.quartic, s.quartic, rtol=1e-11)


# --- from samples


def test_bias_of_the_inverse_and_its_correction():
    """E[A] = f K^(-1), f(T) = (T-1)/(T-M-2), for Gaussian samples: +23 % here; corrected, exactly K^(-1).

    Both within 4 standard errors, which fails for 1 seed in 8000. The plain jackknife, T f(T) - (T-1) f(T-1), would be
    6 % too low.
    """
    num_samples, num_points = 60, 10
    rng = np.random.default_rng(5)
    root = np.linalg.cholesky(covariance(rng, num_points))
    precision = np.linalg.inv(root @ root.T)
    raw, corrected = [], []
    for _ in range(300):
        k = cumulants(rng.normal(size=(num_samples, num_points)) @ root.T, order=2, num_blocks=num_samples)
        s = action(k)
        corrected.append(np.trace(s.quadratic @ root @ root.T) / num_points)
        raw.append(np.trace((s.quadratic + s.bias.quadratic) @ root @ root.T) / num_points)
    np.testing.assert_allclose(s.quadratic + s.bias.quadratic, np.linalg.inv(k.k2), rtol=1e-9)
    assert np.linalg.inv(precision) == pytest.approx(root @ root.T)

    def factor(t):
        return (t - 1) / (t - num_points - 2)

    for found, expected in ((raw, factor(num_samples)), (corrected, 1.0)):
        sem = np.std(found, ddof=1) / np.sqrt(len(found))
        assert sem < 0.01 and abs(np.mean(found) - expected) < 4 * sem


@pytest.mark.parametrize(("num_samples", "num_points", "num_blocks", "zero_mean"), [
    (60, 10, 20, False), (40, 6, 40, True), (30, 4, 10, True)])
def test_bias_correction_of_the_inverse_is_exact(num_samples, num_points, num_blocks, zero_mean):
    """With the exact means of the estimates, f K^(-1) from T draws and from T - b, in place of the estimates."""
    known = 0 if zero_mean else 1  # f = (T-1)/(T-M-2), or T/(T-M-1) about a known mean

    def factor(t):
        return (t - known) / (t - num_points - 1 - known)

    x = np.random.default_rng(0).normal(size=(num_samples, num_points))
    share = bias_share(cumulants(x, order=2, num_blocks=num_blocks, zero_mean=zero_mean))
    left = num_samples - num_samples // num_blocks
    bias = (num_blocks - 1) * (factor(left) - factor(num_samples))
    assert factor(num_samples) - share * bias == pytest.approx(1, abs=1e-12)


def test_too_few_draws_for_a_jackknife_are_said():
    x = np.random.default_rng(1).normal(size=(11, 10))
    with pytest.warns(UserWarning, match="near-singular without one block of draws"):
        s = action(cumulants(x, order=2))  # ten draws span nine directions
    assert s.ridge > 0 and np.isfinite(s.sem.quadratic).all()
    with pytest.warns(UserWarning, match="no standard errors.*more draws"):
        few = action(cumulants(x[:4, :1]))  # three draws have no fourth cumulant
    assert few.sem is None and np.isfinite(few.quartic).all()


def test_lower_orders_do_not_pay_for_higher_cumulants():
    x = np.random.default_rng(2).gamma(2.0, size=(400, 3))
    k = cumulants(x)
    for order in (0, 1):
        less, whole = action(cumulants(x, max(order + 2, 2)), order), action(k, order)
        np.testing.assert_allclose(whole.quadratic, less.quadratic, rtol=1e-9)
        np.testing.assert_allclose(whole.sem.quadratic, less.sem.quadratic, rtol=1e-7)
    short = k.up_to(2)
    assert short.k3 is None and short.sem.k4 is None and set(short.blocks.sums) == {1, 2} and k.k4 is not None


@pytest.mark.parametrize("order", [2, "next"])
def test_many_fields_are_evaluated_in_chunks(monkeypatch, order):
    k = random_theory(3, 3, even=order == "next")
    phi = np.random.default_rng(3).normal(size=(4, 7, 3))
    whole, density = action(k, order)(phi), edgeworth_pdf(phi, k)
    monkeypatch.setattr(symmetric_tensors, "_BUFFER", 60)
    np.testing.assert_allclose(action(k, order)(phi), whole, rtol=1e-14)
    np.testing.assert_allclose(edgeworth_pdf(phi, k), density, rtol=1e-13)


def test_couplings_of_a_known_theory_within_their_errors():
    """lambda phi^4 on one site, drawn by rejection: 40 estimates of A and g4 against their quoted errors.

    The mean square pull is 1 with s.d. .23: outside .4 to 1.9 for 1 seed in 100.
    """
    rng = np.random.default_rng(6)
    coupling, pulls = 0.3, []
    truth = action(one_site(coupling)[0])
    for _ in range(40):
        x = rng.normal(size=60_000)
        x = x[rng.uniform(size=x.size) < np.exp(-coupling * x**4 / 24)][:20_000]
        s = action(cumulants(x[:, None], zero_mean=True), even=True)
        pulls.append(
            [
                (s.quadratic.item() - truth.quadratic.item()) / s.sem.quadratic.item(),
                (s.quartic.item() - truth.quartic.item()) / s.sem.quartic.item(),
            ]
        )
    square = np.mean(np.square(pulls), axis=0)
    assert ((0.4 < square) & (square < 1.9)).all(), square


def test_next_order_from_samples():
    """One site, coupling .1, 4e5 draws: within 3 standard errors plus the remainder; error under 20 %."""
    rng = np.random.default_rng(7)
    coupling = 0.1
    x = rng.normal(size=(450_000, 1))
    x = x[rng.uniform(size=len(x)) < np.exp(-coupling * x[:, 0] ** 4 / 24)][:400_000]
    s = action(cumulants(x, 6, zero_mean=True), "next")
    remainder = abs(action(one_site(coupling)[0], "next").quartic.item() - coupling)
    assert s.sem.quartic.item() < 0.2 * coupling and remainder < 0.06 * coupling
    assert abs(s.quartic.item() - coupling) < 3 * s.sem.quartic.item() + remainder
    assert s.sextic.shape == (1,) * 6 and s.sem.sextic.item() > 0


def test_near_singular_covariance_is_regularised_and_said():
    x = np.random.default_rng(8).normal(size=(500, 2))
    x = np.column_stack([x, x[:, 0] + 1e-7 * x[:, 1]])
    with pytest.warns(UserWarning, match="near-singular .condition number .* ridge of"):
        s = action(cumulants(x))
    assert np.linalg.cond(cumulants(x).k2 + s.ridge * np.eye(3)) < 1e8
    worst = np.linalg.cond(cumulants(x).replicates().k2 + s.ridge * np.eye(3)).max()
    assert worst == pytest.approx(1e8, rel=1e-4)
    noisy = x + 0.1 * np.random.default_rng(9).normal(size=(500, 3))
    assert action(cumulants(noisy)).ridge == 0
    given = action(cumulants(x), 0, ridge=0.5, bias_correction=False)
    np.testing.assert_allclose(given.quadratic, np.linalg.inv(cumulants(x).k2 + 0.5 * np.eye(3)), rtol=1e-9)


def test_ridge_is_independent_white_noise():
    """White noise adds its variance to k2 and nothing to higher cumulants."""
    k = random_theory(9, 2)
    noisy = Cumulants(mean=k.mean, k2=k.k2 + 0.3 * np.eye(2), k3=k.k3, k4=k.k4)
    a, b = action(k, ridge=0.3), action(noisy)
    np.testing.assert_allclose(a.quartic, b.quartic, rtol=1e-12)
    assert a.constant == pytest.approx(b.constant)


# --- along a flow


@pytest.fixture(scope="module")
def flow_cumulants():
    rng = np.random.default_rng(10)
    x = rng.normal(size=(3, 4, 250, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
    x = x + np.array([0.0, 0.1, 0.3])[:, None, None, None] * x**2
    return cumulants(
        xr.DataArray(x, dims=("cutoff", "chain", "draw", "point"), coords={"cutoff": [0.0, 0.5, 2.0]})
    )


def test_action_along_a_flow(flow_cumulants):
    s = action(flow_cumulants)
    assert s.quartic.shape == (3, 2, 2, 2, 2) and s.sem.cubic.shape == (3, 2, 2, 2)
    np.testing.assert_array_equal(s.cutoff, [0.0, 0.5, 2.0])
    for i in range(3):
        alone = action(flow_cumulants[i])
        np.testing.assert_allclose(s[i].quartic, alone.quartic)
        np.testing.assert_allclose(s[i].sem.linear, alone.sem.linear)
        assert s[i](np.zeros(2)) == pytest.approx(alone(np.zeros(2)))


def test_running_couplings(flow_cumulants):
    table = running_couplings(flow_cumulants)
    s = action(flow_cumulants)
    assert dict(table.sizes) == {"cutoff": 3, "point": 2, "point2": 2}
    i = np.arange(2)
    np.testing.assert_allclose(table.quartic, s.quartic[:, i, i, i, i])
    np.testing.assert_allclose(table.quartic_sem, s.sem.quartic[:, i, i, i, i])
    np.testing.assert_allclose(table.quadratic_sem, s.sem.quadratic)
    np.testing.assert_allclose(table.mass, s.quadratic.sum(-1))
    exact = Cumulants(k2=4 * np.eye(1), k3=np.full((1,) * 3, 0.8), k4=np.full((1,) * 4, 3.2))
    alone = running_couplings(exact)
    assert alone.kurtosis.item() == pytest.approx(0.2) and alone.skewness.item() == pytest.approx(0.1)
    scaled = Cumulants(k2=exact.k2 * 9, k3=exact.k3 * 27, k4=exact.k4 * 81)
    for name in ("effective_quartic", "effective_cubic", "kurtosis", "skewness"):
        assert running_couplings(scaled)[name].item() == pytest.approx(alone[name].item())
    assert "quartic_sem" not in alone


def test_changes_along_a_flow_have_paired_errors():
    """A field that keeps its draws from scale to scale: over 200 samples of 400 draws the quoted error of the change
    is its scatter (the root mean square of 200 is known to 5 %, the jackknife of 64 blocks to 1 % on average; 4
    standard errors allowed), and well below that of two independent terms."""
    changes, quoted, unpaired = [], [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        z, extra = rng.normal(size=(2, 400, 1))
        phi = xr.DataArray(np.stack([z, 1.1 * z + 0.2 * extra]), dims=("cutoff", "sample", "point"),
                           coords={"cutoff": [0.0, 1.0]})
        table = running_couplings(cumulants(phi, order=2))
        one = table.isel(cutoff=1, point=0)
        changes.append(float(one["variance_change"]))
        quoted.append(float(one["variance_change_sem"]))
        unpaired.append(np.hypot(*table["variance_sem"].values[:, 0]))
    first = table.isel(cutoff=0, point=0)
    assert first["mass_change"] == 0 and first["mass_change_sem"] == 0
    assert float(one["variance_change"]) == pytest.approx(float(one["variance"] - first["variance"]))
    assert np.sqrt(np.mean(np.square(quoted))) == pytest.approx(np.std(changes), rel=0.2)
    assert np.mean(changes) == pytest.approx(0.25, abs=4 * np.std(changes) / np.sqrt(200))
    assert np.mean(quoted) < 0.5 * np.mean(unpaired)
    single = running_couplings(cumulants(phi.isel(cutoff=1, drop=True), order=2))
    assert "variance_change" not in single


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e200, np.inf, np.nan])
def test_densities_far_out_are_named(value):
    k = Cumulants(k2=np.eye(2), k3=np.zeros((2,) * 3), k4=np.full((2,) * 4, 0.1))
    for density in (edgeworth_pdf, edgeworth_logpdf):
        with pytest.raises(ValueError, match=r"at index \(1,\): not finite, or so many"):
            density(np.array([[0.0, 1.0], [0.5, value]]), k)
    assert edgeworth_pdf(np.array([40.0, 0.0]), k) == 0


def test_couplings_that_leave_float64_are_refused():
    with pytest.raises(ValueError, match=r"coupling of the action leaves float64: k2 is up to 1e-160; scale the field"):
        action(Cumulants(k2=1e-160 * np.eye(1), k4=np.ones((1,) * 4)))


# --- what is refused


GOOD = random_theory(30, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: action(np.zeros((5, 2))), "pass cumulants"),
        (lambda: action(GOOD, 3), "order is 3"),
        (lambda: action(GOOD, "next"), r"k6 is missing.*order=6"),
        (lambda: action(GOOD, about="here"), "about is 'here'"),
        (lambda: action(GOOD, ridge=-1.0), "ridge is -1.0"),
        (lambda: action(Cumulants(k2=-np.eye(2)), 0), "not a covariance"),
        (lambda: action(Cumulants(k2=np.diag([1.0, np.nan])), 0), r"k2 is nan at \(1, 1\)"),
        (lambda: action(Cumulants(k2=np.array([[1, 0.2], [0, 1]])), 0), "not symmetric"),
        (lambda: action(Cumulants(k2=np.eye(2), k4=np.zeros((2, 2, 2)))), r"k4 has shape \(2, 2, 2\)"),
        (lambda: action(GOOD)(np.zeros(3)), "the 2 points"),
        (lambda: action(GOOD)[0], "no cutoff axis"),
        (lambda: edgeworth_pdf(np.zeros(3), GOOD), "the 2 points"),
        (lambda: edgeworth_pdf(np.zeros(2), GOOD, 3), "order is 3"),
        (lambda: edgeworth_pdf(np.zeros(2), Cumulants(k2=np.eye(2))), "order=4"),
        (lambda: edgeworth_pdf(np.zeros(2), Cumulants(k2=np.ones((2, 2))), 0), "not positive definite"),
        (lambda: edgeworth_report(GOOD), "key="),
        (lambda: edgeworth_marginal(random_theory(1, 3), [0, 1, 2]), "one or two points"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_estimate_without_error_does_not_contradict_a_symmetry():
    """Replicates of a jackknife are estimates: their third cumulants are never exactly zero."""
    k = cumulants(np.random.default_rng(11).normal(size=(500, 1)), 6, zero_mean=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        k.jackknife(lambda part: {"g4": action(part, "next").quartic})
    skewed = cumulants(np.random.default_rng(12).gamma(1.0, size=(4000, 1)) - 1, 6, zero_mean=True)
    with pytest.warns(UserWarning, match="taken as even"):
        action(skewed, 2, even=True, relative_to=skewed)


def test_odd_cumulants_in_an_even_theory_warn():
    with pytest.warns(UserWarning, match="taken as even"):
        s = action(GOOD, even=True)
    assert isinstance(s, Action) and (s.cubic == 0).all() and (s.linear == 0).all()
