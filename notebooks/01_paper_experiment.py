# %% [markdown]
# # The paper's experiment
#
# **Question.** A wide ReLU network, all of it frozen but for its readout, is trained many times over on 200 points of
# a quadratic function (section 4.2 of the paper). How much of what the readouts have learned can be given back to the
# prior before the predictions notice? And does the answer depend on what one calls a direction: a single weight, or an
# eigenvector of the Fisher metric?
#
# At a cutoff Λ, every direction whose Fisher information per datum is below Λ is *sloppy* and is redrawn from the
# prior. The rest is *stiff* and stays as learned. Λ = 0 is the trained ensemble; above the stiffest direction there is
# nothing but the prior.

# %%
import os
import tempfile
import warnings
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayes_brg as brg
from bayes_brg import plots

SCALE = os.environ.get("BRG_NOTEBOOK_SCALE", "full")  # "small" is for a quick check: its numbers mean little
SMALL = SCALE == "small"
WIDE = {"num_members": 16, "width": 128, "num_epochs": 50, "num_probe": 50} if SMALL else {"num_members": 400}
DEEP = {"num_members": 16, "width": 8, "num_epochs": 50, "num_probe": 30} if SMALL else {"num_members": 400}
MODELS = next(p / "models" for p in (Path.cwd(), *Path.cwd().parents) if (p / "models" / "wide_relu.py").is_file())
RUNS = Path(tempfile.mkdtemp())
plt.rcParams.update(plots.STYLE)
pd.set_option("display.width", 160)

# %% [markdown]
# ## The run
#
# The experiment is declared in `models/wide_relu.py`; the command `bayes-brg run models/wide_relu.py` does the same as
# the next cell. The full number of members there is 1,000; fewer are used here, which changes the error bars only.

# %%
wide = brg.load_experiment(MODELS / "wide_relu.py")
wide.run(RUNS / "wide_relu", WIDE, progress_bar=False)
run = brg.load_run(RUNS / "wide_relu")
flow = run.flow
kept = ~flow["diverged"]
phi = flow["phi"].isel(point=flow.attrs["characteristic_point"], output=0).where(kept)
loss = flow["loss"].where(kept)
truth = float(run.data["truth"].values[0])
critical = brg.critical_scale(loss)
print(f"{flow.attrs['num_members']} members, {flow.attrs['num_diverged']} diverged.")
print(f"In the parameter basis: {critical}.")
for method in run.methods:
    found = run.flows[method]
    print(f"{method}: " + str(brg.verdicts.flat(found["loss"].where(~found["diverged"]), found["stiff_fraction"],
                                                 brg.verdicts.zero_share(run.spectra[method]))))


# %% [markdown]
# ## Figures 8 to 11
#
# Figure 8: the trained networks' output at the characteristic input.

# %%
def finite(values):
    values = np.asarray(values, float).ravel()
    return values[np.isfinite(values)]


fig, ax = plt.subplots(figsize=(5.4, 3.8), layout="constrained")
plots.distribution(finite(phi.sel(cutoff=0)), truth=truth, ax=ax)
first = run.summary.iloc[0]
print(brg.verdicts.gaussian(phi.sel(cutoff=0).values, independent=True))
print(brg.verdicts.agree(first["phi_mean"], first["phi_mean_se"], truth, "Its mean, against the true value"))

# %% [markdown]
# At the end of the flow the readouts are prior draws, and so are the features: φ has the law of the network at
# initialisation. Without biases its excess kurtosis at one input is known exactly, 3 (Π_ℓ r_ℓ − 1) over the hidden
# layers, with r = 1 + 2/n for a linear layer of n units and 1 + 5/n for a ReLU layer.

