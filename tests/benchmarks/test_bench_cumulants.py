"""Cost of fourth cumulants on 64 points: run with ``pytest -m slow -s`` on this file.

Times are processor seconds of all threads, so that a busy machine does not change the ratios.
"""

import time
import tracemalloc

import numpy as np
import pytest

from bayes_brg.field.correlators import cumulants

POINTS = 64


def full_product(x, rows=1000):
    """Time of the one product DD'DD over all 64 x 64 pairs, in chunks; forming DD is not counted."""
    total, spent = np.zeros((POINTS**2, POINTS**2)), 0.0
    for start in range(0, len(x), rows):
        d = x[start : start + rows]
        dd = (d[:, :, None] * d[:, None, :]).reshape(len(d), -1)
        begin = time.process_time()
        product = dd.T @ dd
        spent += time.process_time() - begin
        total += product
    return spent


def timed(x):
    begin = time.process_time()
    k = cumulants(x)
    return time.process_time() - begin, k


@pytest.mark.slow
def test_fourth_cumulants_cost():
    """At most 2 x the full product at 1e5 samples; under 1 GiB; at most 10 % above linear at 1e6 samples."""
    x = np.random.default_rng(0).normal(size=(100_000, POINTS))
    cumulants(x[:2000])  # index tables
    product = full_product(x)
    tracemalloc.start()
    cumulants(x[:20_000])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    short, k = timed(x)
    assert k.sem.k4.shape == (POINTS,) * 4
    long, _ = timed(np.random.default_rng(1).normal(size=(1_000_000, POINTS)).astype(np.float32))
    print(
        f"\n64 points, 1e5 samples: product {product:.1f} CPU s, cumulants and errors {short:.1f} CPU s "
        f"(ratio {short / product:.2f}); 1e6 samples {long:.1f} s ({long / (10 * short):.2f} x linear); "
        f"peak above the samples {peak / 2**20:.0f} MiB"
    )
    assert short <= 2 * product
    assert peak < 2**30
    assert long <= 1.1 * 10 * short
