"""NumPyro models as people write them × every step of the walk: each cell is right, or refused by name.

The oracle of a row is a list of SciPy laws, one a datum (and output), at given parameters. Everything that a step
returns follows from them without JAX: log densities, losses, scores, and the Fisher information as the mean squared
score, by quadrature over y.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from scipy import special, stats

import bayes_brg as brg
from bayes_brg.io import store

RNG = np.random.default_rng(5)
N = 7
X = RNG.normal(size=(N, 2))
NORMAL = stats.norm(0, 1)


def weights(shape=(2,)):
    return numpyro.sample("w", dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))


class Categorical:
    """A law over classes, as SciPy writes laws."""

    def __init__(self, logits):
        self.p = special.softmax(logits)

    def logpmf(self, y):
        return np.log(self.p[np.asarray(y, int)])

    def ppf(self, q):
        return np.searchsorted(np.cumsum(self.p) / self.p.sum(), q)


class Ordered:
    """Ordered logistic law: P(y ≤ k) = 1/(1 + exp(η − c_k))."""

    def __init__(self, eta, cuts):
        self.p = np.diff(np.r_[0.0, special.expit(np.asarray(cuts) - eta), 1.0])

    logpmf, ppf = Categorical.logpmf, Categorical.ppf


class ZeroInflated:
    def __init__(self, gate, rate):
        self.gate, self.base = gate, stats.poisson(rate)

    def logpmf(self, y):
        p = (1 - self.gate) * self.base.pmf(y)
        return np.log(np.where(np.asarray(y) == 0, p + self.gate, p))

    def ppf(self, q):
        return self.base.ppf(q)


class Censored:
    """What is seen of a Weibull time: itself below its limit, or that it lies beyond."""

    def __init__(self, scale, shape, limit):
        self.base, self.limit = stats.weibull_min(shape, scale=scale), limit


@dataclasses.dataclass(frozen=True)
class Row:
    """One model: how it is written, and what is right."""

    name: str
    model: Callable
    y: np.ndarray
    laws: Callable  # (theta, x) -> list over data of lists over outputs of SciPy laws
    phi: Callable | None = None  # (theta, x) -> (n, outputs)
    x: Any = dataclasses.field(default_factory=lambda: X)
    sites: dict = dataclasses.field(default_factory=lambda: {"w": ((2,), NORMAL)})  # shape and law of each entry
    squared: bool = False  # the loss is (y − φ)²
    weight: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(N))  # of a datum in the log density
    seen: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(N, bool))
    refused: dict = dataclasses.field(default_factory=dict)  # step -> what its message must say

    def theta(self, seed):
        rng = np.random.default_rng(seed)
        return {s: np.asarray(law.ppf(rng.uniform(0.2, 0.8, shape))) for s, (shape, law) in self.sites.items()}

    def log_likelihood(self, theta):
        y = np.reshape(self.y, (N, -1))
        return np.array([sum(log_density(law, y[i, c]) for c, law in enumerate(laws))
                         for i, laws in enumerate(self.laws(theta, self.x))])

    def log_prior(self, theta):
        return sum(np.sum(law.logpdf(theta[s])) for s, (_, law) in self.sites.items())

    def loss(self, theta):
        if self.squared:
            each = np.sum((np.reshape(self.y, (N, -1)) - self.phi(theta, self.x)) ** 2, axis=1)
        else:
            each = -self.log_likelihood(theta)
        return np.mean(each[self.seen])

    def fisher(self, theta):
        """Mean squared score of each parameter by central differences and quadrature over y."""
        grids = [[grid(law) for law in laws] for laws in self.laws(theta, self.x)]

        def scores(site, index, step=1e-5):
            def at(sign):
                moved = {s: v.copy() for s, v in theta.items()}
                moved[site][index] += sign * step
                return [[log_density(law, y) for law, (y, _) in zip(laws, row, strict=True)]
                        for laws, row in zip(self.laws(moved, self.x), grids, strict=True)]
            up, down = at(1), at(-1)
            return [[(u - d) / (2 * step) for u, d in zip(a, b, strict=True)] for a, b in zip(up, down, strict=True)]

        out = {s: np.zeros(shape) for s, (shape, _) in self.sites.items()}
        for s, total in out.items():
            for index in np.ndindex(total.shape):
                found = scores(s, index)
                each = np.array([sum(np.sum(p * g**2) for g, (_, p) in zip(gs, row, strict=True))
                                 for gs, row in zip(found, grids, strict=True)])
                total[index] = np.mean(self.weight * each)  # per probe input: a masked one says nothing
        return out


def log_density(law, y):
    return law.logpmf(y) if hasattr(law, "logpmf") and not hasattr(law, "logpdf") or is_discrete(law) else \
        law.logpdf(y)


def is_discrete(law):
    return isinstance(getattr(law, "dist", None), stats.rv_discrete) or isinstance(law, (Categorical, Ordered,
                                                                                         ZeroInflated))


RULE = np.r_[1.0, np.tile([4.0, 2.0], 20_000)[:-1], 1.0]


def grid(law):
    """Values of y and their weights: all of a discrete law, Simpson's rule on a continuous one."""
    if is_discrete(law):
        y = np.arange(0, int(law.ppf(1 - 1e-13)) + 3 if not isinstance(law, (Categorical, Ordered)) else len(law.p))
        return y, np.exp(law.logpmf(y))
    low, high = law.ppf(1e-14), law.ppf(1 - 1e-14)
    if law.support() == (0.0, np.inf):  # in log y, where a power of y near 0 is smooth
        t = np.linspace(np.log(low), np.log(high), 40_001)
        return np.exp(t), RULE * (t[1] - t[0]) / 3 * law.pdf(np.exp(t)) * np.exp(t)
    y = np.linspace(low, high, 40_001)
    return y, RULE * (y[1] - y[0]) / 3 * law.pdf(y)


