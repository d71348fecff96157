"""models/cosnet.py in one and two dimensions, the sampled κ4 of a narrow cos-net, and results of a run's own."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import bayes_brg as brg
from bayes_brg import theory

pytestmark = pytest.mark.slow
MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module", params=[1, 2], ids=["d=1", "d=2"])
def run(request, tmp_path_factory):
    experiment = brg.load_experiment(MODELS / "cosnet.py")
    settings = {"dim": request.param, "num_members": 2000, "num_mesh": 6, "width": 32, "num_probe": 50}
    out = tmp_path_factory.mktemp("runs") / "cosnet"
    return experiment, experiment.run(out, settings, progress_bar=False)


def test_the_measured_covariance_is_the_free_field(run):
    # Sample covariances of 2000 members at 6 distances and every cutoff against C_d σ_w²(Λ) G_R(r), σ_w²(Λ) from the
    # exact posterior and not from the draws. Tolerance 4 standard errors; 25 cutoffs that share most of their draws and
    # distances that share a point count as a few dozen numbers: fails for less than 5e-3 of seeds in each dimension.
    _, run = run
    table = pd.read_csv(run.path / "cosnet.csv")
    r = np.linalg.norm(run.data["x_test"].values, axis=1)
    bare = theory.cosnet_covariance(r, dim=run.settings["dim"], mass=1.0, radius=4.0)
    phi = run.flow["phi"].values.astype(float).reshape(len(table), 2000, -1)[..., :6]
    z = phi - phi.mean(1, keepdims=True)
    products = z[..., :1] * z
    measured, error = products.mean(1) * 2000 / 1999, products.std(1) / np.sqrt(2000)
    assert (np.abs(measured - np.outer(table["weight_var"], bare)) < 4 * error).all()
    assert (np.abs(phi.mean(1)) < 4 * phi.std(1) / np.sqrt(2000)).all()
    # What the run reports of the same, of its spectrum by momentum shell, and of Σ w².
    assert (table.filter(regex="independent_worst") < 4).all().all()
    sigma = table["weight_var_independent"] - table["weight_var"]
    assert (np.abs(sigma) < 4 * table["weight_var_independent_se"]).all()
    # Readouts fitted to their own features have a mean and another covariance, until the readout is all prior.
    assert table["mean_fitted_worst"][0] > 20 and table["spectrum_fitted_worst"][0] > 20
    assert table.filter(regex="fitted_worst").iloc[-1].max() < 4
    # The two panels of a row are each other's transform where terms do not interfere (paired errors), and else not.
    assert table["transform_fitted_worst"][0] > 10


def test_effective_variance_mass_and_radius_end_at_the_prior(run):
    experiment, run = run
    table, dim = pd.read_csv(run.path / "cosnet.csv"), run.settings["dim"]
    assert table["cutoff"][0] == 0 and table["weight_var"][0] > 1.5
    assert table["weight_var"].iloc[-1] == pytest.approx(1.0, abs=1e-12)  # σ_w²(∞) = σ_w²
    assert table["radius"].iloc[-1] == pytest.approx(4.0, abs=1e-12)
    constant = theory.cosnet_normalization(dim, 4.0)
    np.testing.assert_allclose(table["mass_squared"], 1 / (constant * table["weight_var"]), rtol=1e-12)
    np.testing.assert_allclose(table["radius"], 4 * table["weight_var"] ** (-1 / dim), rtol=1e-12)
    flow = experiment.flow_of(run)
    np.testing.assert_allclose(flow.predict(run.data["x_test"].values[:2], cutoffs=flow.cutoffs[[3, -1]]),
                               run.flow["phi"].isel(cutoff=[3, -1], point=slice(2)), atol=1e-5)
    assert {"field", "mass_flow"} <= set(run.figures)


def test_every_measured_point_is_inside_its_axes(run):
    experiment, run = run
    flows = {method: experiment.flow_of(run, method) for method in ("independent", "fitted")}
    figure = experiment.extras(run, flows)["field"]
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert "points on the right,\nthe same (up to" in titles[0]
    assert "points on the right,\nnot the same, as terms interfere (up to" in titles[2]
    for ax in figure.axes:
        low, high = ax.get_ylim()
        points = np.concatenate([bars.lines[0].get_ydata() for bars in ax.containers])
        assert (low < points).all() and (points < high).all()


@pytest.mark.parametrize("dim", [1, 2])
def test_kappa4_of_a_sampled_cosnet(dim):
    # 200 000 networks of three units at four points. Tolerance 4 standard errors on 15 fourth cumulants (3 distinct
    # points and all multiplicities) and 6 covariances: fails for less than 2e-3 of keys.
    net = brg.cosnet(3, dim, 1.2, 3.0, 1.5)
    x = np.random.default_rng(dim).normal(size=(3, dim)).astype(np.float32)

    @jax.jit
    def draw(key):
        priors = net.priors(dim).items()
        return net.apply({s: d.sample(jax.random.fold_in(key, i)) for i, (s, d) in enumerate(priors)}, x)

    phi = np.asarray(jax.lax.map(draw, jax.random.split(jax.random.key(4), 200_000), batch_size=1000))[..., 0]
    k = brg.cumulants(phi, order=4)
    index = [(i, j, m, n) for i in range(3) for j in range(i, 3) for m in range(j, 3) for n in range(m, 3)]
    exact = theory.cosnet_kappa4(x[np.array(index)], mass=1.2, radius=3.0, width=3, weight_var=2.25)
    where = tuple(np.array(index).T)
    assert np.max(np.abs(k.k4[where] - exact) / k.sem.k4[where]) < 4
    assert (np.abs(exact) > 8 * k.sem.k4[where]).any()  # so that this test tests something
    distance = np.linalg.norm(x[:, None] - x, axis=-1)
    pairs = theory.cosnet_covariance(distance, dim=dim, mass=1.2, radius=3.0, weight_var=2.25)
    assert np.max(np.abs(k.k2 - pairs) / k.sem.k2) < 4


def tiny(extras):
    def data(settings, key):
        x = jax.random.normal(key, (8, 1))
        return brg.Data(x, x, x, x)

    return brg.Experiment(
        name="tiny", model=lambda s: brg.mlp(4), data=data, probe=lambda s, key: jnp.ones((3, 1)),
        infer={m: lambda model, x, y, key, s: brg.readout_posterior(model, x, y, key=key, num_samples=20)
               for m in ("one", "other")},
        extras=extras)


def test_a_run_keeps_the_figures_and_tables_of_its_extras(tmp_path):
    seen = []

    def extras(run, flows):
        seen.append(run.name)
        np.testing.assert_allclose(flows["other"].loss(run.data["x"].values, run.data["y"].values),
                                   run.flows["other"]["loss"], rtol=1e-5)
        figure = Figure()
        figure.subplots().plot(flows["one"].cutoffs)
        return {"mine": figure, "numbers": pd.DataFrame({"a": [1.5, 2.5]})}

    experiment = tiny(extras)
    run = experiment.run(tmp_path / "run", progress_bar=False)
    assert "mine" in run.figures and list(pd.read_csv(run.path / "numbers.csv")["a"]) == [1.5, 2.5]
    assert run.manifest["stages"]["extras"]["seconds"] >= 0
    experiment.run(tmp_path / "run", progress_bar=False)
    assert seen == ["tiny"]  # a finished run is read, not made again
    with pytest.raises(ValueError, match="no method 'third'; its methods are one, other"):
        experiment.flow_of(run, "third")
    with pytest.raises(ValueError, match="is a run of 'tiny', not of 'other'"):
        dataclasses.replace(experiment, name="other").flow_of(run)


def test_extras_that_are_wrong_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"extras of experiment 'tiny' must be a function of \(run, flows\), got dict"):
        tiny({})
    with pytest.raises(TypeError, match="extras: 'answer' must be a Figure or a DataFrame, got int"):
        tiny(lambda run, flows: {"answer": 42}).run(tmp_path / "run", progress_bar=False)
