"""The exact Fisher diagonal against the PyTorch tools, in one process and interleaved, so that only ratios matter.

Run with ``pytest -m slow tests/benchmarks/test_bench_fisher.py -s`` where torch, nngeometry and backpack-for-pytorch
are installed; elsewhere the comparisons skip themselves. Both sides get two threads.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_brg.metric.fisher import fisher
from bayes_brg.model.likelihoods import categorical
from bayes_brg.model.networks import mlp
from bayes_brg.posterior import prior

pytestmark = pytest.mark.slow

# name: network, input dimension, probe inputs; the three nets of the published comparison
NETS = {
    "2-10-10-2048-1": (mlp((10, 10, 2048), activation=("identity", "relu", "relu"), scaling="none"), 2, 200),
    "64-512-512-1": (mlp((512, 512), bias_std=1.0), 64, 1000),
    "64-512-512-10": (mlp((512, 512), 10, bias_std=1.0, likelihood=categorical()), 64, 1000),
}


def interleaved(runs: dict, rounds: int = 30) -> dict:
    """Best time of each run, in ms: all of them in turn, `rounds` times, so that load falls on all alike."""
    times = {name: [] for name in runs}
    for run in runs.values():
        run(), run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.min(t)) for name, t in times.items()}


def setting(name):
    net, dim, n = NETS[name]
    x = jax.random.normal(jax.random.key(0), (n, dim))
    params = prior(net, x, key=jax.random.key(1), num_samples=1).draw(0, 0)
    return net, x, params


def ours(net, x, params):
    return lambda: jax.block_until_ready(fisher(net, None, x, at=params).stiffness)


def pass_of(net, x, params):
    """One forward and backward pass of the training loss."""
    y = jnp.zeros(x.shape[0], int) if net.likelihood.name == "categorical" else jnp.zeros((x.shape[0], net.outputs))
    grad = jax.jit(jax.value_and_grad(lambda p: jnp.sum(net.likelihood.log_prob(net.apply(p, x), y))))
    return lambda: jax.block_until_ready(grad(params))


def torch_runs(net, x, params):
    """The same diagonal by nngeometry and by BackPACK: name to a function that returns the first weight's entries."""
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("nngeometry.metrics")
    objects = pytest.importorskip("nngeometry.object")
    collection = pytest.importorskip("nngeometry.layercollection")
    backpack = pytest.importorskip("backpack")
    extensions = pytest.importorskip("backpack.extensions")
    torch.set_num_threads(2)
    names = {"relu": torch.nn.ReLU, "identity": torch.nn.Identity}
    steps = []
    for layer in range(net.depth + 1):
        w = np.asarray(params[f"w{layer}"])
        linear = torch.nn.Linear(*w.shape, bias=net.bias_std is not None)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(w.T.copy()))
            if net.bias_std is not None:
                linear.bias.copy_(torch.tensor(np.asarray(params[f"b{layer}"])))
        steps += [linear] + ([names[net.activation[layer]]()] if layer < net.depth else [])
    model = torch.nn.Sequential(*[s for s in steps if not isinstance(s, torch.nn.Identity)])
    inputs = torch.tensor(np.asarray(x))
    classes = net.likelihood.name == "categorical"
    targets = torch.zeros(len(inputs), dtype=torch.long) if classes else torch.zeros(len(inputs), net.outputs)

    class Whole(torch.utils.data.DataLoader):
        """All inputs as one batch that lies ready, so that no loading is timed."""

        def __iter__(self):
            return iter([[inputs, targets]])

    loader = Whole(torch.utils.data.TensorDataset(inputs, targets), batch_size=len(inputs))
    kept = collection.LayerCollection.from_model(model)
    variant = "classif_logits" if classes else "regression"

    def nngeometry():
        matrix = metrics.FIM(model, loader, objects.PMatDiag, variant, layer_collection=kept)
        return matrix.get_diag()[: model[0].weight.numel()].reshape(model[0].weight.shape).T.detach().numpy()

    extended = backpack.extend(torch.nn.Sequential(*model))
    loss = backpack.extend(torch.nn.CrossEntropyLoss() if classes else torch.nn.MSELoss())

    def backpack_run():
        extended.zero_grad()
        with backpack.backpack(extensions.DiagGGNExact()):
            loss(extended(inputs), targets).backward()
        factor = 1.0 if classes else 0.5  # MSE is (y − f)² = 2 · (y − f)²/2
        return factor * extended[0].weight.diag_ggn_exact.T.detach().numpy()

    return {"nngeometry": nngeometry, "backpack": backpack_run}


@pytest.mark.parametrize("name", NETS)
def test_diagonal_against_the_torch_tools(name):
    net, x, params = setting(name)
    runs = torch_runs(net, x, params)
    here = np.asarray(fisher(net, None, x, at=params).stiffness["w0"])
    for tool, run in runs.items():
        np.testing.assert_allclose(run(), here, rtol=2e-3, atol=1e-5 * here.max(), err_msg=tool)
    best = interleaved({"here": ours(net, x, params), **runs, "pass": pass_of(net, x, params)})
    print(f"\n{name}: " + ", ".join(f"{k} {v:.2f} ms" for k, v in best.items()) + "; here / nngeometry "
          f"{best['here'] / best['nngeometry']:.2f}, here / backpack {best['here'] / best['backpack']:.2f}, "
          f"passes an output {best['here'] / best['pass'] / net.outputs:.2f}")
    limit = 1.0 if net.outputs == 1 else 1.1
    assert best["here"] <= limit * min(best["nngeometry"], best["backpack"])


@pytest.mark.parametrize("name", NETS)
def test_diagonal_costs_about_a_pass_an_output(name):
    net, x, params = setting(name)
    best = interleaved({"here": ours(net, x, params), "pass": pass_of(net, x, params)}, rounds=300)
    ratio = best["here"] / best["pass"] / net.outputs
    print(f"\n{name}: {ratio:.2f} forward and backward passes an output")
    assert ratio <= 1.5


def test_hundred_draws_cost_no_more_a_draw_than_one():
    net, x, params = setting("2-10-10-2048-1")
    draws = prior(net, x, key=jax.random.key(2), num_samples=100)
    best = interleaved({
        "one": ours(net, x, params),
        "hundred": lambda: jax.block_until_ready(fisher(net, draws, x, progress_bar=False).stiffness),
    }, rounds=7)
    print(f"\n100 draws: {best['hundred'] / 100:.3f} ms a draw, one draw {best['one']:.3f} ms")
    assert best["hundred"] / 100 <= best["one"]