def normal(mean, sd):
    return [[stats.norm(m, s)] for m, s in zip(np.ravel(mean), np.broadcast_to(sd, np.size(mean)), strict=True)]


# -- the models -----------------------------------------------------------------------------------------------
def linear(x, y=None):
    numpyro.sample("y", dist.Normal(x @ weights(), 0.7), obs=y)


def learned_noise(x, y=None):
    s = numpyro.sample("s", dist.Gamma(3.0, 2.0))
    numpyro.sample("y", dist.Normal(x @ weights(), s), obs=y)


def hierarchical(x, y=None):
    t = numpyro.sample("t", dist.Gamma(3.0, 2.0))
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(t * (x @ w), 0.7), obs=y)


def centred(x, y=None):
    numpyro.sample("y", dist.Normal((x - x.mean(0)) @ weights(), 0.7), obs=y)


def normalised(x, y=None):
    f = x @ weights()
    numpyro.sample("y", dist.Normal((f - f.mean()) / f.std(), 0.7), obs=y)


def noise_by_count(x, y=None):
    numpyro.sample("y", dist.Normal(x @ weights(), jnp.sqrt(1.0 * x.shape[0])), obs=y)


def scaled(x, y=None):
    w = weights()
    with handlers.scale(scale=10.0):
        numpyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)


def masked(x, y=None):
    w = weights()
    with handlers.mask(mask=x["seen"]):
        numpyro.sample("y", dist.Normal(x["x"] @ w, 0.7), obs=y)


def autoregressive(x, y=None):
    w = weights()

    def step(carry, inputs):
        x, y = inputs
        new = numpyro.sample("y", dist.Normal(x @ w + 0.5 * carry, 0.7), obs=y)
        return new, None
    scan(step, 0.0, (x, y))


def event_over_data(x, y=None):
    w = weights((2, 3))
    numpyro.sample("y", dist.Normal(x @ w, 0.7).to_event(2), obs=y)


