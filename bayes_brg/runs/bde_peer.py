"""A peer that lives in an environment of its own: `sklearn-contrib-bde`, which needs an older BlackJAX."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .peers import peer_seed
from .predictive import Predictive

__all__ = ["bde"]

PYTHON = "BAYES_BRG_BDE_PYTHON"  # environment variable: the interpreter that has it
# What that interpreter is given to run; its arguments: a folder with data.npz, and settings as JSON.
PROGRAM = """
import json, os, sys
folder, settings = sys.argv[1], json.loads(sys.argv[2])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={settings.pop('devices')}"
import numpy as np
import bde, bde.loss
data, classes = np.load(os.path.join(folder, "data.npz")), settings.pop("num_classes")
if classes:
    model = bde.BdeClassifier(loss=bde.loss.CategoricalCrossEntropy(), **settings)
    model.fit(x=data["x"], y=data["y"])
    found = {"probs": np.asarray(model.predict_proba(data["x_test"])), "classes": np.asarray(model.classes_)}
else:
    model = bde.BdeRegressor(loss=bde.loss.GaussianNLL(), **settings)
    model.fit(x=data["x"], y=data["y"])
    raw = np.asarray(model.predict(data["x_test"], raw=True), np.float64)
    found = {"loc": raw[..., 0], "scale": np.logaddexp(0, raw[..., 1]) + 1e-6}
np.savez(os.path.join(folder, "found.npz"), **found)
"""


def bde(x, y, x_test, *, key, num_classes: int = 0, hidden_layers: tuple[int, ...] = (16, 16), num_members: int = 8,
        num_epochs: int = 200, num_warmup: int = 5000, num_steps: int = 2000, thinning: int = 2,
        max_rows: int = 4000, num_devices: int = 0, python: str = "") -> Predictive:
    """Bayesian deep ensembles of `sklearn-contrib-bde`: microcanonical Langevin chains from trained networks [1]_.

    The defaults are those that its own page shows for a table. Each network learns a mean and a standard deviation at
    every input.

    Parameters
    ----------
    x, y, x_test : arrays (n, dim), (n,), (m, dim)
        Standardised.
    key : jax.random.key
    num_classes : int
        0 for numbers.
    hidden_layers, num_members, num_epochs, num_warmup, num_steps, thinning
        Units of each layer; chains; at most so many passes over the data before; steps that tune; steps that are kept,
        every so many.
    max_rows : int
        Of more rows, the first so many.
    num_devices : int
        Chains at work at a time; 0: one for each core of the machine.
    python : str
        An interpreter that has the package; by default what the environment variable ``BAYES_BRG_BDE_PYTHON`` names.

    Returns
    -------
    Predictive

    Raises
    ------
    ModuleNotFoundError
        Where no interpreter is named.
    RuntimeError
        With the end of what it printed, where it failed.

    References
    ----------
    .. [1] Sommer, Robnik, Nozadze, Seljak and Rügamer, ICLR 2025, arXiv:2502.06335.
    """
    python = python or os.environ.get(PYTHON, "")
    if not python:
        raise ModuleNotFoundError("bde wants an environment of its own: python -m venv DIR && DIR/bin/pip install "
                                  f"sklearn-contrib-bde, then {PYTHON}=DIR/bin/python")
    settings: dict[str, Any] = {
        "hidden_layers": list(hidden_layers), "n_members": num_members, "seed": peer_seed(key), "epochs": num_epochs,
        "warmup_steps": num_warmup, "n_samples": num_steps, "n_thinning": thinning, "patience": 10, "lr": 1e-3,
        "validation_split": 0.15, "weight_decay": 1e-4, "num_classes": num_classes,
        "devices": num_devices or os.cpu_count() or 1}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "PYTHON"))}
    with tempfile.TemporaryDirectory() as folder:
        y = np.asarray(y)[:max_rows]
        np.savez(Path(folder) / "data.npz", x=np.asarray(x, np.float32)[:max_rows],
                 x_test=np.asarray(x_test, np.float32), y=y.astype(np.int32) if num_classes else y.astype(np.float32))
        done = subprocess.run([python, "-c", PROGRAM, folder, json.dumps(settings)], env=clean, capture_output=True,
                              text=True)
        if done.returncode:
            raise RuntimeError(f"bde ended with status {done.returncode}: {done.stderr[-500:]}")
        found = dict(np.load(Path(folder) / "found.npz"))
    if num_classes:
        probs = np.zeros((len(x_test), num_classes))
        probs[:, np.asarray(found["classes"], int)] = found["probs"]
        return Predictive(probs=(probs + 1e-12) / (probs + 1e-12).sum(axis=1, keepdims=True))
    loc, scale = found["loc"], found["scale"]  # (chain, draw, n)
    return Predictive(loc=loc.reshape(-1, loc.shape[-1]), scale=scale.reshape(-1, loc.shape[-1]), phi=loc[..., None])
