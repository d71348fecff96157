"""Runs of models that are not the package's own: masked data, and a likelihood from outside, through all files."""

import re
from dataclasses import dataclass

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import stats

import bayes_brg as brg

RNG = np.random.default_rng(1)
X, X_TEST = (RNG.normal(size=(10, 2)).astype(np.float32) for _ in range(2))
SEEN = np.arange(10) % 3 != 0
W = RNG.normal(size=(2, 10, 2)).astype(np.float32)


def masked(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    with handlers.mask(mask=x["seen"]):
        numpyro.sample("y", dist.Normal(x["x"] @ w, 0.7), obs=y)


@dataclass(frozen=True)
class Laplacian(brg.Likelihood):
    width: float = 1.0

    def distribution(self, phi):
        return dist.Laplace(phi, self.width).to_event(1)

    def fisher_root(self, phi):
        return jax.numpy.broadcast_to(jax.numpy.eye(phi.shape[-1]) / self.width, (*phi.shape, phi.shape[-1]))


NET = brg.mlp((), likelihood=Laplacian(0.4))


def draws(site, scale, shape):
    return lambda model, x, y, key, settings: brg.Posterior({site: scale * W.reshape(2, 10, *shape)},
                                                            {"independent": True})


def made(model, data, site, shape, path):
    experiment = brg.Experiment("foreign", lambda s: model, lambda s, k: data, None,
                                {"one": draws(site, 1.0, shape), "two": draws(site, 2.0, shape)},
                                flow={"cutoffs": [0, 0.3, 50.0]})
    return experiment, experiment.run(path, progress_bar=False)


def words(path):
    return re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_masked_data_are_in_no_average_of_a_run(tmp_path):
    """Targets of a thousand that the model masks; by hand, from the others alone."""
    y, y_test = (np.where(SEEN, x[:, 0] - x[:, 1], 1000.0) for x in (X, X_TEST))
    data = brg.Data({"x": X, "seen": SEEN}, y, {"x": X_TEST, "seen": SEEN}, y_test)
    experiment, run = made(masked, data, "w", (2,), tmp_path / "run")
    phi = np.einsum("cdk,nk->cdn", W.astype(float), X_TEST.astype(float)[SEEN])
    loss = np.mean((phi - y_test[SEEN]) ** 2, axis=-1)
    np.testing.assert_allclose(run.flow["loss"].sel(cutoff=0), loss, rtol=1e-5)
    density = np.log(stats.norm(phi, 0.7).pdf(y_test[SEEN]).reshape(20, -1).mean(0)).mean()
    text = words(brg.report(run, experiment=experiment))
    assert f"{density:.2f}" in text[text.index("log predictive density"):][:80] and "could not be made" not in text
    flows = [experiment.flow_of(run, m) for m in run.methods]
    held = run.inputs("x_test"), run.data["y_test"].values
    found = brg.compare(*flows, *held, num_permutations=99, cutoffs=[0.0], progress_bar=False).dataset
    np.testing.assert_allclose(found["log_predictive_density"][0, 0], density, rtol=1e-5)
    with pytest.raises(ValueError, match="does not say which of this package's likelihoods"):
        brg.compare(run, (run, "two"))  # the files know φ and not the mask


@pytest.mark.slow
def test_a_likelihood_from_outside_goes_through_the_files_of_a_run(tmp_path):
    y, y_test = (x[:, 0] - x[:, 1] for x in (X, X_TEST))
    experiment, run = made(NET, brg.Data(X, y, X_TEST, y_test), "w0", (2, 1), tmp_path / "run")
    again = brg.load_run(run.path)
    phi = np.einsum("cdk,nk->cdn", W.astype(float), X_TEST.astype(float))
    density = stats.laplace(phi, 0.4).pdf(y_test)
    np.testing.assert_allclose(again.flow["loss"].sel(cutoff=0), -np.log(density).mean(-1), rtol=1e-5)
    mixture = np.log(density.reshape(20, -1).mean(0)).mean()
    text = words(brg.report(again))
    assert f"{mixture:.2f}" in text[text.index("log predictive density"):][:80] and "could not be made" not in text
    stored = brg.compare(again, (again, "two"), num_permutations=99, cutoffs=[0.0], progress_bar=False).dataset
    np.testing.assert_allclose(stored["log_predictive_density"][0, 0], mixture, rtol=1e-5)


@pytest.mark.parametrize("name", ["y_mean", "y_scale"])
def test_columns_of_different_units_are_not_mixed(name):
    with pytest.raises(ValueError, match=f"{name} has 2 entries; it is one number for all target columns"):
        brg.Data(X, X, X_TEST, X_TEST, **{name: np.array([1.0, 300.0])})
