"""The default way to a posterior: chosen for the model, and said so."""

from __future__ import annotations

from typing import Any

from ..core.batching import quiet
from ..core.keys import name_key
from ..posterior import Posterior
from .chains import RunOptions
from .ensemble import run_readout_posterior
from .numpyro_hmc import run_hamiltonian
from .split_hmc import run_split_hmc
from .target import aim, checked

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
    bound, x, y, key = checked(model, x, y, key)
    run = RunOptions(num_chains, num_warmup, num_samples, checkpoint=checkpoint)
    with quiet(not progress_bar):
        if bound.readout is not None and not bound.readout.hidden and not bound.readout.inexact():
            post = run_readout_posterior(bound, x, y, name_key(key, "readout_posterior"),
                                         run.num_chains * run.num_samples)
            why = "readout_posterior: the model is linear in Gaussian weights with Gaussian noise, so draws are exact"
        elif not (reason := bound.uncollapsible()):
            target = aim(bound, "split_hmc", "collapsed")
            post = run_split_hmc(target, x, y, name_key(key, "split_hmc"), run)
            why = ("split_hmc with the readout collapsed: a network with Gaussian likelihood, whose readout is "
                   "integrated out exactly and whose hidden weights stay near their prior")
        else:
            post = run_hamiltonian(aim(bound, "nuts"), "NUTS", x, y, name_key(key, "nuts"), run)
            why = f"nuts: {reason.split('; ')[0].split(', so ')[0]}"
    return post.replace(stats={**post.stats, "chosen": why})
