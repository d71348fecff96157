"""Labels that are drawn for a metric: of the law whose density is given, as many as its scores need, and that fit."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import bayes_brg as brg
from bayes_brg.model.distributions import stable

RNG = np.random.default_rng(3)
X = RNG.normal(size=(6, 2)).astype(np.float32)
AT = {"w": jnp.array([0.3, -0.2])}
RATE = np.exp(X @ np.array([0.3, -0.2]))
LIMIT = 0.7


class Survival(dist.Distribution):
    """What is seen of an exponential time: min(time, limit), where the limit has a probability of its own."""

    arg_constraints = {"rate": constraints.positive}
    support = constraints.positive
    pytree_data_fields = ("rate", "limit")

    def __init__(self, rate, limit):
        self.rate, self.limit = rate, limit
        super().__init__(jnp.broadcast_shapes(jnp.shape(rate), jnp.shape(limit)))

    def sample(self, key, sample_shape=()):
        return jnp.minimum(jax.random.exponential(key, (*sample_shape, *self.batch_shape)) / self.rate, self.limit)

    def log_prob(self, value):
        seen = jnp.log(self.rate) - self.rate * value
        return jnp.where(value < self.limit, seen, -self.rate * self.limit)


class Survivors(Survival):
    """A survival function where a density belongs, with labels from the density."""

    def sample(self, key, sample_shape=()):
        return jax.random.exponential(key, (*sample_shape, *self.batch_shape)) / self.rate

    def log_prob(self, value):
        return -self.rate * value + 0 * self.limit


def model(law):
    def fn(x, y=None):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("y", law(jnp.exp(x["x"] @ w), x["limit"]), obs=y)
    return fn


DATA = {"x": X, "limit": np.full(6, LIMIT, np.float32)}


def fisher(law, x=DATA, estimator="exact", **options):
    return brg.fisher(model(law), None, x, at=AT, estimator=estimator, key=jax.random.key(1), progress_bar=False,
                      **options)


def test_a_censored_datum_says_less_than_one_that_is_seen():
    """E score² of min(time, limit) is 1 − e^{−rate·limit} for log-rate, by integration; of the time itself it is 1."""
    with pytest.warns(UserWarning, match="Monte-Carlo"):
        found = fisher(Survival, num_samples=4000)
    right = np.mean(X**2 * (1 - np.exp(-RATE * LIMIT))[:, None], axis=0)
    assert (np.abs(found.stiffness["w"] - right) < 4 * np.asarray(found.sem["w"])).all()
    assert (np.asarray(found.stiffness["w"]) < np.mean(X**2, axis=0)).all()


@pytest.mark.filterwarnings("ignore:.*Monte-Carlo")
def test_labels_of_another_law_are_refused():
    with pytest.raises(ValueError, match="labels drawn from the observed Survivors are not those of its density"):
        fisher(Survivors)


def test_numpyros_censored_laws_know_no_limits():
    def law(rate, limit):
        return dist.RightCensoredDistribution(dist.Exponential(rate), limit < 1)

    for estimator in ("exact", "montecarlo"):
        with pytest.raises(ValueError, match="6 of 6 probe inputs are censored.* not their limits"):
            fisher(law, estimator=estimator)
    found = fisher(law, DATA | {"limit": np.full(6, 2.0, np.float32)}).stiffness["w"]  # none is censored
    np.testing.assert_allclose(found, np.mean(X**2, axis=0), rtol=1e-4)
    observed = fisher(law, estimator="empirical", y=np.full(6, 2.0)).stiffness["w"]
    np.testing.assert_allclose(observed, np.mean((X * (2 * RATE)[:, None]) ** 2, axis=0), rtol=1e-4)


def test_far_limits_keep_their_digits():
    """NumPyro's log(1 − F) stops at the rounding of 1, 16 e-folds out."""
    from scipy import stats
    t = np.array([0.5, 3.0, 40.0], np.float32)
    laws = {dist.Exponential(1.3): stats.expon(scale=1 / 1.3), dist.Weibull(0.8, 1.5): stats.weibull_min(1.5, 0, 0.8),
            dist.Normal(0.2, 0.9): stats.norm(0.2, 0.9), dist.LogNormal(0.1, 0.3): stats.lognorm(0.3, 0, np.exp(0.1)),
            dist.Logistic(0.1, 0.6): stats.logistic(0.1, 0.6), dist.Cauchy(0.1, 0.6): stats.cauchy(0.1, 0.6),
            dist.Gumbel(0.1, 0.6): stats.gumbel_r(0.1, 0.6)}
    for base, right in laws.items():
        upper = stable(dist.RightCensoredDistribution(base, jnp.array(True)))
        np.testing.assert_allclose(upper.log_prob(t), right.logsf(t.astype(float)), rtol=1e-5, err_msg=str(base))
        lower = stable(dist.LeftCensoredDistribution(base, jnp.array(True)))
        np.testing.assert_allclose(lower.log_prob(t[:2]), right.logcdf(t[:2].astype(float)), rtol=1e-5, atol=1e-6)
        seen = stable(dist.RightCensoredDistribution(base, jnp.array(False)))
        np.testing.assert_allclose(seen.log_prob(t[:2]), right.logpdf(t[:2].astype(float)), rtol=1e-5, atol=1e-6)


def test_too_few_labels_for_their_tail_are_said_and_too_many_are_refused():
    def law(rate, limit):
        return dist.Weibull(rate, 0.4 * rate / rate + 0 * limit)

    with pytest.warns(UserWarning, match="of the observed Weibull have a long tail .*few of the 12 labels"):
        fisher(law, estimator="montecarlo", num_samples=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fisher(law, estimator="montecarlo", num_samples=4000)
    with pytest.raises(ValueError, match="num_samples=2000000000 labels .* need about .* GiB.*pass at most"):
        fisher(law, estimator="montecarlo", num_samples=2 * 10**9)


def test_limits_are_not_scored_as_values():
    """Of censored data the log density is known, by the survival function, and nothing that needs the value."""
    def law(rate, limit):
        return dist.RightCensoredDistribution(dist.Exponential(rate), limit < 1)

    draws = np.array([[[0.3, -0.2], [0.1, 0.4]]], np.float32)
    limit, y = np.where(np.arange(6) < 3, 0.5, 2.0).astype(np.float32), np.linspace(0.2, 1.5, 6, dtype=np.float32)
    rate = np.exp(X @ draws[0].T)
    density = np.where((limit < 1)[:, None], np.exp(-rate * y[:, None]), rate * np.exp(-rate * y[:, None]))
    with pytest.warns(UserWarning, match="3 of 6 targets are censored"):
        found = brg.diagnostics.scores(model(law), brg.Posterior({"w": draws}), {"x": X, "limit": limit}, y).dataset
    np.testing.assert_allclose(found["log_predictive_density"], np.log(density.mean(1)), rtol=1e-4)
    assert np.isnan(found["mean_crps"]) and np.isnan(found["coverage"]).all() and np.isnan(found["rmse"])
