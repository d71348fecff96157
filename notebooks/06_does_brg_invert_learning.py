# %% [markdown]
# # Does the renormalisation group invert learning?
#
# **Question.** Learning goes from the prior to the posterior as data come in; the Bayesian renormalisation group goes
# from the posterior back to the prior as Λ grows. Are they the same road? If so, each scale Λ of the flow is one stage
# t*(Λ) of learning. `diagnostics.learning_vs_flow` measures it: the distance between the predictive law at every stage
# of learning and at every scale, and where along learning each scale has its nearest law.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayes_brg as brg
from bayes_brg import diagnostics, plots

SCALE = os.environ.get("BRG_NOTEBOOK_SCALE", "full")  # "small" is for a quick check: its numbers mean little
SMALL = SCALE == "small"
DRAWS, CUTOFFS, TESTS = (200, 4, 19) if SMALL else (2000, 12, 199)
MEMBERS, EPOCHS = (60, 64) if SMALL else (600, 4096)
plt.rcParams.update(plots.STYLE)
pd.set_option("display.width", 160)
keys = iter(jax.random.split(jax.random.key(0), 60))

# %% [markdown]
# ## Where the answer is known
#
# Linear regression with a Gaussian prior, correlated inputs and prior scales that differ. The posterior given an amount
# t of data (the likelihood to the power t/n) is Gaussian, in closed form. For this model the smooth *un-learning*
# regulator, in the eigenbasis of the prior-whitened metric, is the exact inverse of Bayes: the flow of the posterior of
# all n data to Λ must be the posterior of t = 1/Λ data.

# %%
N, NOISE = 50, 0.4
SCALES = jnp.array([1.0, 0.5, 2.0])
mixing = jnp.array([[1.0, 0.6, 0.0], [0.0, 0.8, 0.3], [0.0, 0.0, 0.5]])
inputs = jax.random.normal(next(keys), (N, 3)) @ mixing
truth = jnp.array([0.8, -0.7, 1.5])
targets = inputs @ truth + NOISE * jax.random.normal(next(keys), (N,))


