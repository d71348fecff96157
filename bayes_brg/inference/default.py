"""The default way to a posterior: chosen for the model, and said so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core.batching import quiet
from ..core.keys import name_key
from ..posterior import Posterior
from .blackjax_samplers import run_mclmc
from .chains import RunOptions
from .ensemble import run_readout_posterior
from .numpyro_hmc import run_hamiltonian
from .split_hmc import run_split_hmc
from .target import aim, checked

__all__ = ["sample"]


ENERGY_VARIANCE, THINNING = 2e-3, 10  # seen to have the scores of NUTS on tables, at a tenth of its gradients


def _micro(run: RunOptions) -> RunOptions:
    """The same with what microcanonical chains need: steps to tune in, thinning, a core each."""
    return replace(run, num_warmup=max(run.num_warmup, 100), thinning=THINNING, chain_method="threads")


def sample(model, x, y, *, key, num_chains: int = 4, num_warmup: int = 1000, num_samples: int = 1000,
           checkpoint: Any = None, progress_bar: bool = True) -> Posterior:
    """Posterior draws by the method that suits the model; what was chosen and why is in ``stats["chosen"]``.

    A Gaussian network without hidden layers has an exactly Gaussian posterior, which is drawn from directly. A network
    whose noise or scales are learned and whose readout can be integrated out: unadjusted `mclmc` on what is left, each
    chain from the end of an ascent of its own, in threads. Any other network with a Gaussian likelihood: `split_hmc`
    with the readout collapsed, which won the benchmark (``tests/benchmarks/test_bench_samplers.py``). Every other
    model: `nuts`.

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
        elif not (reason := bound.uncollapsible()) and bound.hyperparameters(x):
            post = run_mclmc(aim(bound, "mclmc", "collapsed"), x, y, name_key(key, "mclmc"), _micro(run), "ensemble",
                             energy_variance=ENERGY_VARIANCE)
            why = ("mclmc with the readout collapsed, from the members of a deep ensemble: noise and scales are "
                   "learned, and modes that lie apart are reached from their own starts; compare its chains "
                   "(diagnostics.convergence), and its moments with adjusted=True where they matter")
        elif not reason:
            target = aim(bound, "split_hmc", "collapsed")
            post = run_split_hmc(target, x, y, name_key(key, "split_hmc"), run)
            why = ("split_hmc with the readout collapsed: a network with Gaussian likelihood, whose readout is "
                   "integrated out exactly and whose hidden weights stay near their prior")
        else:
            post = run_hamiltonian(aim(bound, "nuts"), "NUTS", x, y, name_key(key, "nuts"), run)
            why = f"nuts: {reason.split('; ')[0].split(', so ')[0]}"
    return post.replace(stats={**post.stats, "chosen": why})
