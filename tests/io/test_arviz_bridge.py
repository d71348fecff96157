"""Posteriors and flows in ArviZ, whichever version is installed."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

import bayes_brg as brg
from bayes_brg.field.correlators import block_cumulants
from bayes_brg.io import arviz_bridge

CUTOFFS = [0.0, 0.01, 1.0, 1e9]


@pytest.fixture(scope="module")
def setup():
    model = brg.mlp((3,), activation="tanh")
    x = jax.random.normal(jax.random.key(0), (5, 2))
    posterior = brg.prior(model, x, key=jax.random.key(1), num_samples=80)
    flow = brg.renormalize(model, posterior, brg.fisher(model, posterior, x), cutoffs=CUTOFFS, key=jax.random.key(2))
    return model, x, posterior, flow


def test_posterior_round_trip(setup):
    _, _, posterior, _ = setup
    posterior = posterior.replace(trained=("w1",), method="mine")
    back = brg.from_arviz(brg.to_arviz(posterior))
    assert back.method == "mine" and back.trained == ("w1",)
    assert list(back.samples) == list(posterior.samples)
    for site, draws in posterior.samples.items():
        assert np.array_equal(back.samples[site], draws) and back.samples[site].dtype == draws.dtype
    assert back.stats["independent"] is True
    assert np.array_equal(back.stats["log_joint"], posterior.stats["log_joint"])


@pytest.mark.parametrize("site", ["nn/Dense_0.kernel", "a%2Fb", "draw", "cutoff", "phi"])
def test_awkward_site_names_survive(site):
    posterior = brg.Posterior({site: np.arange(12.0).reshape(2, 3, 2), "w": np.ones((2, 3))})
    idata = brg.to_arviz(posterior)
    assert "/" not in "".join(idata["posterior"].data_vars)
    assert list(brg.from_arviz(idata).samples) == [site, "w"]


def test_site_called_phi_beside_the_output():
    def model(x, y=None):
        phi = numpyro.sample("phi", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(phi * x[:, 0], 1).to_event(0), obs=y)

    x = np.array([[1.0], [2.0]])
    posterior = brg.prior(model, x, key=jax.random.key(0), num_samples=8)
    idata = brg.to_arviz(posterior, model, x)
    assert idata["posterior"]["phi"].dims == ("chain", "draw", "point", "output")
    np.testing.assert_allclose(idata["posterior"]["phi"].values[..., 1, 0], 2 * posterior.samples["phi"], rtol=1e-6)
    back = brg.from_arviz(idata)
    assert list(back.samples) == ["phi"] and back.samples["phi"].ndim == 2


def test_posterior_with_its_output(setup):
    model, x, posterior, _ = setup
    idata = brg.to_arviz(posterior, model, x, y=np.zeros(5))
    assert np.array_equal(idata["posterior"]["phi"].values, brg.predict(model, posterior, x))
    assert idata["observed_data"]["y"].shape == (5,)
    assert idata["sample_stats"]["log_joint"].dims == ("chain", "draw")


def test_arviz_summary_of_a_flow(setup):
    _, x, _, flow = setup
    idata = brg.to_arviz(flow, x=x, y=np.zeros(5))
    phi = idata["posterior"]["phi"]
    assert phi.dims == ("chain", "draw", "cutoff", "point", "output")
    assert np.array_equal(phi["cutoff"].values, CUTOFFS)
    az, _ = arviz_bridge._arviz()
    table = az.summary(idata, var_names=["phi"])
    assert len(table) == len(CUTOFFS) * 5
    assert {"mean", "sd", "ess_bulk", "r_hat"} <= set(table.columns)
    ours = arviz_bridge.summary(flow, x=x, y=np.zeros(5))
    assert len(ours) == len(CUTOFFS) * 6  # with the loss
    row = ours.loc["phi[0.01, 3, 0]"]
    draws = flow.predict(x).values[1, :, :, 3, 0]
    assert row["mean"] == pytest.approx(draws.mean(), rel=1e-5, abs=1e-7)
    assert row["sd"] == pytest.approx(draws.std(ddof=1), rel=1e-5)
    assert row["hdi_lower"] < row["mean"] < row["hdi_upper"]
    assert 20 < row["ess_bulk"] < 400 and 0.9 < row["r_hat"] < 1.2


def test_hdi_rhat_ess_have_one_shape_under_either_arviz():
    rng = np.random.default_rng(0)
    normal = xr.DataArray(rng.normal(size=(4, 500, 2)), dims=("chain", "draw", "point"), name="phi")
    shifted = normal + 3 * xr.DataArray(np.arange(4), dims="chain")
    assert float(brg_value(arviz_bridge.rhat(normal)).max()) < 1.02
    assert float(brg_value(arviz_bridge.rhat(shifted)).min()) > 1.5
    assert brg_value(arviz_bridge.ess(normal)).values == pytest.approx([2000, 2000], rel=0.25)
    assert float(brg_value(arviz_bridge.ess(shifted)).max()) < 20
    interval = brg_value(arviz_bridge.hdi(normal, 0.9))
    assert interval.dims == ("point", "bound") and list(interval.bound.values) == ["lower", "upper"]
    assert interval.values == pytest.approx(np.array([[-1.645, 1.645]] * 2), abs=0.2)


def brg_value(dataset):
    return dataset["phi"]


def test_from_numpyro_keeps_latents_and_knows_the_log_joint():
    def model(x, y=None):
        w = numpyro.sample("w", dist.HalfNormal(2.0))
        numpyro.deterministic("twice", 2 * w)
        numpyro.sample("y", dist.Normal(w * x[:, 0], 1), obs=y)

    x, y = np.ones((4, 1)), np.array([0.5, 1.0, 1.5, 0.7])
    mcmc = numpyro.infer.MCMC(numpyro.infer.NUTS(model), num_warmup=50, num_samples=20, num_chains=2,
                              chain_method="vectorized", progress_bar=False)
    with pytest.raises(ValueError, match="no draws"):
        brg.from_numpyro(mcmc)
    mcmc.run(jax.random.key(0), x, y)
    posterior = brg.from_numpyro(mcmc)
    assert list(posterior.samples) == ["w"] and posterior.samples["w"].shape == (2, 20)
    assert posterior.stats["diverging"].shape == (2, 20)
    w = np.asarray(posterior.samples["w"], float)
    by_hand = (np.log(2 / (2 * np.sqrt(2 * np.pi))) - w**2 / 8
               + (-0.5 * (y - w[..., None]) ** 2 - 0.5 * np.log(2 * np.pi)).sum(-1))
    np.testing.assert_allclose(posterior.stats["log_joint"], by_hand, rtol=1e-4)


def test_foreign_datasets():
    dataset = xr.Dataset({"a": (("draw", "chain", "k"), np.arange(24.0).reshape(4, 2, 3))})
    posterior = brg.from_arviz(dataset)
    assert posterior.samples["a"].shape == (2, 4, 3)
    assert posterior.samples["a"][1, 2, 0] == dataset["a"].values[2, 1, 0]


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda s: brg.to_arviz(np.zeros(3)), TypeError, "ndarray"),
    (lambda s: brg.to_arviz(s[3]), ValueError, "pass x="),
    (lambda s: brg.to_arviz(s[2], s[0]), ValueError, "both model and x"),
    (lambda s: brg.to_arviz(xr.Dataset({"a": 1})), ValueError, "'phi' and 'cutoff'"),
    (lambda s: brg.from_arviz({"a": 1}), TypeError, "dict"),
    (lambda s: brg.from_arviz(xr.Dataset({"a": ("chain", [1.0])})), ValueError, "'chain' and 'draw'"),
    (lambda s: brg.from_arviz(xr.DataTree()), ValueError, "no group 'posterior'"),
    (lambda s: arviz_bridge.rhat(np.zeros((4, 5))), TypeError, "ndarray"),
    (lambda s: arviz_bridge.ess(xr.DataArray(np.zeros(5), dims="draw")), ValueError, "'chain' and 'draw'"),
    (lambda s: arviz_bridge.hdi(xr.Dataset(), prob=94), ValueError, "between 0 and 1"),
    (lambda s: arviz_bridge.summary(s[2], var_names=["w9"]), ValueError, "no variable w9"),
    (lambda s: brg.to_arviz(brg.Posterior({"a": np.zeros((1, 2))}, {"info": {}})), TypeError, "stats.*info.*dict"),
])
def test_errors_say_what_is_wrong(setup, make, error, message):
    with pytest.raises(error, match=message):
        make(setup)


# -- cumulants ------------------------------------------------------------------------------------------------
def test_cumulants_of_a_flow_in_arviz(setup):
    _, x, _, flow = setup
    idata = brg.to_arviz(flow, x=x[:2], cumulants=4)
    group = idata["cumulants"]
    assert group["k3"].dims == ("chain", "draw", "cutoff", "point", "point2", "point3")
    assert np.array_equal(group["k3"]["cutoff"].values, CUTOFFS) and list(group["point"].values) == [0, 1]
    blocks = block_cumulants(flow.predict(x[:2]), 4)
    assert np.array_equal(group["k4"].values[1, 0], blocks.k4[:, 1, 0])
    az, _ = arviz_bridge._arviz()
    table = az.summary(idata, group="cumulants", var_names=["mean", "k2"])
    assert len(table) == len(CUTOFFS) * (2 + 4)
    same = arviz_bridge.summary(blocks)
    assert len(same) == len(CUTOFFS) * (2 + 4 + 8 + 16)
    assert same.loc["k2[0.01, 1, 0]", "mean"] == pytest.approx(blocks.k2[1, :, :, 1, 0].mean())
    assert len(az.summary(brg.to_arviz(blocks), var_names=["k2"])) == len(CUTOFFS) * 4


def test_the_error_of_a_cumulant_in_arviz_is_that_of_the_jackknife():
    """Correlated chains, AR(1) with coefficient .7; both errors are known to a fifth: within a factor 1.7."""
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(4, 4000, 1, 2))
    phi = np.empty_like(noise)
    phi[:, 0] = noise[:, 0]
    for i in range(1, 4000):
        phi[:, i] = 0.7 * phi[:, i - 1] + np.sqrt(1 - 0.49) * noise[:, i]
    k = brg.cumulants(phi)
    idata = brg.to_arviz(block_cumulants(phi))
    assert list(idata["posterior"]["point"].values) == ["0, 0", "0, 1"]
    table = arviz_bridge.summary(idata)
    for name, one, error in (("k2[0, 0, 0, 0]", k.k2[0, 0], k.sem.k2[0, 0]),
                             ("k4[" + ", ".join(["0, 1"] * 4) + "]", k.k4[1, 1, 1, 1], k.sem.k4[1, 1, 1, 1])):
        row = table.loc[name]
        assert error / 1.7 < row["mcse_mean"] < 1.7 * error
        assert abs(row["mean"] - one) < 3 * error


def test_cumulants_of_a_posterior_and_what_is_refused(setup, tmp_path):
    model, x, posterior, flow = setup
    idata = brg.to_arviz(posterior, model, x[:2], cumulants=2)
    assert idata["cumulants"]["k2"].dims == ("chain", "draw", "point", "point2")
    idata.to_netcdf(str(tmp_path / "cumulants.nc"))
    assert list(brg.from_arviz(idata).samples) == ["w0", "w1"]
    with pytest.raises(ValueError, match="pass model and x"):
        brg.to_arviz(posterior, cumulants=2)
    with pytest.raises(ValueError, match="block_cumulants"):
        brg.to_arviz(brg.cumulants(flow.predict(x), order=2))
    with pytest.raises(ValueError, match="nobody reads"):
        brg.to_arviz(block_cumulants(np.random.default_rng(0).normal(size=(100, 11))))