def stray_phi(x, y=None):
    w = weights()
    numpyro.deterministic("phi", jnp.sum(w))
    numpyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)


def with_param(x, y=None):
    b = numpyro.param("b", jnp.array(0.3))
    numpyro.sample("y", dist.Normal(x @ weights() + b, 0.7), obs=y)


@dataclasses.dataclass
class Unhashable:
    noise: float

    def __call__(self, x, y=None):
        numpyro.sample("y", dist.Normal(x @ weights(), self.noise), obs=y)


def totals(x, y=None):
    w = weights((2, 3))
    numpyro.sample("y", dist.Multinomial(total_count=x["n"], logits=x["x"] @ w), obs=y)


def tuple_inputs(x, y=None):
    a, b = x
    numpyro.sample("y", dist.Normal(a @ weights() + b[:, 0] * b[:, 1] * b[:, 2], 0.7), obs=y)


def dict_inputs(x, y=None):
    numpyro.sample("y", dist.Normal(x["a"] @ weights() + x["offset"], 0.7), obs=y)


def local_latents(x, y=None):
    w = weights()
    with numpyro.plate("schools", x.shape[0]):
        e = numpyro.sample("e", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x @ w + e, 0.7), obs=y)


def subsampled(x, y=None):
    w = weights()
    with numpyro.plate("data", x.shape[0], subsample_size=3) as i:
        numpyro.sample("y", dist.Normal(x[i] @ w, 0.7), obs=None if y is None else y[i])


def factor_only(x, y=None):
    w = weights()
    if y is not None:
        numpyro.factor("likelihood", dist.Normal(x @ w, 0.7).log_prob(y).sum())


def broken(x, y=None):
    raise RuntimeError("no such file: weights.npz")


def discrete_latent(x, y=None):
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(x @ weights() + z, 0.7), obs=y)


def poisson(x, y=None):
    numpyro.sample("y", dist.Poisson(jnp.exp(x @ weights())), obs=y)


def negative_binomial(x, y=None):
    c = numpyro.sample("c", dist.Gamma(3.0, 2.0))
    numpyro.sample("y", dist.NegativeBinomial2(jnp.exp(x @ weights()), c), obs=y)


def zero_inflated(x, y=None):
    g = numpyro.sample("g", dist.Beta(2.0, 2.0))
    numpyro.sample("y", dist.ZeroInflatedPoisson(g, jnp.exp(x @ weights())), obs=y)


def beta(x, y=None):
    mean = jax.nn.sigmoid(x @ weights())
    numpyro.sample("y", dist.Beta(5 * mean, 5 * (1 - mean)), obs=y)


def gamma(x, y=None):
    a = numpyro.sample("a", dist.Gamma(3.0, 1.0))
    numpyro.sample("y", dist.Gamma(a, jnp.exp(x @ weights())), obs=y)


def weibull(x, y=None):
    k = numpyro.sample("k", dist.Gamma(3.0, 1.0))
    numpyro.sample("y", dist.Weibull(jnp.exp(x @ weights()), k), obs=y)


def student(x, y=None):
    numpyro.sample("y", dist.StudentT(5.0, x @ weights(), 0.7), obs=y)


def bernoulli(x, y=None):
    numpyro.sample("y", dist.Bernoulli(logits=x @ weights()), obs=y)


def softmax(x, y=None):
    numpyro.sample("y", dist.Categorical(logits=x @ weights((2, 3))), obs=y)


def ordered(x, y=None):
    numpyro.sample("y", dist.OrderedLogistic(x @ weights(), jnp.array([-1.0, 0.5])), obs=y)


def log_normal(x, y=None):
    flow = dist.TransformedDistribution(dist.Normal(x @ weights(), 0.7), dist.transforms.ExpTransform())
    numpyro.sample("y", flow, obs=y)


def truncated(x, y=None):
    numpyro.sample("y", dist.TruncatedNormal(x @ weights(), 0.7, low=0.0), obs=y)


