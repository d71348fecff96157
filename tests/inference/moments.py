"""Compare a chain's moments with exact ones, in standard errors that know about autocorrelation."""

import numpy as np
from numpyro.diagnostics import effective_sample_size


def standard_error(series):
    """Standard error of the mean of `series` (chain, draw, ...), from its effective sample size."""
    series = np.asarray(series, float)
    ess = np.maximum(np.minimum(effective_sample_size(series), series.shape[0] * series.shape[1]), 1.0)
    return series.std(axis=(0, 1)) / np.sqrt(ess)


def assert_moments(draws, mean, cov, errors=4.0):
    """Mean and covariance of draws (chain, draw, d) within `errors` standard errors of the exact ones.

    With d + d(d + 1)/2 comparisons at 4 standard errors a correct sampler fails with probability below 6.4e-5 each.
    """
    draws, mean, cov = np.asarray(draws, float), np.asarray(mean, float), np.asarray(cov, float)
    z = draws - mean
    off = np.abs(z.mean(axis=(0, 1))) / standard_error(z)
    assert off.max() < errors, f"mean is {off.max():.1f} standard errors off (entry {off.argmax()})"
    pairs = z[..., :, None] * z[..., None, :]
    off = np.abs(pairs.mean(axis=(0, 1)) - cov) / standard_error(pairs)
    assert off.max() < errors, f"covariance is {off.max():.1f} standard errors off"
