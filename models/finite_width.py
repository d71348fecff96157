"""Networks of finite width: how their cumulants fall with N, against the exact formula (43).

φ(x) = Σ_i w_i relu(u_i x), with E w = 0 and variance σ²/N, is a sum of N independent terms, so that κ_n falls as
N^{1−n/2}: κ4·N is the same number at every width, and so is κ3·√N, which only weights without the symmetry w → −w have.
Prior draws of several widths and three laws of w (Gaussian, uniform, and a shifted exponential, which is not symmetric)
are measured, and the slopes of log κ against log N fitted.

The run itself is one such network (the narrowest width) whose readout learns from data on its random features: its
κ4/κ2² along the flow ends at the prior's.

    bayes-brg run models/finite_width.py
    bayes-brg run models/finite_width.py --set num_draws=400000 widths=10,40,160,640
"""

import math

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

import bayes_brg as brg
from bayes_brg import plots, theory

MESH = np.array([[1.0], [0.5]])
BATCH = 5_000  # networks at once, and a block of the jackknife, of which there are ten at least
# Law of a readout weight: E w³/(E w²)^{3/2} and E w⁴/(E w²)².
LAWS = {"gaussian": (0.0, 3.0), "uniform": (0.0, 9 / 5), "exponential": (2.0, 9.0)}


def readout(law, width, outputs):
    """N independent weights of mean 0 and variance 1/N."""
    scale, shape = 1 / math.sqrt(width), (width, outputs)
    return {
        "gaussian": lambda: dist.Normal(0.0, scale),
        "uniform": lambda: dist.Uniform(-math.sqrt(3) * scale, math.sqrt(3) * scale),
        "exponential": lambda: dist.TransformedDistribution(
            dist.Exponential(1.0), dist.transforms.AffineTransform(-scale, scale)),
    }[law]().expand(shape).to_event(2)


def network(width, law="gaussian", outputs=1):
    """A network of one hidden layer, as a plain NumPyro model."""
    def net(x, y=None):
        u = numpyro.sample("u", dist.Normal(0.0, 1.0).expand((x.shape[1], width)).to_event(2))
        w = numpyro.sample("w", readout(law, width, outputs))
        phi = numpyro.deterministic("phi", jax.nn.relu(x @ u) @ w)
        numpyro.sample("y", dist.Normal(phi, 1.0).to_event(1), obs=y)
    return net


def predicted(law, width, points):
    """Exact κ3 and κ4 at mesh points: E relu(u)³ = √(2/π), E relu(u)⁴ = 3/2, E relu(u)² = ½ for u ~ N(0, 1)."""
    skew, kurtosis = LAWS[law]
    x = MESH[list(points), 0]
    pairs = 0.5 * np.outer(x, x)
    kappa4 = theory.finite_width_kappa4(1.5 * x.prod(), pairs, width=width, weight_kurtosis=kurtosis)
    return skew * math.sqrt(2 / math.pi) * x[:3].prod() / math.sqrt(width), float(kappa4)


