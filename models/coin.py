"""The Bayesian coin: section 2.1 of the paper.

Seven heads in ten tosses and a flat prior give the posterior Beta(8, 4), drawn exactly here and by NUTS beside it.
There is one parameter, so there is one stiffness, 1/(θ(1 − θ)) = 4.76 per toss at θ = .7: below it the flow changes
nothing, above it θ is a prior draw.

    bayes-brg run models/coin.py
"""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import bayes_brg as brg

CUTOFFS = [0, 0.01, 0.1, 1, 2, 3, 4, 4.7, 4.8, 6, 10, 100]


def coin(x, y=None):
    theta = numpyro.sample("theta", dist.Beta(1, 1))
    numpyro.deterministic("phi", jnp.broadcast_to(theta, (x.shape[0], 1)))  # look at θ, not at its logit
    with numpyro.plate("tosses", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(probs=theta), obs=y)


def data(settings, key):
    tosses = jnp.concatenate([jnp.ones(settings.heads), jnp.zeros(settings.tails)])
    x = jnp.zeros((len(tosses), 1))  # a coin has no inputs: only their number counts
    return brg.Data(x, tosses, x, tosses)  # the loss is taken on the tosses themselves


def probe(settings, key):
    return jnp.zeros((1, 1))


def exact(model, x, y, key, settings):
    posterior = dist.Beta(1 + settings.heads, 1 + settings.tails)
    theta = posterior.sample(key, (4, settings.num_samples))
    # Prior density 1 on [0, 1]; the likelihood of the tosses in their order.
    log_joint = settings.heads * jnp.log(theta) + settings.tails * jnp.log1p(-theta)
    return brg.Posterior({"theta": theta}, {"log_joint": log_joint, "independent": True}, "exact")


def nuts(model, x, y, key, settings):
    return brg.nuts(model, x, y, key=key, num_chains=4, num_warmup=500, num_samples=settings.num_samples)


def metric(settings):
    # One metric for all draws, at the observed fraction of heads.
    return {"at": {"theta": jnp.array(settings.heads / (settings.heads + settings.tails))}}


experiment = brg.Experiment(
    name="coin",
    model=lambda settings: coin,
    data=data,
    probe=probe,
    infer={"exact": exact, "nuts": nuts},
    metric=metric,
    flow={"cutoffs": CUTOFFS, "refill": "prior"},
    settings={"heads": 7, "tails": 3, "num_samples": 1000, "seed": 0},
)
