"""Networks with a Gaussian readout, and their Bayesian renormalisation in closed form (63)-(76).

The readout w ~ N(w̄, Ξ) is independent of the hidden features h, so with V¹ = E h and V² = E h h

    μ(x) = w̄·V¹(x),   Σ(x, y) = Ξ_ij V²_ij(x, y) + w̄_i w̄_j (V²_ij(x, y) − V¹_i(x) V¹_j(y)),

exactly at any width. Here the hidden units are alike and independent, V²_ij = δ_ij V2 + (1−δ_ij) V1 V1, or
frozen, V²_ij = h_i h_j. Host functions in NumPy float64 whatever JAX's default, because they solve and
subtract; they are not for use inside `jax.jit`.
"""

from typing import Any, NamedTuple

import numpy as np

from ..core.arrays import check_floats
from . import kernels


class RenormalizedGP(NamedTuple):
    """Mean and covariance of the network's output along the flow; see `renormalized_gp`."""

    cutoff: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    covariance: np.ndarray


def _check_gaussian(mean, cov):
    mean, cov = check_floats(mean, "mean"), check_floats(cov, "cov")
    if cov.shape != mean.shape * 2:
        raise ValueError(
            f"cov has shape {cov.shape}; mean {mean.shape} needs {mean.shape * 2}, its axes twice"
        )
    size = np.max(np.abs(cov), initial=0.0)
    square = cov.reshape(mean.size, mean.size)
    if np.max(np.abs(square - square.T), initial=0.0) > 1e-5 * size:
        raise ValueError("cov is not symmetric; give a covariance matrix")
    if (np.diagonal(square) < 0).any():
        raise ValueError(f"cov has a negative variance on its diagonal, {np.diagonal(square).min():g}")
    return mean, cov


def readout_moments(draws) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased covariance (w̄, Ξ) of readout draws (69), e.g. the members of an ensemble.

    Parameters
    ----------
    draws : array (draws, n) or (draws, n, outputs)
        At least two. Append the readout bias as a last row of axis 1 for ``bias=True`` downstream.

    Returns
    -------
    mean : ndarray (n[, outputs]);  cov : ndarray (n[, outputs], n[, outputs])
    """
    draws = check_floats(draws, "draws")
    if draws.ndim not in (2, 3) or draws.shape[0] < 2:
        raise ValueError(
            f"draws must have shape (draws ≥ 2, n) or (draws ≥ 2, n, outputs), got {draws.shape}"
        )
    mean = draws.mean(0)
    centred = (draws - mean).reshape(draws.shape[0], -1)
    return mean, (centred.T @ centred / (draws.shape[0] - 1)).reshape(mean.shape * 2)


def renormalized_readout(
    mean, cov, stiffness, cutoff, prior_var, *, prior_mean: Any = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Readout law at scale Λ: sloppy weights return to the prior (74), (75).

    A weight is sloppy when its stiffness λ < Λ, strictly. Its mean becomes the prior mean, its variance the
    prior variance, and its covariances vanish, with sloppy and stiff weights alike: Ξ(Λ) = blockdiag(Ξ_>>,
    σ²1).

    Parameters
    ----------
    mean : array (n,) or (n, outputs)
        w̄.
    cov : array (n, n) or (n, outputs, n, outputs)
        Ξ.
    stiffness : array, the shape of mean
        λ, diagonal Fisher information per datum.
    cutoff : float or array (cutoffs,)
        Λ ≥ 0, in the units of λ. Λ = 0 changes nothing; inf gives the prior.
    prior_var : float or array, broadcast to the shape of mean
        Variance of one weight under the prior: σ_w²/n for a "fan_in" readout, not σ_w².
    prior_mean : float or array, optional
        Mean of the prior, 0 by default.

    Returns
    -------
    mean, cov : ndarray
        With a leading axis of cutoffs when cutoff is an array.

    Raises
    ------
    ValueError
        Shapes that do not match, negative stiffness, variance or cutoff, non-finite values.
    """
    mean, cov, stiffness, prior_mean, prior_var = _check_readout(mean, cov, stiffness, prior_var, prior_mean)
    cutoff = _check_cutoffs(cutoff)
    laws = [_at_cutoff(mean, cov, stiffness, value, prior_mean, prior_var) for value in cutoff.ravel()]
    means, covs = (np.stack(part) for part in zip(*laws, strict=True))
    return means.reshape(cutoff.shape + mean.shape), covs.reshape(cutoff.shape + cov.shape)


