"""An experiment whose flow is tempered: run, read back, reported, compared."""

import jax
import numpy as np
import pytest

import bayes_brg as brg

CUTOFFS = [0.0, 0.05, 0.5, 5.0]


def data(settings, key):
    x = jax.random.normal(key, (20, 2))
    return brg.Data(x, x[:, 0], x[:6] + 0.1, x[:6, 0])


def exact(model, x, y, key, settings):
    return brg.readout_posterior(model, x, y, key=key, num_samples=200)


def experiment(flow, infer=None, metric=None):
    return brg.Experiment(name="kinds", model=lambda s: brg.mlp((), likelihood=brg.gaussian(0.5)), data=data,
                          probe=None, infer=infer or {"exact": exact}, flow=flow, metric=metric or {})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    tempered = experiment({"kind": "tempered", "cutoffs": CUTOFFS, "num_moves": 4}, {"exact": exact, "again": exact})
    return tempered, tempered.run(tmp_path_factory.mktemp("kinds") / "run", progress_bar=False)


def test_a_run_keeps_what_the_sampler_says(run):
    declared, made = run
    found = made.sampling["exact"]
    np.testing.assert_allclose(found["power"], [1, 1, 0.1, 0.01])
    flow = declared.flow_of(made)
    assert isinstance(flow, brg.TemperedFlow)
    np.testing.assert_allclose(found["heat_capacity"], flow.heat_capacity, rtol=1e-5)
    np.testing.assert_allclose(made.flow["phi"], flow.predict(made.inputs("x_test")), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.flow["stiff_fraction"], flow.effective_directions / 2, rtol=1e-5)
    assert "exact" in made.spectra and "peak" in found.attrs["critical_scales"]
    text = brg.report(made).read_text(encoding="utf-8")
    assert "exact, along the flow" in text and "log evidence" in text and "could not be made" not in text


def test_stored_flows_are_compared(run):
    found = brg.compare((run[1], "exact"), (run[1], "again"), progress_bar=False)
    assert not found.differs and not found.dataset.attrs["shared_key"]


@pytest.mark.slow
def test_a_fibre_flow_runs(tmp_path):
    declared = experiment({"kind": "fibre", "cutoffs": [0.0, 1.0], "tolerance": 0.01},
                          metric={"kind": "full", "whiten": True, "at": "draw"})
    made = declared.run(tmp_path / "fibre", progress_bar=False)
    assert "overlap" in made.sampling["exact"] and made.flow["stiff_fraction"].values[0] == 1
    assert "exact, along the flow" in brg.report(made).read_text(encoding="utf-8")


def test_options_of_another_kind_are_refused(tmp_path):
    def never(*args):
        pytest.fail("inferred")

    for flow, error, message in (({"kind": "tempred"}, ValueError, "did you mean 'tempered'"),
                                 ({"kind": "tempered", "refill": "zero"}, TypeError, "no option 'refill'"),
                                 ({"num_moves": 3}, TypeError, "no option 'num_moves'")):
        with pytest.raises(error, match=message):
            experiment(flow, {"never": never}).run(tmp_path / "r", progress_bar=False)