# %%
widths = (10, 10, wide.with_settings(WIDE).width)
exact = 3 * ((1 + 2 / widths[0]) * (1 + 5 / widths[1]) * (1 + 5 / widths[2]) - 1)
last = run.summary.iloc[-1]
print(f"Excess kurtosis at initialisation, exact: {exact:.4f}; a Gaussian has 0.")
print(brg.verdicts.agree(last["phi_excess_kurtosis"], last["phi_excess_kurtosis_se"], exact,
                         "That of the members at the end of the flow (few draws put it too low)"))

# %% [markdown]
# Figure 9: the loss on held-out points along the flow. Λ_C is where it has doubled, so that up to Λ_C it is flat to a
# factor of two at best; the sentences above say how far it is flat to 5 %.

# %%
fig, ax = plt.subplots(figsize=(5.8, 4), layout="constrained")
plots.loss_along_flow(loss, critical_scale=critical, ax=ax)

# %% [markdown]
# Figure 10: the distribution of the output on either side of Λ_C. Figure 11: its mean and variance all along.

# %%
fig, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
plots.flow_distributions(phi, critical_scale=critical, truth=truth, axes=axes.ravel())
fig, axes = plt.subplots(1, 2, figsize=(9.4, 3.8), layout="constrained")
plots.moments_along_flow(phi, truth=truth, critical_scale=critical, axes=axes)

# %%
start, end = float(loss.sel(cutoff=0).median()), float(loss.isel(cutoff=-1).median())
print(f"The median loss is {start:.3g} at Λ = 0 and {end:.3g} at the end, a factor of {end / start:.3g}.")

# %% [markdown]
# ## Full batch, or point by point?
#
# The paper's footnote 26 speaks of full-batch gradient descent. At the same rate and number of epochs, from the same
# starting points: per-sample descent, which the run used, and full-batch descent on the mean and on the sum of the loss
# over points. The loss is that on the training points, in squared units of y; that of predicting the mean of y
# everywhere is printed beside.

# %%
s, x, y = wide.with_settings(WIDE), run.data["x"].values, run.data["y"].values
ways = {"per-sample descent": ("sgd", s.learning_rate), "full-batch descent, mean loss": ("gd", s.learning_rate),
        "full-batch descent, summed loss": ("gd", s.learning_rate * len(x))}
reached = {}
for name, (optimizer, rate) in ways.items():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # members that diverge are counted below
        members = brg.ensemble(wide.model(s), x, y, key=jax.random.key(3), num_members=s.num_members, train="readout",
                               optimizer=optimizer, learning_rate=rate, num_epochs=s.num_epochs, progress_bar=False)
        outputs = np.asarray(brg.predict(wide.model(s), members, x, progress_bar=False), float)
    with np.errstate(all="ignore"):
        final = ((outputs - y) ** 2).mean(axis=(-2, -1)).ravel()
    reached[name] = np.where(final < 1e12, final, np.inf)
print(f"{s.num_epochs} epochs at the rate {s.learning_rate:g}; the mean of y everywhere: a loss of {y.var():.3g}.")
for name in ways:
    print(f"{name}: median training loss {np.median(reached[name]):.3g}, "
          f"{int(np.sum(~np.isfinite(reached[name])))} of {s.num_members} members diverged.")
for name in list(ways)[1:]:
    print(brg.verdicts.trained(reached[name], reached["per-sample descent"], name, "per-sample descent"))

# %% [markdown]
# **What to distrust.** A weight is sloppy if its own feature is small on the probe inputs, by itself. The diagonal of
# the metric knows nothing of what several weights do together.

# %% [markdown]
# ## Weights or eigenvectors
#
# Footnote 15 of the paper: the directions ought to be the eigenvectors of the Fisher metric, and single weights are
# taken because eigenvectors are costly. Here they are not: the metric of n probe inputs has at most n non-zero
# eigenvalues, which come from an n × n matrix. So both flows can be had, of the same ensemble.
#
# A first difference needs no computation. In the eigenbasis *everything orthogonal to the gradients at the probe
# inputs* has stiffness zero, and goes back to the prior at the smallest Λ > 0. And the stiffest eigenvalue is far above
# the stiffest weight, since many weights pull together.