def _check_readout(mean, cov, stiffness, prior_var, prior_mean):
    mean, cov = _check_gaussian(mean, cov)
    stiffness = check_floats(stiffness, "stiffness")
    if stiffness.shape != mean.shape:
        raise ValueError(
            f"stiffness has shape {stiffness.shape}, mean has {mean.shape}: one stiffness per weight"
        )
    if (stiffness < 0).any():
        raise ValueError(f"stiffness must not be negative, got {stiffness.min():g}")
    priors = []
    for value, name in ((prior_mean, "prior_mean"), (prior_var, "prior_var")):
        try:
            priors.append(np.broadcast_to(check_floats(value, name), mean.shape))
        except ValueError as error:
            raise ValueError(
                f"{name} {np.shape(value)} does not broadcast to mean {mean.shape}: {error}"
            ) from error
    if (priors[1] < 0).any():
        raise ValueError(f"prior_var must not be negative, got {priors[1].min():g}")
    return mean, cov, stiffness, *priors


def _check_cutoffs(cutoff) -> np.ndarray:
    cutoff = check_floats(cutoff, "cutoff", finite=False)
    if cutoff.ndim > 1 or np.isnan(cutoff).any() or (cutoff < 0).any() or cutoff.size == 0:
        raise ValueError(f"cutoff must be a number ≥ 0 or a one-dimensional array of them, got {cutoff}")
    return cutoff


def _at_cutoff(mean, cov, stiffness, cutoff, prior_mean, prior_var):
    sloppy = (stiffness < cutoff).ravel()
    size = mean.size
    square = np.where(sloppy[:, None] | sloppy, 0.0, cov.reshape(size, size))
    square[sloppy, sloppy] = prior_var.ravel()[sloppy]
    return np.where(sloppy, prior_mean.ravel(), mean.ravel()).reshape(mean.shape), square.reshape(cov.shape)


