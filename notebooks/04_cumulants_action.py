# %% [markdown]
# # Cumulants, the Edgeworth density and the action
#
# **Question.** A network of finite width is not a Gaussian process. How far is it from one, can the distance be
# measured with errors one believes, and what theory (action) has those correlations? Does learning make it more or
# less Gaussian, and does the flow bring it back to the prior?

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayes_brg as brg
from bayes_brg import plots, theory

SCALE = os.environ.get("BRG_NOTEBOOK_SCALE", "full")  # "small" is for a quick check: its numbers mean little
SMALL = SCALE == "small"
DRAWS, MEMBERS, CUTOFFS = (2_000, 400, 5) if SMALL else (100_000, 10_000, 14)
plt.rcParams.update(plots.STYLE)
pd.set_option("display.width", 160)
keys = iter(jax.random.split(jax.random.key(0), 20))

# %% [markdown]
# ## The prior of a narrow network, against an exact formula
#
# φ(x) = Σ w_i relu(u_i x) with u ~ N(0, 1) and w ~ N(0, 1/N). At any width N its connected four-point function is known
# exactly; the expectations of one hidden unit are E h(x)⁴ = (3/2) x⁴ and E h(x)h(y) = ½ xy for x, y > 0.

# %%
WIDTH = 10
mesh = np.array([[1.0], [0.5], [-0.7]])  # relu is homogeneous: the second point is half the first


def network(width, noise=0.2):
    return brg.mlp((width,), activation="relu", scaling="none", weight_std=(1.0, width**-0.5),
                   likelihood=brg.gaussian(noise))


def prior_field(width, key):
    net = network(width)
    return np.asarray(brg.predict(net, brg.prior(net, mesh, key=key, num_samples=DRAWS), mesh, progress_bar=False))


def exact_kappa4(points, width):
    """κ4 of points on one side of zero, or two on either: a unit that is on for one side is off for the other."""
    x = mesh[list(points), 0]
    same = np.sign(x)[:, None] == np.sign(x)
    pairs = 0.5 * np.abs(np.outer(x, x)) * same
    fourth = 1.5 * np.abs(x).prod() if same.all() else 0.0
    return float(theory.finite_width_kappa4(fourth, pairs, width=width))


rows = []
for width in (WIDTH, 4 * WIDTH, 16 * WIDTH):
    phi = prior_field(width, next(keys))
    k = brg.cumulants(phi, order=4)
    for points in ((0, 0, 0, 0), (0, 0, 2, 2), (0, 2, 2, 2)):
        value, sem, known = k.k4[points], k.sem.k4[points], exact_kappa4(points, width)
        rows.append({"N": width, "points": str(points), "κ4": value, "±": sem, "exact": known,
                     "z": (value - known) / sem, "N κ4": width * value})
prior_table = pd.DataFrame(rows)
print(prior_table.to_string(index=False, float_format="{:.4g}".format))
print(brg.verdicts.agree(prior_table["κ4"], prior_table["±"], prior_table["exact"], "κ4, against the exact formula"))
across = prior_table[prior_table["points"] == "(0, 0, 2, 2)"]
print(brg.verdicts.signed(across["κ4"], across["±"], "κ4 between two inputs on either side of zero"))
odd = prior_table[prior_table["points"] == "(0, 2, 2, 2)"]
print(brg.verdicts.agree(odd["κ4"], odd["±"], 0.0, "κ4 with an odd number of points on a side, against 0"))

# %% [markdown]
# Between inputs on opposite sides of zero a hidden unit is on for one side or for the other, although the two fields
# are uncorrelated: this is what the formula's sign comes from.

# %% [markdown]
# ## Edgeworth against the histogram
#
# The cumulants to fourth order make a density: the Gaussian times a polynomial. At width 10 one can see what it adds,
# and where it must not be believed.

# %%
phi = prior_field(WIDTH, next(keys))[..., 0].reshape(-1, len(mesh))[:, [0, 2]]
k = brg.cumulants(phi, order=4)
fig = plots.edgeworth_marginals(phi, k, points=(0, 1), names=[f"x = {v:g}" for v in mesh[[0, 2], 0]])

# %%
one = phi[:, 0]
sd = one.std()
edges = sd * np.linspace(-3, 3, 25)
counts, _ = np.histogram(one, edges)
density = counts / len(one) / np.diff(edges)
bars = np.sqrt(np.maximum(counts, 1)) / len(one) / np.diff(edges)
rows, misfit = [], {}
for order in (0, 2):
    fine = (edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(20) + 0.5) / 20)
    expected = np.asarray(brg.edgeworth_pdf(fine[..., None], k.at([0]), order=order)).mean(axis=1)
    misfit[order] = ((density - expected) / bars) ** 2
    rows.append({"order": order, "χ² per bin": misfit[order].mean(),
                 "largest error / peak": np.abs(density - expected).max() / density.max()})
print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))
less = misfit[0] - misfit[2]
print(brg.verdicts.ahead(less.mean(), less.std(ddof=1) / np.sqrt(less.size), "The Edgeworth density", "the Gaussian",
                         "in χ² per bin, over bins"))
