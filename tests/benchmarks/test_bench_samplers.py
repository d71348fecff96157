"""Effective draws of φ a second, method by method, on the wide ReLU net with all layers sampled; `pytest -s -m slow`.

Every method is held against a long reference of another kind: a fast biased sampler is not fast. Seconds are processor
seconds of drawing (all threads; compilation and warm-up apart), so that a busy machine does not change the ratios.
"""

import os
import time

import jax
import numpy as np
import pytest
from jax import random
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS
from scipy.special import ndtri
from scipy.stats import rankdata

import bayes_brg as brg
from bayes_brg.inference.blackjax_samplers import mclmc
from bayes_brg.inference.numpyro_hmc import hmc, nuts
from bayes_brg.inference.split_hmc import split_hmc

POINTS, PROBES, WARMUP = 100, 20, 300


def problem(width):
    """§4.2's target at unit scale, noise 1, inputs N(0, 1); hidden 10-10-width, fan-in scaling."""
    x = random.normal(random.key(1), (POINTS, 2))
    clean = (1 - x[:, 0]) ** 2 - 0.5 * (x[:, 1] - x[:, 0] ** 2) ** 2
    y = (clean - clean.mean()) / clean.std() + random.normal(random.key(2), (POINTS,))
    net = brg.mlp((10, 10, width), activation=("identity", "relu", "relu"), likelihood=brg.gaussian(1.0))
    return net, x, y[:, None], random.normal(random.key(3), (PROBES, 2))


def plain_numpyro(net, x, y, *, key, num_samples, **_):
    mcmc = MCMC(NUTS(net), num_warmup=WARMUP, num_samples=num_samples, num_chains=4, chain_method="vectorized",
                progress_bar=False)
    mcmc.warmup(key, x, y)
    mcmc.run(random.key(0), x, y, extra_fields=("num_steps",))  # compiles
    mcmc.post_warmup_state = mcmc.last_state
    began = time.process_time()
    mcmc.run(random.key(1), x, y, extra_fields=("num_steps",))
    seconds = time.process_time() - began
    samples = {k: v for k, v in mcmc.get_samples(group_by_chain=True).items() if k != "phi"}
    stats = {"processor_seconds": seconds, "num_steps": mcmc.get_extra_fields(True)["num_steps"]}
    return brg.Posterior(samples, stats, "numpyro")


METHODS = {
    "numpyro NUTS": (plain_numpyro, {}),
    "nuts": (nuts, {}),
    "nuts collapsed": (nuts, dict(readout="collapsed")),
    "hmc": (hmc, {}),
    "hmc collapsed": (hmc, dict(readout="collapsed")),
    "split_hmc": (split_hmc, {}),
    "split_hmc collapsed": (split_hmc, dict(readout="collapsed")),
    "mclmc adjusted": (mclmc, dict(adjusted=True, num_warmup=3 * WARMUP)),
    "mclmc": (mclmc, dict(num_warmup=10 * WARMUP, energy_variance=1e-5)),
}
QUICK = ("numpyro NUTS", "nuts collapsed", "hmc", "split_hmc collapsed")


def summary(phi):
    """Mean, sd and their standard errors (probe,), smallest bulk ESS, largest R-hat."""
    phi = np.asarray(phi, float)[..., 0]
    rank = np.stack([rankdata(phi[..., i]).reshape(phi.shape[:2]) for i in range(phi.shape[2])], axis=-1)
    bulk = effective_sample_size(ndtri((rank - 0.375) / (phi[..., 0].size + 0.25)))
    total = phi.shape[0] * phi.shape[1]
    mean, sd = phi.mean((0, 1)), phi.std((0, 1))
    squares = (phi - mean) ** 2
    error = sd / np.sqrt(np.minimum(effective_sample_size(phi), total))
    sd_error = squares.std((0, 1)) / np.sqrt(np.minimum(effective_sample_size(squares), total)) / (2 * sd)
    return mean, sd, error, sd_error, bulk.min(), split_gelman_rubin(phi).max()


@pytest.mark.slow
@pytest.mark.parametrize("width", [int(w) for w in os.environ.get("BRG_BENCH_WIDTHS", "64,512,2048").split(",")])
def test_effective_draws_per_second(width):
    net, x, y, probes = problem(width)
    names = QUICK if os.environ.get("BRG_BENCH_QUICK") else METHODS
    draws = int(os.environ.get("BRG_BENCH_DRAWS", "500"))
    options = dict(num_warmup=WARMUP, progress_bar=False)
    long = hmc(net, x, y, key=random.key(9), readout="collapsed", num_samples=4 * draws, **options)
    reference = summary(brg.predict(net, long, probes))
    print(f"\nwidth {width}, {POINTS} points, {jax.default_backend()}, load {os.getloadavg()[0]:.1f}")
    print(f"{'method':22s} {'ESS':>6s} {'R-hat':>6s} {'s':>7s} {'ESS/s':>8s} {'ratio':>6s} {'grads':>6s} {'mean':>6s} "
          f"{'sd':>5s}  (errors)")
    rates, found = {}, {}
    for name in names:
        sampler, extra = METHODS[name]
        post = sampler(net, x, y, key=random.key(5), **{**options, "num_samples": draws, **extra})
        mean, sd, error, sd_error, ess, rhat = summary(brg.predict(net, post, probes))
        seconds = post.stats["processor_seconds"]
        z = np.abs(mean - reference[0]) / np.hypot(error, reference[2])
        sd_z = np.abs(sd - reference[1]) / np.hypot(sd_error, reference[3])
        rates[name], found[name] = ess / seconds, (rhat, z.max(), sd_z.max())
        grads = float(np.mean(post.stats["num_steps"])) if "num_steps" in post.stats else np.nan
        print(f"{name:22s} {ess:6.0f} {rhat:6.3f} {seconds:7.1f} {rates[name]:8.2f} "
              f"{rates[name] / rates['numpyro NUTS']:6.1f} {grads:6.1f} {z.max():6.1f} {sd_z.max():5.1f}", flush=True)
    # The default is right (40 comparisons at 4 standard errors: failure rate .003) and, on wide nets, the fastest.
    rhat, z, sd_z = found["split_hmc collapsed"]
    assert rhat < 1.01 and z < 4 and sd_z < 4
    if width >= 512:
        assert max(rates, key=lambda name: rates[name]) == "split_hmc collapsed"
        assert rates["split_hmc collapsed"] > 10 * rates["numpyro NUTS"]
