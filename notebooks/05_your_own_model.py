# %% [markdown]
# # Your own model, your own data
#
# **Question.** You have a NumPyro model and a table, and have never heard of this package. What has to be changed? One
# line at most: a model is any callable `model(x, y)`, with `y=None` allowed. This notebook takes a network written as
# NumPyro's own Bayesian-neural-network example writes it, and then a Flax module, through everything: fit, Fisher
# metric, flow, cumulants, report.

# %%
import os
import tempfile
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.contrib.module import random_flax_module

import bayes_brg as brg
from bayes_brg import diagnostics, plots

SCALE = os.environ.get("BRG_NOTEBOOK_SCALE", "full")  # "small" is for a quick check: its numbers mean little
SMALL = SCALE == "small"
WARMUP, SAMPLES, CUTOFFS = (30, 30, 4) if SMALL else (1000, 1000, 12)
OUT = Path(tempfile.mkdtemp())
plt.rcParams.update(plots.STYLE)
pd.set_option("display.width", 160)

# %% [markdown]
# ## The data: a table
#
# Here a file of 60 rows is written, to stand for yours: how far a thrown ball flies, with angle, speed and a column
# that has nothing to do with it. `brg.load_table` reads CSV and NPZ, and says by row and column what is missing or is
# text.

# %%
rng = np.random.default_rng(0)
angle, speed = rng.uniform(15, 75, 60), rng.uniform(5, 15, 60)
distance = speed**2 / 9.81 * np.sin(2 * np.radians(angle)) + rng.normal(0, 0.5, 60)
pd.DataFrame({"angle": angle, "speed": speed, "day": rng.integers(1, 8, 60), "distance": distance}).to_csv(
    OUT / "throws.csv", index=False)

table = brg.load_table(OUT / "throws.csv", "distance")
print(f"{len(table.y)} rows; inputs {', '.join(table.columns)}; target {table.target}")
data = table.split(jax.random.key(0))  # a quarter held out; standardised by the other rows alone
x, y, x_test, y_test = data.x, data.y, data.x_test, data.y_test


# %% [markdown]
# ## A model written by others
#
# The next cell is a model in the manner of NumPyro's `examples/bnn.py`: its sites, its arguments, its noise that is
# inferred. It takes the hidden size as a third argument; binding it is the one line of adaptation.

# %%
def model(X, Y, D_H, D_Y=1):
    """Two hidden layers of D_H tanh units, unit normal weights, Gamma-distributed precision of the noise."""
    sizes = (X.shape[1], D_H, D_H, D_Y)
    z = X
    for layer, shape in enumerate(zip(sizes, sizes[1:], strict=False), start=1):
        w = numpyro.sample(f"w{layer}", dist.Normal(jnp.zeros(shape), jnp.ones(shape)))
        z = (jnp.tanh(z) if layer > 1 else z) @ w
    prec_obs = numpyro.sample("prec_obs", dist.Gamma(3.0, 1.0))
    with numpyro.plate("data", X.shape[0]):
        numpyro.sample("Y", dist.Normal(z, 1 / jnp.sqrt(prec_obs)).to_event(1), obs=Y)


# %%
bnn = partial(model, D_H=5)  # the line of adaptation


# %% [markdown]
# ## All of it, step by step
#
# The same function serves for both models: nothing in it knows what a model is made of.

# %%
def everything(model, key):
    """Fit by NUTS, metric, flow and cumulants; prints what it finds."""
    keys = jax.random.split(key, 2)
    posterior = brg.nuts(model, x, y, key=keys[0], num_warmup=WARMUP, num_samples=SAMPLES, progress_bar=False)
    print(str(diagnostics.convergence(model, posterior, x_test, progress_bar=False)).splitlines()[0])
    metric = brg.fisher(model, posterior, x, progress_bar=False)
    flow = brg.renormalize(model, posterior, metric, cutoffs=brg.cutoffs(metric, num=CUTOFFS), key=keys[1])
    print(flow.critical_scale(x_test, y_test, progress_bar=False))
    score = flow.log_predictive(x_test, y_test).mean("point")
    k = brg.cumulants(flow.predict(x_test[:2], progress_bar=False).isel(output=0), order=4)
    print(pd.DataFrame({
        "Λ": flow.cutoffs, "stiff": flow.stiff_fraction,
        "loss": flow.loss(x_test, y_test, progress_bar=False).median(("chain", "draw")).values,
        "log p per datum": score.values, "mean φ(x₁)": k.mean[:, 0], "± ": k.sem.mean[:, 0],
        "κ2": k.k2[:, 0, 0], "±": k.sem.k2[:, 0, 0], "κ4": k.k4[:, 0, 0, 0, 0], "±  ": k.sem.k4[:, 0, 0, 0, 0],
    }).to_string(index=False, float_format="{:.3g}".format))
    return flow


