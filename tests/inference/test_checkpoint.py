"""A run stopped between blocks and gone on with is the uninterrupted run, bit for bit."""

import jax
import numpy as np
import pytest
from test_numpyro_hmc import TINY, TINY_X, TINY_Y

from bayes_brg.inference import chains
from bayes_brg.inference.blackjax_samplers import mclmc
from bayes_brg.inference.numpyro_hmc import hmc
from bayes_brg.model.networks import mlp

RUNS = {
    hmc: dict(num_warmup=25, num_samples=24, num_steps=3, readout="collapsed"),
    mclmc: dict(num_warmup=200, num_samples=24, thinning=2),
}


def run(sampler, directory=None, model=TINY, **changes):
    options = dict(num_chains=2, block_size=10, progress_bar=False, **RUNS[sampler]) | changes
    return sampler(model, TINY_X, TINY_Y, key=jax.random.key(7), checkpoint=directory, **options)


def assert_same(a, b, draws=None):
    for s in a.samples:
        np.testing.assert_array_equal(np.asarray(a.samples[s])[:, :draws], np.asarray(b.samples[s])[:, :draws])
    for s in ("log_joint", "step_size"):
        np.testing.assert_array_equal(np.asarray(a.stats[s])[:, :draws], np.asarray(b.stats[s])[:, :draws])


@pytest.mark.parametrize("sampler", list(RUNS))
def test_stopped_run_goes_on(sampler, tmp_path, monkeypatch):
    whole = run(sampler)
    true_block, calls = chains._block, []
    stops = [2, 4] if sampler is hmc else [1, 2]  # blocks; hmc's first three are warm-up

    for stop in stops:
        def block(*args, stop=stop):
            if len(calls) == stop:
                raise KeyboardInterrupt
            calls.append(1)
            return true_block(*args)

        monkeypatch.setattr(chains, "_block", block)
        with pytest.raises(KeyboardInterrupt):
            run(sampler, tmp_path / "run")
    assert (tmp_path / "run" / "state.npz").exists()
    monkeypatch.setattr(chains, "_block", true_block)
    assert_same(run(sampler, tmp_path / "run"), whole)
    assert not list((tmp_path / "run").glob("*.tmp"))
    # Asked again, it reads; asked for more, it goes on; asked for fewer, it reads those.
    monkeypatch.setattr(chains, "_block", None)
    assert_same(run(sampler, tmp_path / "run"), whole)
    assert_same(run(sampler, tmp_path / "run", num_samples=7), whole, draws=7)
    monkeypatch.setattr(chains, "_block", true_block)
    longer = run(sampler, tmp_path / "run", num_samples=30)
    assert longer.num_draws == 30
    assert_same(longer, whole, draws=24)


def test_another_run_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="'notes.txt' and no run"):
        run(hmc, tmp_path / "other")
    run(hmc, tmp_path / "run", num_samples=2)
    with pytest.raises(ValueError, match="its thinning is 1, this one's 3"):
        run(hmc, tmp_path / "run", num_samples=2, thinning=3)
    with pytest.raises(ValueError, match="holds another run: its method"):
        run(mclmc, tmp_path / "run", num_samples=2)
    wider = mlp((1,), activation="tanh", weight_std=1.2, likelihood=TINY.likelihood)
    with pytest.raises(ValueError, match="its (start|density_at_start) is"):
        run(hmc, tmp_path / "run", model=wider, num_samples=2)


def test_chains_in_threads_go_on(tmp_path):
    """The state of all chains is read back, though each has a program of its own."""
    how = dict(chain_method="threads", num_warmup=100)
    run(mclmc, tmp_path, num_samples=11, **how)
    assert_same(run(mclmc, tmp_path, num_samples=24, **how), run(mclmc, num_samples=24, **how))