def linear(x, y=None):
    import numpyro
    import numpyro.distributions as dist

    w = numpyro.sample("w", dist.Normal(jnp.zeros(3), SCALES).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def with_data(t, key):
    """Exact posterior draws given an amount t of data."""
    a, b = np.asarray(inputs, float), np.asarray(targets, float)
    covariance = np.linalg.inv(np.diag(1 / np.asarray(SCALES, float) ** 2) + t * a.T @ a / N / NOISE**2)
    mean = covariance @ (t * a.T @ b / N / NOISE**2)
    noise = np.asarray(jax.random.normal(key, (DRAWS, 3)), float)
    draws = mean + noise @ np.linalg.cholesky(covariance).T
    return brg.Posterior({"w": jnp.asarray(draws.reshape(4, -1, 3), jnp.float32)}, {"independent": True},
                         f"exact, {t:g} data")


def matches(regulator, kind, largest):
    """The flow from Λ = 1/N to `largest`, against stages of learning some way beyond both ends."""
    posterior = with_data(N, next(keys))
    metric = brg.fisher(linear, posterior, inputs, kind=kind, at="mean", whiten=True, progress_bar=False)
    cutoffs = np.geomspace(1 / N, largest or 1.001 * metric.values()[-1], CUTOFFS)
    flow = brg.renormalize(linear, posterior, metric, cutoffs=cutoffs, key=next(keys), regulator=regulator)
    stages = {t: with_data(t, next(keys)) for t in np.geomspace(0.5 / cutoffs[-1], 1.6 * N, 8 if SMALL else 13)}
    mesh = jax.random.normal(next(keys), (6, 3))
    return diagnostics.learning_vs_flow(stages, flow, mesh, key=next(keys), num_permutations=TESTS,
                                        max_samples=DRAWS, progress_bar=False)


def as_table(found, expected=None):
    rows = pd.DataFrame({"Λ": found["cutoff"].values, "t*": found["best_time"].values,
                         "±": found["best_time_error"].values})
    if expected is not None:
        rows["1/Λ"] = expected
        rows["z"] = (np.log(rows["t*"]) - np.log(expected)) / (rows["±"] / rows["t*"])
    rows["at an end"] = found["at_edge"].values
    rows["W2 there"], rows["± "] = found["best_distance"].values, found["best_distance_error"].values
    rows["p"] = found["best_p_value"].values
    return rows


exact = matches(brg.unlearning(N), "full", 0.5)
rows = as_table(exact, 1 / exact["cutoff"].values)
print(rows.to_string(index=False, float_format="{:.3g}".format))
print(f"t*(Λ) against 1/Λ, in standard errors: largest |z| = {rows['z'].abs().max():.2f} of {len(rows)} scales, root "
      f"mean square {np.sqrt((rows['z'] ** 2).mean()):.2f}. Scales share draws, so these are not independent.")
print(brg.verdicts.agree(np.log(rows["t*"]), rows["±"] / rows["t*"], np.log(rows["1/Λ"]), "ln t*(Λ), against ln 1/Λ"))

# %%
fig, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
plots.learning_against_flow(exact, time_label="amount of data $t$", ax=axes[0])
axes[1].errorbar(rows["Λ"], rows["t*"], 1.96 * rows["±"], color=plots.COLOURS[0], marker="o", linestyle="none",
                 capsize=2, label=r"$t^*(\Lambda)$, 95 %")
axes[1].plot(rows["Λ"], 1 / rows["Λ"], color=plots.COLOURS[1], linestyle="--", label=r"$1/\Lambda$")
axes[1].set(xscale="log", yscale="log", xlabel=r"cutoff $\Lambda$ (per datum, whitened)", ylabel="amount of data $t$")
axes[1].legend()

# %% [markdown]
# ### The paper's own regulator on the same model
#
# Sharp, parameter by parameter, the flow takes whole directions at once. Is it on the road of learning all the same?

# %%
sharp = matches("sharp", "diagonal", None)
print(as_table(sharp).to_string(index=False, float_format="{:.3g}".format))
for name, found in (("un-learning", exact), ("sharp", sharp)):
    worst = int(found["best_distance"].values.argmax())
    print(f"{name}: the nearest stage of learning is at most {float(found['best_distance'][worst]):.2g} ± "
          f"{float(found['best_distance_error'][worst]):.2g} away, at Λ = {float(found['cutoff'][worst]):.3g}; the "
          f"smallest p-value of a match is {float(found['best_p_value'].min()):.3g}.")
    print(brg.verdicts.told_apart(found["best_p_value"], f"{name}: the laws of the flow and of its nearest stages"))

# %% [markdown]
# ## A trained ensemble
#
# Now what the paper draws in its Figures 1 and 2: networks trained by gradient descent, all weights learning, with
# their state kept along training. The flow starts from the last epoch. If it were the inverse of training, each Λ
# would have an epoch with the same predictive law.

# %%
net = brg.mlp((16, 16), activation="tanh", weight_std=1.5, bias_std=0.3, likelihood=brg.gaussian(0.1))
x = jax.random.uniform(next(keys), (30, 1), minval=-2.0, maxval=2.0)
y = jnp.sin(2 * x) + 0.1 * jax.random.normal(next(keys), x.shape)
mesh = jnp.linspace(-2, 2, 9)[:, None]
epochs = [0, *(2**i for i in range(int(np.log2(EPOCHS)) + 1))]
trained = brg.ensemble(net, x, y, key=next(keys), num_members=MEMBERS, train="all", optimizer="gd", learning_rate=0.02,
                       num_epochs=EPOCHS, record=epochs, progress_bar=False)


def against_training(kind, regulator="sharp"):
    whiten = regulator != "sharp"
    metric = brg.fisher(net, trained, x, kind=kind, whiten=whiten, progress_bar=False)
    low = 1 / len(x) if whiten else metric.values()[-1] * 1e-5
    cutoffs = np.concatenate([[0.0], np.geomspace(low, metric.values()[-1] * 1.001, CUTOFFS - 1)])
    flow = brg.renormalize(net, trained, metric, cutoffs=cutoffs, key=next(keys), regulator=regulator)
    return diagnostics.learning_vs_flow(trained.history, flow, mesh, key=next(keys), num_permutations=TESTS,
                                        progress_bar=False)


kinds = {"sharp, weights": against_training("diagonal"), "sharp, eigenmodes": against_training("full"),
         "un-learning, eigenmodes": against_training("full", brg.unlearning(len(x)))}

# %%
fields = {e: np.asarray(brg.predict(net, p, mesh, progress_bar=False)).reshape(-1, len(mesh))
          for e, p in trained.history.items()}
way = diagnostics.gaussian_wasserstein(fields[0], fields[EPOCHS])
spread = float(np.sqrt(fields[0].var(axis=0, ddof=1).sum()))
print(f"From the prior to the last epoch it is W2 = {way.value:.3g} ± {way.sem:.2g}; the prior's total standard "
      f"deviation is {spread:.3g}.\n")
for name, found in kinds.items():
    print(name)
    print(as_table(found).to_string(index=False, float_format="{:.3g}".format))
    inner = ~found["at_edge"].values
    worst = int(found["best_distance"].values.argmax())
    excluded = int((found["best_p_value"] < 0.05).sum())
    far = float(found["best_distance"][worst])
    print(f"{int(inner.sum())} of {len(inner)} scales have their nearest epoch inside training. At Λ = "
          f"{float(found['cutoff'][worst]):.3g} the nearest epoch is {far:.3g} ± "
          f"{float(found['best_distance_error'][worst]):.2g} away, {far / way.value:.0%} of the whole way of "
          f"learning. At {excluded} of {len(inner)} scales the two laws are told apart (p < 0.05).")
    print(brg.verdicts.told_apart(found["best_p_value"], "The laws of the flow and of its nearest epochs"))
    ordered = np.diff(found["best_time"].values[found["cutoff"].values > 0])
    print(f"t*(Λ) falls as Λ grows at {int((ordered <= 0).sum())} of {len(ordered)} steps.\n")

# %%
fig, axes = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
for ax, (name, found) in zip(axes, kinds.items(), strict=True):
    plots.learning_against_flow(found, time_label="epoch", ax=ax)
    ax.set_title(name, loc="left")

# %% [markdown]
# **How to read it.** In the conjugate model the statement that the renormalisation group inverts learning is a
# theorem, which the first measurement tests. For trained networks it is a picture; the last sentences say how far the
# road between the last epoch and the prior is off. A small p-value at a match means: the nearest epoch is *not* the law
# at Λ.
#
# **What to distrust.** t* exists for any two families of laws; it is a match only where the distance at it is small
# and the p-value is not. Members are shared between training and flow, which makes those p-values conservative.
# "Wasserstein" sees mean and covariance only. And epochs are not amounts of data: full-batch gradient descent has no
# noise, so that nothing says how much of an epoch is worth one datum.
