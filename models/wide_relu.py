"""A wide ReLU network whose readout is trained by gradient descent, flowed to the prior: section 4.2 of the paper.

An ensemble of networks 2-10-10-2048-1 with N(0, 1) weights and no biases, all but the readout frozen, each trained by
per-sample descent on the same 200 points. Its exact Bayesian counterpart, the Gaussian posterior of the readout on
frozen features, is run beside it.

The flow in closed form is drawn over the numerical one, with the differences in standard errors (closed_form.csv). With
each member's features frozen it is exact. With random features, (65)–(76), it takes the readout to be independent of
the features: members that fitted their own features violate that until the flow has given their readouts back to the
prior, and the figure shows how far it is off.

    bayes-brg run models/wide_relu.py
    bayes-brg run models/wide_relu.py --set num_members=200 seed=1
"""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import bayes_brg as brg
from bayes_brg import plots

# The paper's 25 cutoffs, per datum, after Λ = 0.
CUTOFFS = [0, 1e-4, 5e-3, 7.5e-3, 0.01, 0.05, 0.075, 0.1, 0.5, 0.75, 1, 5, 7.5, 10, 50, 75, 100, 500, 750,
           1e3, 5e3, 7.5e3, 1e4, 5e4, 7.5e4, 1e5]
CHARACTERISTIC = jnp.array([2.0, 0.5])


def target(x):
    """(1 − x₁)² − ½(x₂ − x₁²): equation (91) with (a, b) = (1, −½)."""
    return (1 - x[..., :1]) ** 2 - 0.5 * (x[..., 1:] - x[..., :1] ** 2)


def model(settings):
    return brg.mlp((10, 10, settings.width), activation=("identity", "relu", "relu"), weight_std=1.0, scaling="none",
                   likelihood=brg.gaussian(1.0))


def data(settings, key):
    train_key, test_key, noise_key = jax.random.split(key, 3)
    x = jax.random.normal(train_key, (settings.num_train, 2))
    x_test = jax.random.normal(test_key, (settings.num_test, 2))
    y = target(x) + settings.noise * jax.random.normal(noise_key, (settings.num_train, 1))
    return brg.Data(x, y, x_test, target(x_test), characteristic=CHARACTERISTIC, truth=target(CHARACTERISTIC))


def probe(settings, key):
    return jax.random.normal(key, (settings.num_probe, 2))


def ensemble(model, x, y, key, settings):
    return brg.ensemble(model, x, y, key=key, num_members=settings.num_members, train="readout", optimizer="sgd",
                        learning_rate=settings.learning_rate, num_epochs=settings.num_epochs)


def readout(model, x, y, key, settings):
    return brg.readout_posterior(model, x, y, key=key, num_samples=settings.num_members)


def extras(run, flows):
    """Figure 11 with its closed forms, and how far they are from the members: with ``closed_forms=true``."""
    if not run.settings["closed_forms"]:
        return {}
    tables, series = [], {}
    for method, flow in flows.items():
        found, x = run.flows[method], CHARACTERISTIC[None]
        phi = found["phi"].isel(point=[found.attrs["characteristic_point"]])
        data = (run.data["x"].values, run.data["y"].values) if method == "readout" else None
        laws = {"frozen": brg.closed_form_flow(flow, x, data=data, keep=~found["diverged"].values),
                "random": brg.closed_form_flow(flow, x, features="random", keep=~found["diverged"].values)}
        series[method] = phi.where(~found["diverged"]), laws
        table = pd.DataFrame({"method": method, "cutoff": flow.cutoffs})
        for features, law in laws.items():
            difference = brg.closed_form_differences(phi, law).isel(point=0, output=0)
            table["mean"], table["variance"] = difference["mean"], difference["variance"]
            table[f"mean_{features}"] = law["mean"].values.ravel()
            table[f"variance_{features}"] = law["covariance"].values.ravel()
            for name in ("mean_z", "variance_z"):
                table[name.replace("_", f"_{features}_")] = difference[name]
        tables.append(table)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(10.4, 4.4 * len(series)), layout="constrained")
        halves = figure.subfigures(len(series), 1, squeeze=False)[:, 0]
        for half, table, (method, (phi, laws)) in zip(halves, tables, series.items(), strict=True):
            z = table[["mean_random_z", "variance_random_z"]].to_numpy()
            verdict = brg.verdicts.follow(table["cutoff"], z, np.ones_like(z), np.zeros_like(z), "it")
            share = table["variance"].iloc[0] / table["variance_random"].iloc[0]
            half.suptitle(f"{method}: (65) forgets that each readout was fitted to its own features; at Λ = 0 the "
                          f"members have {share:.2g} of its variance;\n{verdict}", x=0.01, ha="left", fontsize=10)
            plots.moments_along_flow({"members": phi}, truth=float(run.data["truth"].values[0]),
                                     closed_form={"closed form, features frozen": laws["frozen"],
                                                  "closed form, features random and independent (65)": laws["random"]},
                                     axes=half.subplots(1, 2))
    return {"phi_closed_form": figure, "closed_form": pd.concat(tables)}


experiment = brg.Experiment(
    name="wide_relu",
    model=model,
    data=data,
    probe=probe,
    infer={"ensemble": ensemble, "readout": readout},
    metric={"kind": "diagonal", "at": "draw"},
    flow={"cutoffs": CUTOFFS, "refill": "prior", "regulator": "sharp"},
    settings={"num_members": 1000, "width": 2048, "num_train": 200, "num_test": 200, "num_probe": 200, "noise": 0.0,
              "learning_rate": 1e-6, "num_epochs": 1000, "closed_forms": False, "seed": 0},
    couplings=3,
    extras=extras,
)
