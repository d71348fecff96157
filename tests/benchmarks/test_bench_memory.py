"""Memory of a large flow, in a process of its own.

    python -m pytest -m slow -s tests/benchmarks/test_bench_memory.py
"""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

CODE = """
import sys
import jax, numpy as np
import bayes_brg as brg

kind = sys.argv[1]
net = brg.mlp((10, 10, 2048), activation=("identity", "relu", "relu"), scaling="none")
x = jax.random.normal(jax.random.key(0), (200, 2))
y = (1 - x[:, 0]) ** 2
posterior = brg.prior(net, x, key=jax.random.key(1), num_samples=1000)  # 1,000 members of 22,648 parameters
assert sum(int(np.prod(v.shape[2:])) for v in posterior.samples.values()) == 22_648
metric = brg.fisher(net, posterior, x, kind=kind, progress_bar=False)
flow = brg.renormalize(net, posterior, metric, cutoffs=brg.cutoffs(metric, num=25), key=jax.random.key(2))
loss, moments = flow.loss(x, y, progress_bar=False), flow.moments(x)
assert loss.shape == (25, 4, 250) and np.isfinite(loss).all()
assert moments["variance"].shape == (25, 200, 1)
with open("/proc/self/status") as status:  # getrusage would count the peak of the process that started this one
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20)  # GiB
"""


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_a_thousand_members_stay_under_two_gibibytes(kind):
    run = subprocess.run([sys.executable, "-c", CODE, kind], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    peak = float(run.stdout)
    print(f"\n{kind}: peak resident memory {peak:.2f} GiB")
    assert peak < 2.0
