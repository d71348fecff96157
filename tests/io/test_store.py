"""Run directories: what is written comes back, whole or not at all, and opens without this package."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import bayes_brg as brg
from bayes_brg.io import arviz_bridge, store


def posterior_with_everything():
    rng = np.random.default_rng(0)
    samples = {"nn/Dense_0.kernel": jnp.asarray(rng.normal(size=(2, 5, 3, 1)), jnp.float32),
               "scale": jnp.asarray(rng.normal(size=(2, 5)), jnp.float32),
               "count": jnp.asarray(rng.integers(9, size=(2, 5)), jnp.int32)}
    stats = {"independent": True, "rate": 0.5, "note": "text", "log_joint": jnp.asarray(rng.normal(size=(2, 5))),
             "diverged": jnp.asarray(rng.random((2, 5)) < 0.5), "step_size": jnp.asarray([0.1, 0.2])}
    earlier = brg.Posterior({k: v + 1 for k, v in samples.items()}, {"independent": True}, "ensemble", ("scale",))
    return brg.Posterior(samples, stats, "ensemble", ("scale", "nn/Dense_0.kernel"), {10: earlier, 200: earlier})


def assert_same(a, b):
    assert (a.method, a.trained, list(a.samples), set(a.stats)) == (b.method, b.trained, list(b.samples), set(b.stats))
    for kind in ("samples", "stats"):
        for name, value in getattr(a, kind).items():
            other = getattr(b, kind)[name]
            assert np.array_equal(value, other), name
            assert np.asarray(value).dtype == np.asarray(other).dtype, name
    assert list(a.history) == list(b.history)
    for epoch in a.history:
        assert_same(a.history[epoch], b.history[epoch])


def test_posterior_round_trip(tmp_path):
    posterior = posterior_with_everything()
    store.save_posterior(tmp_path / "p.nc", posterior)
    assert_same(posterior, store.load_posterior(tmp_path / "p.nc"))
    assert [p.name for p in tmp_path.iterdir()] == ["p.nc"]  # no temporary file is left


def test_float64_survives(tmp_path, x64):
    posterior = brg.Posterior({"w": jnp.asarray(np.random.default_rng(0).normal(size=(1, 4)))})
    assert posterior.samples["w"].dtype == np.float64
    store.save_posterior(tmp_path / "p.nc", posterior)
    assert_same(posterior, store.load_posterior(tmp_path / "p.nc"))


def test_opens_with_xarray_and_arviz_alone(tmp_path):
    posterior = posterior_with_everything()
    store.save_posterior(tmp_path / "p.nc", posterior)
    group = xr.open_dataset(tmp_path / "p.nc", group="posterior")
    assert np.array_equal(group["nn%2FDense_0.kernel"].values, posterior.samples["nn/Dense_0.kernel"])
    assert group["nn%2FDense_0.kernel"].attrs["site"] == "nn/Dense_0.kernel"
    az, _ = arviz_bridge._arviz()
    idata = az.from_netcdf(tmp_path / "p.nc")
    assert idata["sample_stats"]["log_joint"].dims == ("chain", "draw")
    assert_same(posterior.replace(history={}), brg.from_arviz(idata))


def test_flax_module_round_trip(tmp_path):
    """Sites of a flax network, whose names hold "/", go through posterior, disk and prediction."""
    nn = pytest.importorskip("flax.linen")
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.module import random_flax_module

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.tanh(nn.Dense(3)(x)))

    def model(x, y=None):
        net = random_flax_module("nn", Net(), prior=dist.Normal(0, 1), input_shape=(1, 2))
        numpyro.sample("y", dist.Normal(net(x), 1).to_event(1), obs=y)

    x = jax.random.normal(jax.random.key(0), (4, 2))
    posterior = brg.prior(model, x, key=jax.random.key(1), num_samples=8)
    assert any("/" in site for site in posterior.samples)
    store.save_posterior(tmp_path / "p.nc", posterior)
    loaded = store.load_posterior(tmp_path / "p.nc")
    assert_same(posterior, loaded)
    assert np.array_equal(brg.predict(model, posterior, x), brg.predict(model, loaded, x))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    posterior = posterior_with_everything()
    store.save_posterior(tmp_path / "p.nc", posterior)
    before = (tmp_path / "p.nc").read_bytes()

    def fail(self, *args, **kwargs):
        if "log_joint" in self:
            raise RuntimeError("no memory")
        return original(self, *args, **kwargs)

    original = xr.Dataset.dump_to_store
    monkeypatch.setattr(xr.Dataset, "dump_to_store", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        store.save_posterior(tmp_path / "p.nc", posterior.replace(method="other"))
    assert (tmp_path / "p.nc").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.nc"]


def test_json_holds_what_json_can(tmp_path):
    store.write_json(tmp_path / "m.json", {"a": np.float32(np.nan), "b": float("inf"), "c": jnp.arange(2),
                                           "d": (1, "x"), "e": np.bool_(True), "f": len})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": None, "b": None, "c": [0, 1], "d": [1, "x"],
                                                            "e": True, "f": "len"}


@pytest.mark.parametrize("content", [None, b"", b"not netcdf"])
def test_unreadable_posterior(tmp_path, content):
    if content is not None:
        (tmp_path / "p.nc").write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match="p.nc"):
        store.load_posterior(tmp_path / "p.nc")


def test_netcdf_without_a_posterior(tmp_path):
    xr.Dataset({"a": 1}).to_netcdf(tmp_path / "p.nc", group="other", engine="h5netcdf")
    with pytest.raises(ValueError, match="no group 'posterior'; its groups are other"):
        store.load_posterior(tmp_path / "p.nc")


IDENTITY = {"experiment": "a", "settings": {"width": 3, "seed": 0}, "methods": ["m"], "options": {}}


def started(path, **changes):
    manifest = store.open_run(path, IDENTITY) | {"stages": {"posterior m": {"seconds": 1}}} | changes
    path.mkdir(exist_ok=True)
    store.write_manifest(path, manifest)
    return path


def test_open_run_goes_on_with_its_own(tmp_path):
    assert store.open_run(started(tmp_path / "r"), IDENTITY)["stages"] == {"posterior m": {"seconds": 1}}


@pytest.mark.parametrize(("changes", "message"), [
    ({"experiment": "b"}, "run of 'a', not of 'b'; choose another directory with --out"),
    ({"settings": {"width": 4, "seed": 0}}, "other settings: width = 3 there, 4 now; choose another"),
    ({"settings": {"width": 3, "seed": 0, "new": 1}}, "new = null there, 1 now"),
    ({"methods": ["m", "n"]}, "another methods"),
])
def test_open_run_refuses_another_run(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        store.open_run(started(tmp_path / "r"), IDENTITY | changes)


def test_open_run_starts_anew_where_nothing_was_inferred(tmp_path):
    path = started(tmp_path / "r", stages={"data": {"seconds": 1}})
    assert store.open_run(path, IDENTITY | {"settings": {"width": 4}})["settings"] == {"width": 4}


def test_open_run_refuses_foreign_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="thesis.tex.*no run"):
        store.open_run(tmp_path, IDENTITY)
    with pytest.raises(NotADirectoryError, match="is a file"):
        store.open_run(tmp_path / "thesis.tex", IDENTITY)


@pytest.mark.parametrize(("content", "message"), [
    (None, "not a run: it has no manifest.json"),
    ("{", "cannot be read"),
    ("[]", "holds no JSON object"),
    ('{"format": 1}', "lacks experiment, settings"),
    ('{"format": 99, "experiment": "a", "settings": {}, "methods": [], "stages": {}}', "99.*reads format 2 and 3"),
    ('{"format": 1, "experiment": "a", "settings": {}, "methods": [], "stages": {}}', "format 1; .*run the exper"),
])
def test_load_run_says_why_a_path_is_not_a_run(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        brg.load_run(tmp_path)


def test_a_run_of_this_format_is_read(tmp_path):
    """Of the numbers as they stand on people's disks: a manifest written by hand."""
    held = {"format": 2, "experiment": "a", "settings": {"seed": 0}, "methods": ["m"], "stages": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(held))
    assert brg.load_run(tmp_path).manifest == held
    assert json.loads((started(tmp_path / "r") / "manifest.json").read_text())["format"] == 3


def test_load_run_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run"):
        brg.load_run(tmp_path / "none")
    run = brg.load_run(started(tmp_path / "r"))
    with pytest.raises(FileNotFoundError, match="flow.nc; the run is not finished"):
        _ = run.flow


def test_import_is_silent_and_leaves_arviz_alone():
    """Importing the package neither warns nor imports ArviZ or matplotlib, which take seconds."""
    code = "import sys, bayes_brg; print([m for m in ('arviz', 'matplotlib.pyplot') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
