"""The default way to a posterior: chosen for the model, and said so."""

from __future__ import annotations

from typing import Any

from ..core.checks import check_count, check_data
from ..model.bound import bind
from ..posterior import Posterior
from .ensemble import readout_posterior
from .numpyro_hmc import nuts
from .split_hmc import split_hmc

__all__ = ["sample"]


def sample(model, x, y, *, key, num_chains: int = 4, num_warmup: int = 1000, num_samples: int = 1000,
           checkpoint: Any = None, progress_bar: bool = True) -> Posterior:
    """Posterior draws by the method that suits the model; what was chosen and why is in ``stats["chosen"]``.

    A Gaussian network without hidden layers has an exactly Gaussian posterior, which is drawn from directly. Any other
    network with a Gaussian likelihood: `split_hmc` with the readout collapsed, which won the benchmark
    (``tests/benchmarks/test_bench_samplers.py``). Every other model: `nuts`.

    Parameters
    ----------
    model, x, y, key, checkpoint, progress_bar
        As in `nuts`; exact draws need no checkpoint.
    num_chains, num_warmup, num_samples : int
        As in `nuts`; of exact draws there are ``num_chains · num_samples``.

    Returns
    -------
    Posterior
        Of the method chosen, named by ``posterior.method``, with ``stats["chosen"]``, a sentence.

    Raises
    ------
    ValueError
        As in `nuts`.
    """
    x, y = check_data(x, y)
    bound = bind(model, x)
    options = dict(key=key, num_samples=num_samples, progress_bar=progress_bar)
    chains = dict(num_chains=num_chains, num_warmup=num_warmup, checkpoint=checkpoint)
    if bound.readout is not None and not bound.readout.hidden and not bound.readout.inexact():
        total = check_count(num_chains, "num_chains") * check_count(num_samples, "num_samples")
        post = readout_posterior(model, x, y, **{**options, "num_samples": total})
        why = "readout_posterior: the model is linear in Gaussian weights with Gaussian noise, so draws are exact"
    elif not (reason := bound.uncollapsible()):
        post = split_hmc(model, x, y, readout="collapsed", **options, **chains)
        why = ("split_hmc with the readout collapsed: a network with Gaussian likelihood, whose readout is integrated "
               "out exactly and whose hidden weights stay near their prior")
    else:
        post = nuts(model, x, y, **options, **chains)
        why = f"nuts: {reason.split('; ')[0].split(', so ')[0]}"
    return post.replace(stats={**post.stats, "chosen": why})
