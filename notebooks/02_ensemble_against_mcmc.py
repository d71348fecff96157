# %% [markdown]
# # An ensemble against MCMC, scale by scale
#
# **Question.** Training many networks by gradient descent is cheap, sampling the posterior by MCMC is not. When the
# predictions of the two differ, do they differ in what the data say firmly (stiff directions) or in what the data
# leave open (sloppy ones)? Flow both with the renormalisation group and compare at every cutoff Λ: a difference that
# is gone once the directions below Λ have been given back to the prior lived in those directions.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bayes_brg as brg
from bayes_brg import diagnostics, plots

SCALE = os.environ.get("BRG_NOTEBOOK_SCALE", "full")  # "small" is for a quick check: its numbers mean little
SMALL = SCALE == "small"
MEMBERS, EPOCHS = (64, 100) if SMALL else (800, 2000)
WARMUP, SAMPLES = (50, 50) if SMALL else (1000, 1000)
CUTOFFS, PERMUTATIONS = (5, 199) if SMALL else (12, 999)
plt.rcParams.update(plots.STYLE)
keys = iter(jax.random.split(jax.random.key(0), 20))

# %% [markdown]
# ## A small network and three posteriors
#
# One hidden layer of tanh units on a one-dimensional regression with a gap in the inputs, so that there is something
# to be uncertain about.

# %%
NOISE = 0.1
x = jnp.concatenate([jnp.linspace(-2, -0.6, 12), jnp.linspace(0.6, 2, 12)])[:, None]
y = jnp.sin(2 * x) + NOISE * jax.random.normal(next(keys), x.shape)
x_test = jnp.linspace(-2.2, 2.2, 24)[:, None]
y_test = jnp.sin(2 * x_test) + NOISE * jax.random.normal(next(keys), x_test.shape)
net = brg.mlp((8,), activation="tanh", weight_std=2.0, bias_std=1.0, likelihood=brg.gaussian(NOISE))

posteriors = {
    "NUTS": brg.nuts(net, x, y, key=next(keys), num_warmup=WARMUP, num_samples=SAMPLES, progress_bar=False),
    "gradient descent": brg.ensemble(net, x, y, key=next(keys), num_members=MEMBERS, train="all", objective="loss",
                                     optimizer="adam", learning_rate=0.02, num_epochs=EPOCHS, progress_bar=False),
    "randomised MAP": brg.ensemble(net, x, y, key=next(keys), num_members=MEMBERS, train="all",
                                   objective="randomized_map", optimizer="adam", learning_rate=0.02,
                                   num_epochs=EPOCHS, progress_bar=False),
}

# %% [markdown]
# Before anything is compared with it: has NUTS converged, in function space? Hidden units can be permuted, so that
# the weights themselves need not mix; the outputs must.

# %%
print(diagnostics.convergence(net, posteriors["NUTS"], x_test, progress_bar=False))

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
fine = jnp.linspace(-2.5, 2.5, 80)[:, None]
for number, (ax, (name, posterior)) in enumerate(zip(axes, posteriors.items(), strict=True)):
    phi = np.asarray(brg.predict(net, posterior, fine, progress_bar=False))[..., 0].reshape(-1, len(fine))
    low, middle, high = np.quantile(phi, [0.05, 0.5, 0.95], axis=0)
    ax.fill_between(fine[:, 0], low, high, color=plots.COLOURS[number], alpha=0.3, label="5 % to 95 %")
    ax.plot(fine[:, 0], middle, color=plots.COLOURS[number], linestyle=plots.LINES[number], label="median")
    ax.plot(x, y, "k.", markersize=4, label="data")
    ax.set(title=name, xlabel="x")
axes[0].set_ylabel("φ(x)")
axes[0].legend()

# %% [markdown]
# ## Flow all three, compare at each Λ
#
# Every posterior has its own metric, at each of its draws; the cutoffs are common. Each flow has a key of its own: one
# key would give all the same prior draws and hide differences.

# %%
metrics = {name: brg.fisher(net, p, x, progress_bar=False) for name, p in posteriors.items()}
cutoffs = brg.cutoffs(metrics["NUTS"], num=CUTOFFS)
flows = {name: brg.renormalize(net, p, metrics[name], cutoffs=cutoffs, key=next(keys))
         for name, p in posteriors.items()}
