"""Gradient descent in time, in closed form: the law of an ensemble of infinitely wide networks at time t.

Gradient flow on ½·mean (y − f)² moves the outputs of one member linearly, with its tangent kernel Θ:

    d f(X)/dt = −η Θ_XX (f(X) − y)/n   ⟹   f_t(x) = f_0(x) + A_t (y − f_0(X)),
    A_t = Θ_xX Θ_XX⁻¹ (1 − e^{−η t Θ_XX/n}),

and f_0 ~ GP(0, K), so mean and covariance over members follow. Lee et al., arXiv:1902.06720, eqs. (12)-(16).
Host functions in NumPy float64: e^{−ηtλ/n} needs small eigenvalues that float32 does not hold.
"""

from typing import Any

import numpy as np

from ..core.arrays import check_floats
from . import kernels
from .infinite_width import check_regression


def descent(
    x_train,
    y_train,
    x_test,
    *,
    t: Any,
    kernel: str = "ntk",
    learning_rate: float = 1.0,
    depth: int,
    activation: Any,
    weight_var: Any = 1.0,
    bias_var: Any = 0.0,
    scaling: str = "ntk",
    width: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance over an ensemble trained by gradient flow on ½·mean (y − f)² for time t.

    Parameters
    ----------
    x_train, x_test : array (n, inputs), (m, inputs)
    y_train : array (n,) or (n, outputs)
        Outputs share the kernel and are independent.
    t : float or array (times,)
        Time ≥ 0; `np.inf` is the end of training. Only learning_rate · t matters: with the default rate of 1,
        t is in units of 1/rate, so E full-batch steps of size η on this loss are t = ηE. `descent_time` maps
        the epochs of an ensemble, whose loss has no ½, to t.
    kernel : {"ntk", "nngp"}
        Which parameters are trained: all ("ntk"), or the readout's weights and bias only ("nngp").
    learning_rate : float
        η > 0.
    depth, activation, weight_var, bias_var
        As for `theory.nngp`.
    scaling, width
        As for `theory.ntk`: "fan_in" and "none" networks need their width.

    Returns
    -------
    mean : ndarray (m,) or (m, outputs), with a leading axis of times if t is an array
    covariance : ndarray (m, m), likewise

    Raises
    ------
    ValueError
        Unknown kernel or scaling, negative or NaN time, learning_rate ≤ 0, shapes that do not match.

    Notes
    -----
    At t = ∞ directions in which Θ_XX vanishes (to rounding, n·ε relative) never move. Discrete steps follow
    the flow while η λ_max(Θ_XX)/n ≪ 1 and diverge from 2 on.
    """
    if kernel not in ("ntk", "nngp"):
        raise ValueError(
            f"kernel must be 'ntk' (all layers trained) or 'nngp' (readout only), got {kernel!r}"
        )
    if not np.isfinite(learning_rate) or learning_rate <= 0:
        raise ValueError(f"learning_rate must be a finite positive number, got {learning_rate}")
    times = check_floats(t, "t", finite=False)
    if times.ndim > 1 or times.size == 0 or np.isnan(times).any() or (times < 0).any():
        raise ValueError(f"t must be a time ≥ 0 or a one-dimensional array of them, got {t}")
    x_train, y_train, x_test = check_regression(x_train, y_train, x_test)

    settings = dict(depth=depth, activation=activation, weight_var=weight_var, bias_var=bias_var)
    moving = dict(settings, scaling=scaling, width=width, trained="all" if kernel == "ntk" else "readout")
    theta = kernels.in_float64(kernels.ntk, x_train, **moving)
    theta_cross = kernels.in_float64(kernels.ntk, x_test, x_train, **moving)
    prior = kernels.in_float64(kernels.nngp, x_train, **settings)
    prior_cross = kernels.in_float64(kernels.nngp, x_test, x_train, **settings)
    prior_test = kernels.in_float64(kernels.nngp, x_test, **settings)

    n = len(x_train)
    rates, modes = np.linalg.eigh(theta)
    rates = np.maximum(rates, 0.0)
    projected = theta_cross @ modes
    means, covariances = [], []
    for time in times.ravel():
        gain = (projected * _progress(rates, learning_rate * time / n)) @ modes.T
        cross = gain @ prior_cross.T
        means.append(gain @ y_train)
        covariances.append(prior_test + gain @ prior @ gain.T - cross - cross.T)
    if times.ndim == 0:
        return means[0], covariances[0]
    return np.stack(means), np.stack(covariances)


def _progress(rates, time):
    """(1 − e^{−λτ})/λ, with its limits: τ at λ = 0, and at τ = ∞ 1/λ (0 for modes zero to rounding)."""
    positive = rates > len(rates) * np.finfo(np.float64).eps * rates.max(initial=0.0)
    safe = np.where(positive, rates, 1.0)
    if np.isinf(time):
        return np.where(positive, 1 / safe, 0.0)
    return np.where(positive, -np.expm1(-safe * time) / safe, time)


def descent_time(
    learning_rate: float,
    num_epochs: Any,
    *,
    scaling: str = "ntk",
    width: int | None = None,
    weight_var: float = 1.0,
) -> Any:
    """The t of `descent` (at its default rate) that ``ensemble(optimizer="gd")`` reaches after num_epochs.

    The ensemble descends the mean of (y − f)², without ½, so that a rate η there is 2η here: t = 2 η E.

    Parameters
    ----------
    learning_rate : float
        η of the ensemble.
    num_epochs : float or array
        E: full-batch steps.
    scaling : {"ntk", "fan_in", "none"}
        Scaling of the network. With "fan_in" the readout's tangent kernel is width/weight_var times the "ntk"
        one, and t = 2 η E · width/weight_var is the time at which to read ``descent(scaling="ntk",
        kernel="nngp", bias_var=0)``. That factor is right for the readout's weights alone. When biases or
        earlier layers are trained as well, they do not share it: use ``descent(scaling="fan_in", width=...)``
        with the plain t = 2 η E, which is ``descent_time`` with the default scaling. "none" goes like
        "fan_in", with weight_var = std² · fan_in in all these places.
    width : int, optional
        Last hidden width; needed for "fan_in" and "none", refused otherwise.
    weight_var : float
        σ_w² of the readout, for "fan_in"; std² · width for "none".

    Returns
    -------
    float or ndarray
        t, the shape of num_epochs. Valid while η λ_max(Θ_XX)·2/n ≪ 1, since the ensemble takes finite steps.
    """
    if not np.isfinite(learning_rate) or learning_rate <= 0:
        raise ValueError(f"learning_rate must be a finite positive number, got {learning_rate}")
    epochs = check_floats(num_epochs, "num_epochs", finite=False)
    if np.isnan(epochs).any() or (epochs < 0).any():
        raise ValueError(f"num_epochs must not be negative, got {num_epochs}")
    factor = 1.0
    if scaling in ("fan_in", "none"):
        if width is None or width < 1 or not weight_var > 0:
            raise ValueError(
                f"scaling={scaling!r} needs width ≥ 1 and weight_var > 0, got {width} and {weight_var}"
            )
        factor = width / weight_var
    elif scaling != "ntk" or width is not None:
        raise ValueError(
            "scaling must be 'ntk' (without width), 'fan_in' or 'none' (with width), "
            f"got {scaling!r}, {width!r}"
        )
    return 2.0 * learning_rate * factor * epochs