def heteroscedastic(x, y=None):
    w, v = weights(), numpyro.sample("v", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, jnp.exp(x @ v)), obs=y)


SEEN = np.array([1, 1, 0, 1, 0, 1, 1], bool)
REAL = RNG.normal(size=N)
COUNTS = np.array([0, 1, 0, 3, 2, 1, 0])
GAMMA32, GAMMA31 = stats.gamma(3.0, scale=0.5), stats.gamma(3.0)
TOTALS = np.array([3, 1, 4, 2, 5, 2, 3])


def lin(theta, x):
    return x @ theta["w"]


def column(fn):
    return lambda theta, x: np.reshape(fn(theta, x), (N, -1))


def plain(name, model, mean, sd=0.7, **options):
    return Row(name, model, options.pop("y", REAL), lambda t, x: normal(mean(t, x), sd), column(mean), squared=True,
               **options)


def gauge(logits):
    return logits - logits.mean(axis=1, keepdims=True)


EVERY = ("fit", "fisher", "flow", "predict", "loss", "scores", "arviz")
BATCH = "depend|batch|alone|other data"
ROWS = [
    plain("linear", linear, lin),
    Row("learned noise", learned_noise, REAL, lambda t, x: normal(lin(t, x), t["s"]), column(lin), squared=True,
        sites={"w": ((2,), NORMAL), "s": ((), GAMMA32)}),
    plain("product", hierarchical, lambda t, x: t["t"] * lin(t, x), sites={"w": ((2,), NORMAL), "t": ((), GAMMA32)}),
    plain("centred inside", centred, lambda t, x: (x - x.mean(0)) @ t["w"], refused=dict.fromkeys(EVERY, BATCH)),
    plain("normalised inside", normalised, lin, refused=dict.fromkeys(EVERY, BATCH)),
    plain("noise by the number of data", noise_by_count, lin, sd=np.sqrt(N), refused=dict.fromkeys(EVERY, BATCH)),
    plain("scaled", scaled, lin, weight=np.full(N, 10.0)),
    Row("masked", masked, np.where(SEEN, REAL, 1000.0), lambda t, x: normal(lin(t, x["x"]), 0.7),
        lambda t, x: lin(t, x["x"])[:, None], {"x": X, "seen": SEEN}, squared=True, weight=SEEN * 1.0, seen=SEEN),
    plain("autoregressive", autoregressive, lin, refused=dict.fromkeys(EVERY, "earlier|history|scan|observed")),
    Row("event over the data", event_over_data, RNG.normal(size=(N, 3)),
        lambda t, x: [[stats.norm(m, 0.7) for m in row] for row in x @ t["w"]], lambda t, x: x @ t["w"], squared=True,
        sites={"w": ((2, 3), NORMAL)}),
    plain("a phi that is no output", stray_phi, lin),
    plain("unhashable", Unhashable(0.7), lin),
    plain("tuple inputs", tuple_inputs, lambda t, x: x[0] @ t["w"] + x[1].prod(1), x=(X, RNG.normal(size=(N, 3)))),
    plain("dict inputs", dict_inputs, lambda t, x: x["a"] @ t["w"] + x["offset"], x={"a": X, "offset": REAL}),
    plain("local latents", local_latents, lambda t, x: lin(t, x) + t["e"],
          sites={"w": ((2,), NORMAL), "e": ((N,), NORMAL)},
          refused=dict.fromkeys(("fisher", "flow", "loss"), "'e'")),
    plain("subsampled", subsampled, lin, refused=dict.fromkeys(EVERY, "subsample")),
    plain("factor only", factor_only, lin, refused=dict.fromkeys(EVERY, "no observed site")),
    plain("broken", broken, lin, refused=dict.fromkeys(EVERY, "no such file: weights.npz")),
    Row("Poisson", poisson, COUNTS, lambda t, x: [[stats.poisson(r)] for r in np.exp(lin(t, x))], column(lin)),
    Row("negative binomial", negative_binomial, COUNTS,
        lambda t, x: [[stats.nbinom(t["c"], t["c"] / (t["c"] + m))] for m in np.exp(lin(t, x))],
        column(lambda t, x: np.exp(lin(t, x))), sites={"w": ((2,), NORMAL), "c": ((), GAMMA32)}),
    Row("zero-inflated", zero_inflated, COUNTS, lambda t, x: [[ZeroInflated(t["g"], r)] for r in np.exp(lin(t, x))],
        column(lin), sites={"w": ((2,), NORMAL), "g": ((), stats.beta(2, 2))}),
    Row("beta", beta, RNG.uniform(0.1, 0.9, N),
        lambda t, x: [[stats.beta(5 * m, 5 * (1 - m))] for m in special.expit(lin(t, x))],
        column(lambda t, x: special.expit(lin(t, x)))),
    Row("gamma", gamma, RNG.uniform(0.5, 3, N),
        lambda t, x: [[stats.gamma(t["a"], scale=np.exp(-f))] for f in lin(t, x)],
        column(lambda t, x: t["a"] * np.exp(-lin(t, x))), sites={"w": ((2,), NORMAL), "a": ((), GAMMA31)}),
    Row("Weibull", weibull, RNG.uniform(0.5, 3, N),
        lambda t, x: [[stats.weibull_min(t["k"], scale=np.exp(f))] for f in lin(t, x)],
        column(lambda t, x: np.exp(lin(t, x)) * special.gamma(1 + 1 / t["k"])),
        sites={"w": ((2,), NORMAL), "k": ((), GAMMA31)}),
    Row("Student's t", student, REAL, lambda t, x: [[stats.t(5.0, m, 0.7)] for m in lin(t, x)], column(lin)),
    Row("Bernoulli", bernoulli, (REAL > 0) * 1, lambda t, x: [[Categorical([0.0, f])] for f in lin(t, x)], column(lin)),
    Row("classes", softmax, COUNTS % 3, lambda t, x: [[Categorical(f)] for f in x @ t["w"]],
        lambda t, x: gauge(x @ t["w"]), sites={"w": ((2, 3), NORMAL)}),
    Row("ordered", ordered, COUNTS % 3, lambda t, x: [[Ordered(f, [-1.0, 0.5])] for f in lin(t, x)]),
    Row("log-normal by a transform", log_normal, RNG.uniform(0.5, 3, N),
        lambda t, x: [[stats.lognorm(0.7, scale=np.exp(f))] for f in lin(t, x)],
        refused=dict.fromkeys(("predict", "arviz"), "φ is not known")),
    Row("truncated", truncated, RNG.uniform(0.5, 2, N),
        lambda t, x: [[stats.truncnorm(-m / 0.7, np.inf, m, 0.7)] for m in lin(t, x)]),
    Row("heteroscedastic", heteroscedastic, REAL, lambda t, x: normal(lin(t, x), np.exp(x @ t["v"])), column(lin),
        squared=True, sites={"w": ((2,), NORMAL), "v": ((2,), NORMAL)}),
]


