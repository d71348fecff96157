# %% [markdown]
# # What a deep network forgets
#
# **Question.** The renormalisation group discards what the data cannot tell apart at the scale Λ. For a readout the
# discarded directions are eigenmodes of the Fisher metric, straight lines in parameter space. In a deep network those
# lines hold only near the draw they were computed at. Which flow still says something about the function at Λ, what
# does it forget of the weights, and how many directions do the data determine?

# %%
import os
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayes_brg as brg
from bayes_brg import diagnostics, plots

SCALE = os.environ.get("BRG_NOTEBOOK_SCALE", "full")  # "small" is for a quick check: its numbers mean little
SMALL = SCALE == "small"
WIDTH, DRAWS, WARMUP = (6, 8, 100) if SMALL else (16, 16, 500)
CUTOFFS = np.array([0.0, 0.1, 1.0, 10.0]) if SMALL else np.array([0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
plt.rcParams.update(plots.STYLE)
pd.set_option("display.width", 160)
keys = iter(jax.random.split(jax.random.key(0), 20))

# %% [markdown]
# ## A posterior
#
# Two hidden layers of tanh units, one input, 40 noisy points of a sine; all weights are sampled by Hamiltonian Monte
# Carlo that solves the prior exactly.

# %%
NOISE = 0.1
net = brg.mlp((WIDTH, WIDTH), activation="tanh", weight_std=1.5, bias_std=0.5, likelihood=brg.gaussian(NOISE))
x = jnp.sort(jax.random.uniform(next(keys), (40, 1), minval=-2.0, maxval=2.0), axis=0)
y = jnp.sin(2 * x) + NOISE * jax.random.normal(next(keys), x.shape)
x_test = jax.random.uniform(next(keys), (100, 1), minval=-2.0, maxval=2.0)
y_test = jnp.sin(2 * x_test) + NOISE * jax.random.normal(next(keys), x_test.shape)
line = jnp.linspace(-2, 2, 61)[:, None]
posterior = brg.split_hmc(net, x, y, key=next(keys), num_warmup=WARMUP, num_samples=DRAWS, thinning=10,
                          progress_bar=False)
print(posterior)
metric = brg.fisher(net, posterior, x, kind="full", whiten=True, progress_bar=False)
shares = [f"{share:.1%}" for share in (metric.values()[None] >= CUTOFFS[1:, None]).sum(1) / posterior.size
          / sum(v[0, 0].size for v in posterior.samples.values())]
print(f"Directions stiffer than Λ = {', '.join(f'{c:g}' for c in CUTOFFS[1:])}: {', '.join(shares)}")

# %% [markdown]
# ## Four flows
#
# - in the **parameters**: each weight is kept or redrawn by its own stiffness;
# - in **eigenmodes** of the whitened metric at each draw: straight lines;
# - along the **fibre**: what the data tell apart at Λ is kept, all else is drawn from the prior given it;
# - **tempered**: the likelihood to the power 1/(nΛ), learning undone.

# %%
flow_key = next(keys)


def straight(**how):
    return brg.renormalize(net, posterior, brg.fisher(net, posterior, x, whiten=True, progress_bar=False, **how),
                           cutoffs=CUTOFFS, key=flow_key)


flows = {
    "parameters": straight(), "eigenmodes": straight(kind="full"),
    "fibre": brg.renormalize_fibre(net, posterior, metric, cutoffs=CUTOFFS, key=flow_key, progress_bar=False),
    "tempered": brg.renormalize_tempered(net, posterior, x, y, cutoffs=CUTOFFS, key=flow_key, progress_bar=False),
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # that eigenmodes leave their linearisation is measured below
    table = diagnostics.side_by_side(flows, x_test, y_test)
print(table.drop(columns="seconds").to_string(index=False, float_format="{:.3g}".format))

# %%
figure = plots.flows_side_by_side(table)

# %% [markdown]
# ## The functions
#
# The same draws along each flow. What has been forgotten is seen where the draws spread.

# %%
shown = CUTOFFS[[1, len(CUTOFFS) // 2, -1]]
fig, axes = plt.subplots(len(flows), 3, figsize=(12, 10), sharex=True, sharey=True, layout="constrained")
for row, (name, flow) in zip(axes, flows.items(), strict=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        phi = flow.predict(line, progress_bar=False)
    for ax, cutoff in zip(row, shown, strict=True):
        lines = phi.sel(cutoff=cutoff).values[..., 0].reshape(-1, len(line))[:24]
        ax.plot(line[:, 0], lines.T, color=plots.COLOURS[0], linewidth=0.8, alpha=0.6)
        ax.plot(x[:, 0], y[:, 0], ".", color="black", markersize=3)
        ax.set_title(f"{name}, Λ = {cutoff:g}", loc="left")
        ax.set_ylim(-3, 3)
    row[0].set_ylabel(r"$\phi(x)$")
for ax in axes[-1]:
    ax.set_xlabel("$x$")

# %% [markdown]
# ## Where straight lines end
#
# How far the output moves from its linearisation along the eigenmodes, in units of the noise. Beyond 1, what the flow
# shows is the failure of the straight lines.

# %%
bent = flows["eigenmodes"].linearity(x)
print(bent.median(("chain", "draw")).to_series().to_string(float_format="{:.3g}".format))

# %% [markdown]
# ## How many directions the data determine
#
# Twice the heat capacity of the tempered flow, with its standard error, beside the number of stiff modes.

# %%
tempered = flows["tempered"]
count = pd.DataFrame({"Λ": CUTOFFS, "2C": tempered.effective_directions, "±": tempered.effective_directions_sem,
                      "log Z": tempered.log_evidence, "± ": tempered.log_evidence_sem,
                      "stiff modes": metric.geometry.size() * flows["fibre"].stiff_fraction})
print(count.to_string(index=False, float_format="{:.3g}".format))

# %%
fig, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
ax.errorbar(CUTOFFS[1:], count["2C"][1:], 1.96 * count["±"][1:], marker="o", capsize=2, color=plots.COLOURS[0],
            label="$2C$, tempered, 95 %")
ax.plot(CUTOFFS[1:], count["stiff modes"][1:], marker="s", color=plots.COLOURS[1],
        label=r"modes with $\lambda\geq\Lambda$")
ax.set(xscale="log", xlabel=r"cutoff $\Lambda$ (per datum, whitened)", ylabel="directions")
ax.legend()

# %% [markdown]
# ## Verdict

# %%
first = table[table["cutoff"] == CUTOFFS[1]].set_index("flow")
print(f"At Λ = {CUTOFFS[1]:g}, with {first.loc['fibre', 'kept']:.1%} of the directions kept, the median held-out loss "
      f"is {first.loc['fibre', 'loss_ratio']:.2g} × that of the posterior along the fibre, "
      f"{first.loc['tempered', 'loss_ratio']:.2g} × tempered, {first.loc['parameters', 'loss_ratio']:.2g} × in the "
      f"parameters and {first.loc['eigenmodes', 'loss_ratio']:.2g} × in eigenmodes.")
fibre_loss = np.log(flows["fibre"].loss(x_test, y_test, progress_bar=False))
for other in ("tempered", "parameters", "eigenmodes"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        gain = (np.log(flows[other].loss(x_test, y_test, progress_bar=False)) - fibre_loss).sel(cutoff=CUTOFFS[1])
    chains = gain.mean("draw").values  # four chains: their means are independent
    print(brg.verdicts.ahead(chains.mean(), chains.std(ddof=1) / np.sqrt(len(chains)), "the fibre flow",
                             f"the flow of kind {other!r}", f"ln held-out loss at Λ = {CUTOFFS[1]:g}"))
print(f"The weights along the fibre have a correlation of {first.loc['fibre', 'overlap']:.2f} with those they started "
      f"from; in the parameters {first.loc['parameters', 'overlap']:.2f}.")
holds = table[(table["loss_ratio"] < 2) & (table["cutoff"] > 0)].groupby("flow")["cutoff"].max()
for name in flows:
    print(f"{name}: the loss stays below twice the posterior's up to "
          + (f"Λ = {holds[name]:g}" if name in holds else "no cutoff of these"))
worst = float(bent.median(("chain", "draw")).sel(cutoff=CUTOFFS[1]))
print(f"Eigenmodes at Λ = {CUTOFFS[1]:g} leave their linearisation by {worst:.2g} standard deviations of the noise: "
      + ("what they show there is no statement about the posterior." if worst > 1 else "straight lines hold there."))

# %% [markdown]
# **How to read it.** Loss ratios are those of medians over few draws: good to ten or twenty per cent. An overlap near 0
# says that a walk has left its start in most directions.
#
# **What to distrust.** The fibre's law is that of its coordinates at the probe inputs: elsewhere the function is given
# to the prior, which is meant and shows between distant inputs. The tempered flow is exact where its moves mix: its
# `diagnostics` have the acceptance and the ancestors. And 2C counts directions as a linear model would.
