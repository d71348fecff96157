"""The peer that lives in an environment of its own, with a package of the same name that answers what is known."""

import sys

import jax
import numpy as np
import pytest

from bayes_brg.runs.bde_peer import bde
from bayes_brg.runs.predictive import as_predictive

STAND_IN = """
import numpy as np
class _Model:
    def __init__(self, loss, **settings): self.settings = settings
    def fit(self, x, y): self.x, self.y = x, y; self.classes_ = np.unique(y)
class BdeRegressor(_Model):
    def predict(self, x, raw):
        mean = x[:, 0] + self.y.mean() + np.arange(6).reshape(2, 3, 1)
        return np.stack([mean, 0 * mean - 1.0], -1)
class BdeClassifier(_Model):
    def predict_proba(self, x):
        assert self.settings["n_members"] == 3
        return np.tile([0.25, 0.75], (len(x), 1))
"""


@pytest.fixture
def interpreter(tmp_path):
    """This Python, with a stand-in for the package."""
    package = tmp_path / "site" / "bde"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "loss.py").write_text("class GaussianNLL: pass\nclass CategoricalCrossEntropy: pass\n")
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "site"} exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_numbers_come_back_as_a_mixture(interpreter):
    x, y = np.arange(8.0).reshape(4, 2), np.array([1.0, 2.0, 3.0, 6.0])
    found = as_predictive(bde(x, y, x[:3], key=jax.random.key(0), python=interpreter), 3, 0)
    np.testing.assert_allclose(found.loc, x[:3, 0] + 3.0 + np.arange(6)[:, None])
    np.testing.assert_allclose(found.scale, np.log1p(np.exp(-1.0)), rtol=1e-5)
    assert found.phi.shape == (2, 3, 3, 1)


def test_classes_not_seen_have_almost_no_probability(interpreter, monkeypatch):
    monkeypatch.setenv("BAYES_BRG_BDE_PYTHON", interpreter)
    x = np.arange(8.0).reshape(4, 2)
    found = bde(x, np.array([0, 2, 2, 0]), x, key=jax.random.key(0), num_classes=3, num_members=3)
    np.testing.assert_allclose(as_predictive(found, 4, 3).probs[0], np.tile([0.25, 0, 0.75], (4, 1)), atol=1e-9)


def test_what_is_missing_or_fails_is_said(interpreter, monkeypatch):
    monkeypatch.delenv("BAYES_BRG_BDE_PYTHON", raising=False)
    x = np.arange(8.0).reshape(4, 2)
    with pytest.raises(ModuleNotFoundError, match="BAYES_BRG_BDE_PYTHON"):
        bde(x, x[:, 0], x, key=jax.random.key(0))
    with pytest.raises(RuntimeError, match=r"(?s)status 1.*AssertionError"):
        bde(x, np.array([0, 1, 1, 0]), x, key=jax.random.key(0), num_classes=2, num_members=4, python=interpreter)