# -- the steps ------------------------------------------------------------------------------------------------
DRAWS = 2


def posterior(row):
    draws = [row.theta(seed) for seed in range(2 * DRAWS)]
    samples = {s: jnp.stack([d[s] for d in draws]).reshape(2, DRAWS, *row.sites[s][0]) for s in row.sites}
    return brg.Posterior(samples=samples), draws


def fit(row):
    found = brg.nuts(row.model, row.x, row.y, key=jax.random.key(0), num_chains=1, num_warmup=2, num_samples=2,
                     max_tree_depth=2, progress_bar=False)
    for i in range(2):
        theta = {s: np.asarray(v[0, i]) for s, v in found.samples.items()}
        right = row.log_prior(theta) + np.sum(row.weight * row.log_likelihood(theta))
        np.testing.assert_allclose(found.stats["log_joint"][0, i], right, rtol=1e-7)


def fisher(row):
    theta = row.theta(0)
    metric = brg.fisher(row.model, None, row.x, at={s: jnp.asarray(v) for s, v in theta.items()}, progress_bar=False)
    right = row.fisher(theta)
    for s in row.sites:
        np.testing.assert_allclose(metric.stiffness[s], right[s], rtol=2e-6, atol=1e-9, err_msg=s)


def along(row):
    post, draws = posterior(row)
    metric = brg.fisher(row.model, post, row.x, progress_bar=False)
    cutoff = float(np.median(metric.values()))
    return brg.renormalize(row.model, post, metric, cutoffs=[0.0, cutoff, np.inf], key=jax.random.key(1)), draws