def measured(law, width, num_draws, key, outputs=4):
    """Cumulants of prior draws, in blocks. Outputs of one network share its features, and each obeys the same law."""
    net, blocks = network(width, law, outputs), []
    batch = min(BATCH, -(-num_draws // 10))
    for number in range(-(-num_draws // batch)):
        draws = brg.prior(net, MESH, key=jax.random.fold_in(key, number), num_samples=batch)
        phi = np.asarray(brg.predict(net, draws, MESH, progress_bar=False))
        # One block holds all outputs of its networks, so that the jackknife sees what they share.
        phi = np.moveaxis(phi, -1, 0).reshape(-1, len(MESH))
        blocks.append(brg.Moments.init(len(MESH)).update(phi))
    return brg.cumulants(blocks)


def scan(settings):
    """One row a law, width and set of points: measured and predicted κ3 and κ4."""
    rows = []
    keys = iter(jax.random.split(jax.random.key(settings.seed), len(LAWS) * len(settings.widths)))
    for law in LAWS:
        for width in settings.widths:
            k = measured(law, width, settings.num_draws, next(keys))
            for points in ((0, 0, 0, 0), (0, 0, 1, 1)):
                kappa3, kappa4 = predicted(law, width, points)
                rows.append({"law": law, "width": width, "points": "".join(map(str, points)),
                             "kappa3": k.k3[points[:3]], "kappa3_se": k.sem.k3[points[:3]], "kappa3_exact": kappa3,
                             "kappa4": k.k4[points], "kappa4_se": k.sem.k4[points], "kappa4_exact": kappa4})
    return pd.DataFrame(rows)


def slope(table, name):
    """Slope of log κ against log N, weighted by the errors of κ, with its standard error."""
    x, y = np.log(table["width"]), np.log(table[name].clip(lower=1e-300))
    weight = (table[name] / table[f"{name}_se"]) ** 2
    centred = x - np.average(x, weights=weight)
    spread = (weight * centred**2).sum()
    return (weight * centred * y).sum() / spread, 1 / math.sqrt(spread)


def slopes(table):
    rows = []
    for (law, points), part in table.groupby(["law", "points"], sort=False):
        for name, expected in (("kappa4", -1.0), ("kappa3", -0.5)):
            if name == "kappa4" or LAWS[law][0]:
                found, error = slope(part, name)
                rows.append({"law": law, "points": points, "cumulant": name, "slope": found, "slope_se": error,
                             "expected": expected})
    return pd.DataFrame(rows)


def width_figure(table, fits):
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    table = table[table["points"] == "0000"]
    fine = np.geomspace(0.8 * table["width"].min(), 1.25 * table["width"].max(), 50)
    for number, law in enumerate(LAWS):
        part = table[table["law"] == law]
        look = dict(color=plots.COLOURS[number], marker=plots.MARKERS[number], linestyle="none", capsize=2)
        line = dict(color=plots.COLOURS[number], linestyle=plots.LINES[number], linewidth=1.3)
        for ax, name, power in ((left, "kappa4", 1.0), (right, "kappa3", 0.5)):
            fit = fits[(fits["law"] == law) & (fits["cumulant"] == name) & (fits["points"] == "0000")]
            said = "".join(f": slope {r.slope:.3f} ± {r.slope_se:.3f}" for r in fit.itertuples())
            scale = part["width"] ** power
            ax.errorbar(part["width"], part[name] * scale, 1.96 * part[f"{name}_se"] * scale, label=law + said, **look)
            ax.plot(fine, [predicted(law, n, (0, 0, 0, 0))[name == "kappa4"] * n**power for n in fine], **line)
    left.set_ylabel(r"$N\,\kappa_4$ at $x = 1$")
    right.set_ylabel(r"$\sqrt{N}\,\kappa_3$ at $x = 1$")
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xticks(sorted(set(table["width"])))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("width $N$")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, title="law of $w$; lines: exact",
                  alignment="left")
    return figure


def model(settings):
    return brg.mlp((min(settings.widths),), activation="relu", scaling="none",
                   weight_std=(1.0, 1 / math.sqrt(min(settings.widths))), likelihood=brg.gaussian(settings.noise))


def data(settings, key):
    x_key, noise_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (settings.num_train, 1), minval=-1.0)
    y = jnp.abs(x) + settings.noise * jax.random.normal(noise_key, (settings.num_train, 1))
    return brg.Data(x, y, jnp.asarray(MESH), jnp.abs(jnp.asarray(MESH)), characteristic=MESH[0], truth=MESH[0])


def probe(settings, key):
    return jax.random.uniform(key, (settings.num_probe, 1), minval=-1.0)


def posterior(model, x, y, key, settings):
    return brg.readout_posterior(model, x, y, key=key, num_samples=settings.num_members)


def extras(run, flows):
    settings = experiment.with_settings(run.settings)
    table = scan(settings)
    fits = slopes(table)
    width = min(settings.widths)
    end = predicted("gaussian", width, (0, 0, 0, 0))[1] / 0.25  # κ2 = ½ at x = 1
    with matplotlib.rc_context(plots.STYLE):
        figures = {"widths": width_figure(table, fits), "kurtosis": Figure(figsize=(5.8, 4.4), layout="constrained")}
        plots.coupling_along_flow(
            run.couplings["readout"], "kurtosis", reference=end, ax=figures["kurtosis"].subplots(),
            reference_label=f"prior of width {width}, exact: {end:.3g}")
    return {**figures, "finite_width": table, "slopes": fits}


experiment = brg.Experiment(
    name="finite_width",
    model=model,
    data=data,
    probe=probe,
    infer={"readout": posterior},
    metric={"kind": "diagonal", "at": "draw"},
    flow={"refill": "prior", "regulator": "sharp"},
    settings={"widths": (10, 40, 160), "num_draws": 100_000, "num_members": 10_000, "num_train": 20, "num_probe": 100,
              "noise": 0.2, "seed": 0},
    couplings=1,
    extras=extras,
)
