"""The network that a table gets where nobody chooses one: made here and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..model.likelihoods import Likelihood, bernoulli, categorical, gaussian
from ..model.networks import MLP, Network, mlp
from ..model.noise import Heteroscedastic, heteroscedastic

__all__ = ["default_network", "default_steps", "rounding_step", "single_network", "table_network"]


def default_network(num_classes: int = 0, *, width: int = 50, noise: float = 0.0, rounding: float = 0.0,
                    **options: Any) -> Network:
    """One hidden layer of tanh units for standardised inputs, with the likelihood that suits the target.

    For numbers nothing is set by hand: the noise depends on the inputs, and its level, the prior scale of each layer
    and a relevance of each input are learned (theory §13). For classes the prior scales are 1.

    Parameters
    ----------
    num_classes : int
        0: numbers, standardised. 2: Bernoulli. More: categorical.
    width : int
        Hidden units.
    noise : float
        For numbers: a standard deviation of Gaussian noise that is known, in units of the standardised target's. 0: the
        noise is learned.
    rounding : float
        Step to whose multiples the targets were rounded, in the same units; 0: none.
    **options
        Keywords of `mlp`, which replace those chosen here.

    Returns
    -------
    Network
    """
    chosen: dict[str, Any] = {"activation": "tanh", "bias_std": 1.0}
    likelihood: Likelihood
    if num_classes:
        likelihood = bernoulli() if num_classes == 2 else categorical()
    else:
        likelihood = gaussian(noise, rounding=rounding) if noise else heteroscedastic("learned", rounding=rounding)
        chosen |= {"weight_std": "learned", "bias_std": "learned", "relevance": True}
    return mlp((width,), num_classes if num_classes > 2 else 1, **{**chosen, "likelihood": likelihood, **options})


def single_network(network: Any) -> Any:
    """The network of which the single most probable one is taken, in place of one that learns scales or widths.

    The mode of scales and widths that are learned is no estimate of them: the density is highest where one point's
    width, or a layer's scale, is smallest. Prior scales are 1 instead, and one noise level is learned.
    """
    if not isinstance(network, MLP) or not network.hyperpriors(1):
        return network
    numbers = isinstance(network.likelihood, Heteroscedastic)
    return mlp(network.widths, network.out // 2 if numbers else network.out, activation=network.activation,
               bias_std=None if network.bias_std is None else 1.0,
               likelihood=gaussian("learned") if numbers else network.likelihood)


def default_steps(num_classes: int, num_warmup: int = 0, num_samples: int = 0) -> tuple[int, int]:
    """Warm-up steps and draws a chain for `sample` of the default network; 0 stands for what suits the target.

    A step of the sampler for numbers costs one gradient, one of that for classes a whole trajectory.
    """
    warmup, draws = (300, 300) if num_classes else (2000, 500)
    return num_warmup or warmup, num_samples or draws


def rounding_step(y: Any) -> float:
    """The step to whose multiples numbers were rounded, where that is seen: few values, many times each; else 0."""
    levels = np.unique(np.round(np.asarray(y, np.float64).ravel(), 5))
    if not 3 <= len(levels) <= len(np.ravel(y)) / 10:
        return 0.0
    gaps = np.diff(levels)
    share = gaps / gaps.min()
    return float(gaps.min()) if np.abs(share - np.round(share)).max() < 0.01 else 0.0


def table_network(settings: Any, table: Any, **options: Any) -> Network:
    """The default network of a table, for `table_experiment`.

    Parameters
    ----------
    settings : Settings
        Of these, where they are there: ``width``, ``noise`` (0: learned).
    table : Table
        Its classes say which likelihood it gets, and its targets whether they were rounded, as whole numbers are.
    **options
        Keywords of `mlp` that replace the default's, such as ``weight_std=(3.0, 10.0)``.

    Returns
    -------
    Network
        Of one hidden layer of tanh units. Where the target is a number: noise that depends on the inputs, its level,
        the scales of the layers and the relevance of each input learned. Bernoulli for two classes, categorical for
        more.
    """
    taken = {name: settings[name] for name in ("width", "noise") if name in settings}
    if not table.classes and not settings.get("target_transform"):
        taken["rounding"] = rounding_step(table.y) / max(float(np.std(table.y)), 1e-30)
    return default_network(len(table.classes), **taken, **options)