def flow(row):
    made, draws = along(row)
    cutoff = made.cutoffs[1]
    start, end = made.at(np.inf), made.at(cutoff)
    for i, theta in enumerate(draws):
        right = row.fisher(theta)
        for s in row.sites:
            kept = right[s] >= cutoff * (1 - 1e-6)
            prior = np.asarray(start.flat()[s][i])
            np.testing.assert_allclose(end.flat()[s][i], np.where(kept, theta[s], prior), rtol=1e-12)


def loss(row):
    made, _ = along(row)
    found = made.loss(row.x, row.y, progress_bar=False).values
    for c, cutoff in enumerate(made.cutoffs):
        flat = made.at(cutoff).flat()
        right = [row.loss({s: np.asarray(v[i]) for s, v in flat.items()}) for i in range(2 * DRAWS)]
        np.testing.assert_allclose(found[c].ravel(), right, rtol=1e-7)


def predict(row):
    post, draws = posterior(row)
    phi = brg.predict(row.model, post, row.x, progress_bar=False)
    if row.phi is not None:
        right = np.stack([row.phi(d, row.x) for d in draws])
        np.testing.assert_allclose(phi.reshape(right.shape), right, rtol=1e-7, atol=1e-12)
    assert np.isfinite(np.asarray(phi)).all()


def scores(row):
    post, draws = posterior(row)
    found = brg.diagnostics.scores(row.model, post, row.x, row.y).dataset["log_predictive_density"].values
    right = special.logsumexp([row.log_likelihood(d) for d in draws], axis=0) - np.log(len(draws))
    found = found if len(found) < N else found[row.seen]
    np.testing.assert_allclose(found, right[row.seen], rtol=1e-7)


def arviz(row):
    post, draws = posterior(row)
    found = brg.to_arviz(post, row.model, row.x, progress_bar=False)
    for s in row.sites:
        np.testing.assert_array_equal(found.posterior[s], post.samples[s])
    if row.phi is not None:
        right = np.stack([row.phi(d, row.x) for d in draws])
        np.testing.assert_allclose(np.reshape(found.posterior["phi"].values, right.shape), right, rtol=1e-7, atol=1e-12)


STEPS = {f.__name__: f for f in (fit, fisher, flow, predict, loss, scores, arviz)}


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.filterwarnings("ignore:.*Pareto.*")
def test_any_model_at_any_step(row, step, x64):
    if step in row.refused:
        with pytest.raises((ValueError, TypeError, RuntimeError), match=row.refused[step]):
            STEPS[step](row)
    else:
        STEPS[step](row)


@pytest.mark.slow
@pytest.mark.parametrize("row", [r for r in ROWS if len(r.refused) < len(EVERY)], ids=lambda row: row.name)
def test_any_posterior_is_stored_and_read(row, tmp_path, x64):
    post, _ = posterior(row)
    store.save_posterior(tmp_path / "posterior.nc", post)
    found = store.load_posterior(tmp_path / "posterior.nc")
    for s, v in post.samples.items():
        np.testing.assert_array_equal(found.samples[s], v)
