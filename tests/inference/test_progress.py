"""``progress_bar=False`` at a public function silences every bar under it, and nothing after it."""

import jax
import pytest
from test_blackjax_samplers import LINEAR, X, Y

import bayes_brg as brg
from bayes_brg.core import batching

CALLS = {
    brg.sample: ({}, "exact readout"),
    brg.ensemble: (dict(num_members=4, num_epochs=2), "train"),
    brg.hmc: (dict(num_warmup=2, num_samples=2, num_steps=2), "hmc"),
    brg.map_estimate: (dict(num_steps=5), "ascent"),
    brg.svi: (dict(num_steps=5, num_samples=4), "svi"),
    brg.tempered_smc: (dict(num_samples=20), "tempered_smc"),
}


@pytest.mark.parametrize("call", list(CALLS), ids=lambda call: call.__name__)
def test_a_bar_is_shown_unless_told_otherwise(call, monkeypatch):
    options, name = CALLS[call]
    shown, true = [], batching.tqdm

    def bar(*args, disable, desc, **rest):
        shown.append((desc, disable))
        return true(*args, disable=True, desc=desc, **rest)

    monkeypatch.setattr(batching, "tqdm", bar)
    for show in (False, True):
        shown.clear()
        call(LINEAR, X, Y[:, :1], key=jax.random.key(0), **options, progress_bar=show)
        # None: shown where the output is a terminal.
        wanted = None if show else True
        assert (name, wanted) in shown and all(disable is True for _, disable in shown if not show)