def shown(flow):
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
    plots.spectrum(flow.metric, ax=axes[0])
    plots.loss_along_flow(flow.loss(x_test, y_test, progress_bar=False), ax=axes[1])


bnn_flow = everything(bnn, jax.random.key(1))
shown(bnn_flow)

# %% [markdown]
# ## A Flax module
#
# `random_flax_module` puts a prior on the weights of any Flax module; the result is a NumPyro model, and no line has to
# be adapted. Its sites have names such as `nn/Dense_0.kernel`.

# %%
class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(8)(x)))


def flax_model(x, y=None):
    net = random_flax_module("nn", Net(), prior=dist.Normal(0, 1), input_shape=(1, 3))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(net(x), sigma).to_event(1), obs=y)


flax_flow = everything(flax_model, jax.random.key(2))
print("Sites:", ", ".join(flax_flow.posterior.samples))
shown(flax_flow)

# %% [markdown]
# ## Which of the two?
#
# Two models of one table: their laws along the flow can be compared, whatever they are made of.

# %%
test = {"mesh": x_test[:6], "num_permutations": 199, "progress_bar": False}
compared = brg.compare(bnn_flow, flax_flow, x_test, y_test, labels=("bnn", "flax"), cutoffs=[0.0], **test)
print(compared)
gap, sem = (float(compared.dataset[f"log_predictive_density_difference{s}"][0]) for s in ("", "_sem"))
print(brg.verdicts.ahead(gap, sem, "bnn", "flax", "nats of log predictive density per held-out datum"))

# %% [markdown]
# ## A run that stays, and its report
#
# The same as an experiment: it leaves a directory with everything (NetCDF and JSON, no pickle), is resumed if it is
# interrupted, and can be read by `brg.load_run` anywhere. `brg.report` makes one HTML page of it, with the figures
# inside. The method here hands over the draws made above; an experiment in a file of its own would make them. Where it
# is declared with `brg.table_experiment`, `bayes-brg run FILE.py --data throws.csv --target distance` puts your table
# in the place of its own.

# %%
for name, own, made in (("bnn", bnn, bnn_flow), ("flax", flax_model, flax_flow)):
    experiment = brg.Experiment(
        name=name,
        model=lambda settings, own=own: own,
        data=lambda settings, key: brg.Data(x, y, x_test, y_test),
        probe=None,
        infer={"nuts": lambda model, x, y, key, settings, made=made: made.posterior},
        flow={"cutoffs": made.cutoffs},
    )
    experiment.run(OUT / name, progress_bar=False)
    run = brg.load_run(OUT / name)
    page = brg.report(run, experiment=experiment)
    print(f"{run.name}: {run.flow.attrs['critical_scale_text']}; report: {page.name}, "
          f"{page.stat().st_size / 1024:.0f} KiB, with {page.read_text().count('<img')} figures")

# %% [markdown]
# **How to read it.** A model needs no special class. The noise is a parameter like others: it has a stiffness, and
# flows when Λ passes it, in its own support.
#
# **What to distrust.** The convergence verdict is the first line of each part for a reason. Hidden units can be
# permuted and flipped in sign, so the posterior of the weights has many equal modes; only statements about φ are
# compared. Fifteen held-out rows give the error bars that are printed, and no smaller ones. And which weights are
# sloppy depends on the inputs given to `brg.fisher`, here the training rows.