compared = {}
for name in ("gradient descent", "randomised MAP"):
    compared[name] = brg.compare(flows["NUTS"], flows[name], x_test, y_test, labels=("NUTS", name),
                                 num_permutations=PERMUTATIONS, progress_bar=False)
    print(compared[name], "\n")

# %%
for name, found in compared.items():
    fig, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    found.plot(axes=axes)
    fig.suptitle(f"NUTS against {name}")

# %%
stiff = flows["NUTS"].stiff_fraction
for name, found in compared.items():
    d = found.dataset
    relative = d["wasserstein_relative"].values
    print(f"NUTS against {name}: the distance of the predictive laws is {relative[0]:.3g} of their standard deviation "
          f"at Λ = 0 and {relative[-1]:.3g} at Λ = {cutoffs[-1]:.3g}.")
    different = np.flatnonzero(d["differs"].values)
    if different.size:
        last = different[-1]
        print(f"   It is found up to Λ = {cutoffs[last]:.3g}, where {stiff[last]:.1%} of the parameters are stiff.")
    else:
        print("   No difference is found at any Λ with so many draws.")
    gain, error = (float(d[f"log_predictive_density_difference{s}"][0]) for s in ("", "_sem"))
    print("   " + str(brg.verdicts.ahead(gain, error, "NUTS", name, "nats per held-out datum at Λ = 0")))
    ends = "At the last Λ, where both are the prior, the laws of NUTS and " + name
    print("   " + str(brg.verdicts.told_apart(d["energy_p"][-1:], ends)))


def spread(posterior):
    """Log of the standard deviation of φ at the data, mean over points, with a standard error over blocks."""
    phi = np.asarray(brg.predict(net, posterior, x, progress_bar=False), float).reshape(posterior.size, -1)
    blocks = np.array([np.log(b.std(axis=0, ddof=1)).mean() for b in np.array_split(phi, 16)])
    return blocks.mean(), blocks.std(ddof=1) / 4


widths = {name: spread(p) for name, p in posteriors.items()}
for name in ("gradient descent", "randomised MAP"):
    gap, error = widths[name][0] - widths["NUTS"][0], np.hypot(widths[name][1], widths["NUTS"][1])
    print(brg.verdicts.signed(gap, error, f"log of the spread over members at the data, {name} less NUTS"))

# %% [markdown]
# ## The control: where the ensemble is exact
#
# If only the readout learns and is linear in its weights, randomised MAP draws *exact* posterior samples. The same
# comparison must then find nothing. It is the check that a difference found above is one of the posteriors.

# %%
readout = {
    "exact readout posterior": brg.readout_posterior(net, x, y, key=next(keys), num_samples=MEMBERS,
                                                     progress_bar=False),
    "randomised MAP": brg.ensemble(net, x, y, key=next(keys), num_members=MEMBERS, train="readout",
                                   objective="randomized_map", progress_bar=False),
}
exact = []
for posterior in readout.values():
    metric = brg.fisher(net, posterior, x, progress_bar=False)
    exact.append(brg.renormalize(net, posterior, metric, cutoffs=cutoffs, key=next(keys)))
control = brg.compare(*exact, x_test, y_test, labels=tuple(readout), num_permutations=PERMUTATIONS,
                      progress_bar=False)
print(f"Exact against randomised MAP on the readout: {control.verdict}.")
print(brg.verdicts.told_apart(control.dataset["energy_p"], "The laws of exact draws and of randomised MAP"))

# %% [markdown]
# **How to read it.** Plain gradient descent knows neither the noise nor, once it has run long, the prior; randomised
# MAP puts back both as noise on targets and anchors, and is exact where the network is linear in what it trains.
# Whether that shows, and up to which Λ, the sentences above say.
#
# **What to distrust.** Gradient descent's answer depends on when it is stopped. NUTS is only as good as the verdict on
# its convergence above. "No difference found" is a statement about the number of draws, and the number of points of
# the mesh. With metrics of their own, equal Λ means equal Fisher information under each posterior's own metric, not
# the same set of weights.