def predictive_gp(
    mean, cov, V1_x, V1_y, V2_xy, *, bias: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and covariance of the output for a Gaussian readout on independent, alike hidden units (73), (76).

    Parameters
    ----------
    mean, cov : array (n,), (n, n); or (n, outputs), (n, outputs, n, outputs)
        w̄ and Ξ.
    V1_x, V1_y : float or array (points_x,), (points_y,)
        E h(x), E h(y) of one hidden unit.
    V2_xy : float or array (points_x, points_y)
        E h(x) h(y) of one hidden unit; between different units it is V1_x V1_y.
    bias : bool
        The last entry of the readout's first axis multiplies 1 instead of a hidden unit: the elongation h →
        (h, 1) that turns (73) into (72).

    Returns
    -------
    mu_x, mu_y, Sigma_xy : ndarray
        Shapes (points_x[, outputs]), (points_y[, outputs]) and (points_x[, outputs], points_y[, outputs]);
        the covariance, not the second moment. Exact at any width if the readout is independent of the
        features.

    Raises
    ------
    ValueError
        Shapes that do not match, an asymmetric covariance, non-finite values.
    """
    mean, cov = _check_gaussian(mean, cov)
    _check_axes(mean, bias)
    V1_x, V1_y, V2_xy = _check_moments(V1_x, V1_y, V2_xy)
    return _predict_random(mean, cov, V1_x, V1_y, V2_xy, bias)


def _check_axes(mean, bias):
    if mean.ndim not in (1, 2) or mean.shape[0] < 1 + bias:
        raise ValueError(
            f"mean must have shape (n,) or (n, outputs), with the bias last if bias=True; got {mean.shape}"
        )


def _check_moments(V1_x, V1_y, V2_xy):
    V1_x, V1_y, V2_xy = check_floats(V1_x, "V1_x"), check_floats(V1_y, "V1_y"), check_floats(V2_xy, "V2_xy")
    if V1_x.ndim > 1 or V1_y.ndim > 1 or V2_xy.shape != V1_x.shape + V1_y.shape:
        raise ValueError(f"V2_xy has shape {V2_xy.shape}, but V1_x and V1_y need {V1_x.shape + V1_y.shape}")
    return V1_x, V1_y, V2_xy


def _predict_random(mean, cov, V1_x, V1_y, V2_xy, bias):
    n = mean.shape[0] - bias
    tail = mean.shape[1:]
    outputs = int(np.prod(tail, dtype=int))
    w = mean.reshape(-1, outputs)
    xi = cov.reshape(-1, outputs, mean.shape[0], outputs)
    units, blocks = w[:n], xi[:n, :, :n]

    # Σ_ij Ξ_ij V²_ij splits into the common part V1 V1, met by every pair, and the variance of one unit, met
    # by i = j.
    pairs = blocks.sum((0, 2))
    alone = np.einsum("iaib->ab", blocks) + units.T @ units
    mu_x, mu_y = (np.multiply.outer(V1, units.sum(0)) for V1 in (V1_x, V1_y))
    common = np.multiply.outer(V1_x, V1_y)
    sigma = np.multiply.outer(common, pairs) + np.multiply.outer(V2_xy - common, alone)
    if bias:
        mu_x, mu_y = mu_x + w[n], mu_y + w[n]
        cross = xi[n, :, :n].sum(1)  # (bias output, weight output)
        sigma = sigma + xi[n, :, n]
        sigma += np.multiply.outer(np.multiply.outer(np.ones(V1_x.shape), V1_y), cross)
        sigma += np.multiply.outer(np.multiply.outer(V1_x, np.ones(V1_y.shape)), cross.T)
    if V1_x.ndim == V1_y.ndim == 1:
        sigma = sigma.transpose(0, 2, 1, 3)
    elif V1_y.ndim == 1:
        sigma = sigma.transpose(1, 0, 2)
    return (
        mu_x.reshape(V1_x.shape + tail),
        mu_y.reshape(V1_y.shape + tail),
        sigma.reshape(V1_x.shape + tail + V1_y.shape + tail),
    )


def _predict_frozen(mean, cov, H_x, H_y):
    mu_x, mu_y = (np.tensordot(H, mean, 1) for H in (H_x, H_y))
    left = np.tensordot(H_x, cov, 1)
    sigma = np.tensordot(left, H_y, ((mean.ndim,), (1,)))
    return mu_x, mu_y, np.moveaxis(sigma, -1, mean.ndim)


def renormalized_gp(
    mean,
    cov,
    stiffness,
    cutoff,
    prior_var,
    *,
    moments=None,
    features=None,
    bias: bool = False,
    prior_mean: Any = 0.0,
) -> RenormalizedGP:
    """Mean and covariance of a network's output at every Λ: (74), (75) put into (73), (76).

    Give the features in one of two ways. Random, alike and independent hidden units:
    ``moments=theory.feature_moments(x, depth=..., activation=...)`` from the network's description, or any
    triple (V1_x, V1_y, V2_xy). Frozen ones, for which the law N(w̄·h(x), h(x)ᵀ Ξ h(y)) is exact:
    ``features=H_x`` or ``features=(H_x, H_y)``, arrays (points, n).

    Parameters
    ----------
    mean, cov, stiffness, cutoff, prior_var, prior_mean
        As for `renormalized_readout`; cutoff a number or an array (cutoffs,).
    moments : tuple (V1_x, V1_y, V2_xy), optional
    features : array (points, n) or a pair of them, optional
    bias : bool
        The last entry of the readout's first axis is its bias; it flows with its own stiffness and prior
        variance.

    Returns
    -------
    RenormalizedGP
        cutoff; mean_x, mean_y (cutoffs, points[, outputs]); covariance (cutoffs, points_x[, outputs],
        points_y[, outputs]). No leading axis for a scalar cutoff.

    Raises
    ------
    ValueError
        Both or none of moments and features; shapes that do not match; what `renormalized_readout` refuses.

    Notes
    -----
    (65) needs the readout to be independent of the features. That holds for a prior or for frozen features;
    an ensemble whose members each have their own features and a readout fitted to them violates it.
    """
    if (moments is None) == (features is None):
        raise ValueError("give exactly one of moments=(V1_x, V1_y, V2_xy) and features=H or (H_x, H_y)")
    mean, cov, stiffness, prior_mean, prior_var = _check_readout(mean, cov, stiffness, prior_var, prior_mean)
    _check_axes(mean, bias)
    cutoff = _check_cutoffs(cutoff)
    if moments is not None:
        V1_x, V1_y, V2_xy = _check_moments(*moments)
    else:
        pair = features if isinstance(features, tuple) else (features, features)
        H_x, H_y = (_check_features(H, name, mean.shape[0], bias) for H, name in zip(pair, "xy", strict=True))
    results = []
    for value in cutoff.ravel():
        w, xi = _at_cutoff(mean, cov, stiffness, value, prior_mean, prior_var)
        if moments is not None:
            results.append(_predict_random(w, xi, V1_x, V1_y, V2_xy, bias))
        else:
            results.append(_predict_frozen(w, xi, H_x, H_y))
    mean_x, mean_y, covariance = (np.stack(part) for part in zip(*results, strict=True))
    if cutoff.ndim == 0:
        mean_x, mean_y, covariance = mean_x[0], mean_y[0], covariance[0]
    return RenormalizedGP(cutoff, mean_x, mean_y, covariance)


def _check_features(H, name, size, bias):
    H = check_floats(H, f"features {name}")
    if H.ndim != 2 or H.shape[1] != size - bias:
        raise ValueError(
            f"features {name} must have shape (points, {size - bias}) for this readout, got {H.shape}"
        )
    return np.concatenate([H, np.ones((len(H), 1))], axis=1) if bias else H


def gp_posterior(
    x_train,
    y_train,
    x_test,
    *,
    noise_var: float,
    depth: int,
    activation: Any,
    weight_var: Any = 1.0,
    bias_var: Any = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Exact regression with the infinitely wide Bayesian network: the posterior of its output (68).

    Parameters
    ----------
    x_train, x_test : array (n, inputs), (m, inputs)
    y_train : array (n,) or (n, outputs)
        Outputs share the kernel and are independent.
    noise_var : float
        Variance of the observations, σ_noise² ≥ 0 (units of y²).
    depth, activation, weight_var, bias_var
        As for `theory.nngp`.

    Returns
    -------
    mean : ndarray (m,) or (m, outputs)
    covariance : ndarray (m, m)
        Of the noise-free output, the same for every output.

    Raises
    ------
    ValueError
        Shapes that do not match, negative noise_var, a kernel that is singular at this noise_var.
    """
    settings = dict(depth=depth, activation=activation, weight_var=weight_var, bias_var=bias_var)
    x_train, y_train, x_test = check_regression(x_train, y_train, x_test)
    if not np.isfinite(noise_var) or noise_var < 0:
        raise ValueError(f"noise_var must be a finite number ≥ 0, got {noise_var}")
    train = kernels.in_float64(kernels.nngp, x_train, **settings)
    cross = kernels.in_float64(kernels.nngp, x_test, x_train, **settings)
    test = kernels.in_float64(kernels.nngp, x_test, **settings)
    try:
        root = np.linalg.cholesky(train + noise_var * np.eye(len(train)))
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the kernel of the {len(train)} training points is singular at noise_var={noise_var}: repeated "
            "points, or too smooth an activation; give a larger noise_var"
        ) from error
    gain = np.linalg.solve(root, cross.T)
    mean = gain.T @ np.linalg.solve(root, y_train)
    return mean, test - gain.T @ gain