print(brg.verdicts.agree(misfit[2].mean(), np.sqrt(2 / less.size), 1.0, "χ² per bin of the Edgeworth density"))
print(brg.verdicts.gaussian(one[None, :10_000], "φ at x = 1", independent=True))
report = brg.edgeworth_report(k, phi=phi)
for value, intervals, mass in zip(mesh[[0, 2], 0], report.intervals, report.negative_mass, strict=True):
    where = ", ".join(f"{low:.3g} to {high:.3g}" for low, high in intervals) or "nowhere"
    print(f"At x = {value:g} the Edgeworth marginal is negative {where}; the negative part integrates to {mass:.2g}.")
print(f"The joint density is negative at {report.fraction:.2%} of the draws.")

# %% [markdown]
# Over the bins the expansion is closer than the Gaussian if its χ² is the smaller one, and the truth, as far as so many
# draws can tell, if χ² per bin is about 1.

# %% [markdown]
# ## The action
#
# S = −log p as a polynomial in the field: S₀ + J z + ½ A z² + g₃ z³/3! + g₄ z⁴/4!, by the inverse Feynman rules at
# order 1/N. The quadratic term is *not* the inverse of the covariance: the quartic coupling corrects it (a tadpole).

# %%
rows = []
for width in (WIDTH, 4 * WIDTH, 16 * WIDTH):
    phi = prior_field(width, next(keys))[..., 0].reshape(-1, len(mesh))
    theory_of = brg.action(brg.cumulants(phi[:, :1], order=4), even=True)
    variance = phi[:, 0].var()
    rows.append({"N": width, "A": theory_of.quadratic[0, 0], "± ": theory_of.sem.quadratic[0, 0], "1/κ2": 1 / variance,
                 "g4": theory_of.quartic[0, 0, 0, 0], "±": theory_of.sem.quartic[0, 0, 0, 0],
                 "−κ4 exact/κ2⁴": -exact_kappa4((0,) * 4, width) / 0.5**4})
actions = pd.DataFrame(rows)
print(actions.to_string(index=False, float_format="{:.4g}".format))
print(brg.verdicts.signed(actions["g4"], actions["±"], "The quartic coupling"))
wide = actions.iloc[-2:]
print(brg.verdicts.agree(wide["g4"].iloc[1] * 4, wide["±"].iloc[1] * 4, wide["g4"].iloc[0],
                         f"4 g4 at width {wide['N'].iloc[1]}, against g4 at width {wide['N'].iloc[0]} (a fall as 1/N)"))

# %% [markdown]
# An action with g₄ < 0 (heavier tails than a Gaussian) is not bounded below: it describes the bulk of the field, and is
# not a density far out.

# %% [markdown]
# ## Learning, and the flow back
#
# The readout of the narrow network learns |x| from 20 points: exact posterior draws on random features. Along the flow
# its kurtosis and couplings run, and must end at the prior's, which the formula knows.

# %%
net = network(WIDTH)
x = jax.random.uniform(next(keys), (20, 1), minval=-1.0)
y = jnp.abs(x) + 0.2 * jax.random.normal(next(keys), x.shape)
posterior = brg.readout_posterior(net, x, y, key=next(keys), num_samples=MEMBERS, progress_bar=False)
metric = brg.fisher(net, posterior, jax.random.uniform(next(keys), (100, 1), minval=-1.0), progress_bar=False)
flow = brg.renormalize(net, posterior, metric, cutoffs=brg.cutoffs(metric, num=CUTOFFS), key=next(keys))
along = flow.predict(mesh[:1], progress_bar=False).isel(output=0)
running = brg.running_couplings(brg.cumulants(along, order=4))
end = exact_kappa4((0,) * 4, WIDTH) / 0.25
columns = ["variance", "skewness", "kurtosis", "effective_quartic"]
shown = pd.DataFrame({"Λ": flow.cutoffs})
for name in columns:
    shown[name], shown[f"± {name}"] = running[name].values[:, 0], running[f"{name}_sem"].values[:, 0]
print(shown.to_string(index=False, float_format="{:.3g}".format))
last = running.isel(cutoff=-1, point=0)
print(brg.verdicts.agree(last["kurtosis"], last["kurtosis_sem"], end,
                         "κ4/κ2² at the end of the flow, against the prior"))
first = running.isel(cutoff=0, point=0)
print(f"At Λ = 0 it is {float(first['kurtosis']):.3g} ± {float(first['kurtosis_sem']):.2g}, with the skewness "
      f"{float(first['skewness']):.3g} ± {float(first['skewness_sem']):.2g}.")
print(brg.verdicts.agree(first["skewness"], first["skewness_sem"], 0.0, "The skewness at Λ = 0, against the prior's 0"))

# %%
fig, axes = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
plots.coupling_along_flow(running, "variance", ax=axes[0])
plots.coupling_along_flow(running, "kurtosis", reference=end, reference_label=f"prior, exact: {end:.3g}", ax=axes[1])
plots.coupling_along_flow(running, "effective_quartic", ax=axes[2])

# %% [markdown]
# **How to read it.** On the way the field is a mixture over members, some of whose weights are learned and some
# redrawn. Whether the end of the flow is the prior, its fourth cumulant says as well as its variance.
#
# **What to distrust.** Errors of a fourth cumulant are themselves noisy with few draws, and it is dominated by rare
# large values of the field. The couplings are those of −log p only as far as κ4/κ2² is small against 1: where the
# table has a kurtosis of order 1, read the couplings as a parametrisation of the cumulants, no more.
