"""The network that a table gets where nobody chooses one: made here and nowhere else."""

from __future__ import annotations

from typing import Any

from ..model.likelihoods import bernoulli, categorical, gaussian
from ..model.networks import Network, mlp

__all__ = ["default_network", "table_network"]

NOISE = 0.7  # standard deviation of the noise, in units of the target's


def default_network(num_classes: int = 0, *, width: int = 50, noise: float = 0.0, **options: Any) -> Network:
    """One hidden layer of tanh units for standardised inputs, with the likelihood that suits the target.

    Parameters
    ----------
    num_classes : int
        0: numbers, standardised, with Gaussian noise. 2: Bernoulli. More: categorical.
    width : int
        Hidden units.
    noise : float
        Standard deviation of the noise, in units of the standardised target's; 0: the default, .7.
    **options
        Keywords of `mlp`, which replace those chosen here.

    Returns
    -------
    Network
    """
    chosen: dict[str, Any] = {"activation": "tanh", "bias_std": 1.0}
    if num_classes:
        likelihood = bernoulli() if num_classes == 2 else categorical()
    else:
        likelihood = gaussian(noise or NOISE)
    return mlp((width,), num_classes if num_classes > 2 else 1, **{**chosen, "likelihood": likelihood, **options})


def table_network(settings: Any, table: Any, **options: Any) -> Network:
    """The default network of a table, for `table_experiment`.

    Parameters
    ----------
    settings : Settings
        Of these, where they are there: ``width``, ``noise`` (0: the default).
    table : Table
        Its classes say which likelihood it gets.
    **options
        Keywords of `mlp` that replace the default's, such as ``weight_std=(3.0, 10.0)``.

    Returns
    -------
    Network
        Of one hidden layer of tanh units: Gaussian noise where the target is a number, Bernoulli for two classes,
        categorical for more.
    """
    taken = {name: settings[name] for name in ("width", "noise") if name in settings}
    return default_network(len(table.classes), **taken, **options)