# %%
def part(posterior, good, start):
    """Every second of the good members."""
    samples = {site: v[np.flatnonzero(good)[start::2]][None] for site, v in posterior.flat().items()}
    return brg.Posterior(samples, {"independent": True}, posterior.method, posterior.trained)


def both_flows(model, posterior, good, probe, num_cutoffs):
    """Flows in the weights and in the eigenmodes, each of its own half of the members, on common cutoffs.

    Halves and keys of their own make the two flows independent, which the tests between them need.
    """
    posteriors = {"weights": part(posterior, good, 0), "eigenmodes": part(posterior, good, 1)}
    metrics = {name: brg.fisher(model, half, probe, kind=kind, progress_bar=False)
               for (name, half), kind in zip(posteriors.items(), ("diagonal", "full"), strict=True)}
    schedules = [brg.cutoffs(metric) for metric in metrics.values()]
    low, top = min(s[1] for s in schedules), max(s[-1] for s in schedules)
    cutoffs = np.concatenate([[0.0], np.geomspace(low, top, num_cutoffs - 1)])
    keys = jax.random.split(jax.random.key(1), 2)
    return {name: brg.renormalize(model, posteriors[name], metric, cutoffs=cutoffs, key=key)
            for (name, metric), key in zip(metrics.items(), keys, strict=True)}


def table(flows, losses, compared):
    """One row a cutoff: median loss and stiff share of both flows, and the distance between their laws."""
    rows = {"Λ": next(iter(flows.values())).cutoffs}
    for name, f in flows.items():
        rows[f"loss, {name}"] = losses[name].median(("chain", "draw")).values
        rows[f"stiff, {name}"] = f.stiff_fraction
    d = compared.dataset
    rows["W2"], rows["± "] = d["wasserstein"].values, d["wasserstein_sem"].values
    rows["W2/sd"], rows["p"] = d["wasserstein_relative"].values, d["energy_p_adjusted"].values
    return pd.DataFrame(rows)


def draw(flows, losses, critical, compared):
    fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    plots.loss_along_flow(losses, critical_scale=critical["weights"], ax=axes[0])
    for number, (name, f) in enumerate(flows.items()):
        count = sum(int(np.prod(v.shape[2:])) for s, v in f.posterior.samples.items() if s in f.metric.sites)
        median, some = losses[name].median(("chain", "draw")).values, f.stiff_fraction > 0
        axes[1].plot(f.stiff_fraction[some] * count, median[some], color=plots.COLOURS[number],
                     marker=plots.MARKERS[number], linestyle=plots.LINES[number], label=name)
    axes[1].set(xscale="log", yscale="log", xlabel="stiff directions, mean over members", ylabel="median loss")
    axes[1].invert_xaxis()
    axes[1].legend()
    d = compared.dataset.isel(cutoff=slice(1, None))
    spread = d["wasserstein_relative"] / d["wasserstein"]
    axes[2].errorbar(d["cutoff"], d["wasserstein_relative"], 1.96 * d["wasserstein_sem"] * spread, capsize=2,
                     color=plots.COLOURS[2], marker="^")
    axes[2].set(xscale="log", xlabel=r"cutoff $\Lambda$ (per datum)", ylim=(0, None),
                ylabel=r"$W_2$ between the flows / total sd")
    return fig