def check_regression(x_train, y_train, x_test):
    """Training points, targets and test points as float64 arrays whose shapes fit, or a ValueError."""
    x_train, y_train, x_test = (
        check_floats(value, name)
        for value, name in ((x_train, "x_train"), (y_train, "y_train"), (x_test, "x_test"))
    )
    for value, name in ((x_train, "x_train"), (x_test, "x_test")):
        if value.ndim != 2:
            raise ValueError(
                f"{name} must have shape (points, inputs), got {value.shape}; write {name}[:, None]"
            )
    if x_train.shape[1] != x_test.shape[1]:
        raise ValueError(
            f"x_train {x_train.shape} and x_test {x_test.shape} have different numbers of inputs"
        )
    if y_train.ndim not in (1, 2) or len(y_train) != len(x_train) or len(x_train) == 0:
        raise ValueError(
            f"y_train must have shape ({len(x_train)},) or ({len(x_train)}, outputs) for x_train "
            f"{x_train.shape}; got {y_train.shape}"
        )
    return x_train, y_train, x_test


def finite_width_kappa4(
    fourth, pairs, *, width: int, weight_var: float = 1.0, weight_kurtosis: float = 3.0
) -> np.ndarray:
    """Connected four-point function of a random readout of N independent, alike units, exact at any N (43).

        κ4 = (σ⁴/N) [ b E(h1 h2 h3 h4) − Σ_3 pairings E(h_a h_b) E(h_c h_d) ].

    Parameters
    ----------
    fourth : array (...)
        E(h(x1) h(x2) h(x3) h(x4)) of one hidden unit.
    pairs : array (..., 4, 4)
        E(h(x_a) h(x_b)) of one hidden unit.
    width : int
        N.
    weight_var : float
        σ²: readout weights have mean zero and variance σ²/N.
    weight_kurtosis : float
        b = E w⁴/(E w²)², at least 1: 3 for Gaussian weights, 9/5 for uniform ones.

    Returns
    -------
    ndarray (...)
        In fourth powers of the output's units.
    """
    fourth, pairs = check_floats(fourth, "fourth"), check_floats(pairs, "pairs")
    if pairs.shape != (*fourth.shape, 4, 4):
        raise ValueError(
            f"pairs has shape {pairs.shape}; fourth {fourth.shape} needs {(*fourth.shape, 4, 4)}"
        )
    if width < 1 or weight_var < 0 or weight_kurtosis < 1:
        raise ValueError(
            "need width ≥ 1, weight_var ≥ 0 and weight_kurtosis ≥ 1 (no law has less); "
            f"got {width}, {weight_var}, {weight_kurtosis}"
        )
    wick = (
        pairs[..., 0, 1] * pairs[..., 2, 3]
        + pairs[..., 0, 2] * pairs[..., 1, 3]
        + pairs[..., 0, 3] * pairs[..., 1, 2]
    )
    return weight_var**2 / width * (weight_kurtosis * fourth - wick)