def told(flows, losses, critical, compared):
    """The findings in sentences, all numbers measured."""
    for name, scale in critical.items():
        values = flows[name].metric.values()
        per_member = values.size / (flows[name].posterior.size if flows[name].metric.per_draw else 1)
        print(f"{name}: {per_member:.0f} directions a member, stiffness up to {values[-1]:.3g}; {scale}.")
    for name, f in flows.items():
        median = losses[name].median(("chain", "draw")).values
        flat = np.flatnonzero(median <= 2 * median[0])[-1]
        count = sum(int(np.prod(v.shape[2:])) for s, v in f.posterior.samples.items() if s in f.metric.sites)
        print(f"{name}: the loss {median[0]:.3g} is kept within a factor of two up to Λ = {f.cutoffs[flat]:.3g}, where "
              f"{f.stiff_fraction[flat] * count:.3g} of {count} directions ({f.stiff_fraction[flat]:.2%}) are stiff; "
              f"just above Λ = 0 it is {median[1]:.3g}.")
    d = compared.dataset.isel(cutoff=slice(1, None))
    worst = int(d["wasserstein_relative"].values.argmax())
    print(f"The laws of the two flows differ most at Λ = {float(d['cutoff'][worst]):.3g}, by W2 = "
          f"{float(d['wasserstein'][worst]):.3g} ± {float(d['wasserstein_sem'][worst]):.2g}, which is "
          f"{float(d['wasserstein_relative'][worst]):.2g} of their total standard deviation.")
    print(f"Energy distance: {compared.verdict}.")
    print(brg.verdicts.told_apart(d["energy_p"], "The laws of the flows in weights and in eigenmodes"))
    for name, loss in losses.items():
        print(f"{name}: {brg.verdicts.flat(loss, flows[name].stiff_fraction)}")


def contrast(model, posterior, good, probe, x_test, y_test, num_cutoffs=6 if SMALL else 16):
    flows = both_flows(model, posterior, good, probe, num_cutoffs)
    losses = {name: f.loss(x_test, y_test, progress_bar=False) for name, f in flows.items()}
    critical = {name: brg.critical_scale(loss) for name, loss in losses.items()}
    compared = brg.compare(*flows.values(), x_test, y_test, labels=list(flows), cutoffs="shared",
                           num_permutations=199 if SMALL else 999, progress_bar=False)
    print(table(flows, losses, compared).to_string(index=False, float_format="{:.4g}".format))
    told(flows, losses, critical, compared)
    return draw(flows, losses, critical, compared)


# %% [markdown]
# ### The wide network

# %%
fig = contrast(wide.model(wide.with_settings(WIDE)), run.posterior, kept.values.ravel(), run.data["x_probe"].values,
               run.data["x_test"].values, run.data["y_test"].values)

# %% [markdown]
# ### A deep network, all of whose weights learn
#
# `models/deep_relu.py`: three hidden layers, randomised-MAP members. An experiment's parts can be called one by one.

# %%
deep = brg.load_experiment(MODELS / "deep_relu.py")
settings = deep.with_settings(DEEP)
keys = jax.random.split(jax.random.key(0), 3)
model, data, probe = deep.model(settings), deep.data(settings, keys[0]), deep.probe(settings, keys[1])
posterior = deep.infer["ensemble"](model, data.x, data.y, keys[2], settings)
fig = contrast(model, posterior, ~np.asarray(posterior.stats["diverged"]).ravel(), probe, data.x_test, data.y_test)

# %% [markdown]
# **How to read it.** The first panel compares at equal Λ, the second at an equal number of directions kept; only the
# second is a fair race, since an eigenvalue of the metric collects what many weights contribute. The sentences above
# say how many directions each basis needs to keep the loss within a factor of two, and what the first step costs: just
# above Λ = 0 the eigenmodes have given back everything that no probe input sees.
#
# Where the output is linear in what flows, as in the wide network, a mode without stiffness changes the output at no
# probe input, however far it is moved. In the deep network the modes are those of its linearisation at each member, and
# a direction that does nothing to first order is moved by a whole prior width.
#
# **What to distrust.** Stiffness is measured at the draw and used far from it. The inputs on which the metric is
# averaged are part of the definition of the flow: with few of them there are more modes of stiffness zero. A distance
# of zero means that it is below what so few members can show; it is measured on held-out inputs, and is one number for
# all of them.
