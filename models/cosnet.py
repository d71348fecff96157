"""A cos-net, whose field is free, and the flow of its mass and momentum cutoff: section 4.1.1 of the paper.

The readout of φ(x) = Σ w_i cos(b_i·x + c_i)/√(|b_i|² + m²) learns from data on the features (b, c) of one network, and
is then read with features drawn anew from the prior: π_Λ(w, b, c) = π_Λ(w) π(b, c), the law that (86) is about. Its
mean is zero and its spectrum C_d σ_w²(Λ)/(p² + m²) for |p| < R at every Λ, with σ_w²(Λ) known in closed form from the
exact posterior (74), (75), (87); so are m_Λ² and R_Λ (89), (90).

Beside it run networks whose readouts are fitted to their own features. They follow the data: they have a mean, their
power gathers at the momentum of the target, and their terms interfere, none of which is in (86), until Λ gives all of
the readout back to the prior. Both have the metric of the taught features.

    bayes-brg run models/cosnet.py
    bayes-brg run models/cosnet.py --set dim=2
"""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import bayes_brg as brg
from bayes_brg import plots, theory, verdicts

SHELLS = 8  # of momentum, in which the spectrum is measured
SHOWN = 4  # cutoffs in the figures


def model(settings):
    return brg.cosnet(settings.width, settings.dim, settings.mass, settings.radius, settings.weight_std,
                      likelihood=brg.gaussian(settings.noise))


def target(x, settings):
    return settings.amplitude * jnp.prod(jnp.cos(x), axis=-1, keepdims=True)


def data(settings, key):
    x_key, noise_key = jax.random.split(key)
    x = settings.box * jax.random.uniform(x_key, (settings.num_train, settings.dim), minval=-1.0)
    y = target(x, settings) + settings.noise * jax.random.normal(noise_key, (settings.num_train, 1))
    # The covariance depends on distance alone: one ray of points has them all.
    ray = jnp.zeros((settings.num_mesh, settings.dim)).at[:, 0].set(jnp.linspace(0, settings.box, settings.num_mesh))
    return brg.Data(x, y, ray, target(ray, settings), characteristic=ray[0], truth=target(ray[:1], settings)[0])


def probe(settings, key):
    return settings.box * jax.random.uniform(key, (settings.num_probe, settings.dim), minval=-1.0)


def taught(settings):
    """The network whose features the readout learns on."""
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    return brg.prior(model(settings), jnp.zeros((1, settings.dim)), key=key, num_samples=1).draw(0, 0)


def independent(model, x, y, key, settings):
    learned = brg.readout_posterior(model, x, y, key=key, num_samples=settings.num_members, hidden=taught(settings))
    fresh = brg.prior(model, x, key=key, num_samples=settings.num_members)
    return brg.Posterior({**fresh.samples, "w": learned.samples["w"]}, {"independent": True},
                         "readout posterior, features redrawn", ("w",))


def fitted(model, x, y, key, settings):
    return brg.readout_posterior(model, x, y, key=key, num_samples=settings.num_members)


def effective_variance(settings, data, flow):
    """σ_w²(Λ) of the exact readout posterior on the taught features (87): no draws, no fit."""
    net, hidden = model(settings), taught(settings)
    h, y = (np.asarray(a, np.float64) for a in (net.features(hidden, jnp.asarray(data["x"].values)), data["y"]))
    prior_var = settings.weight_std**2 / settings.width
    gain = prior_var * h.T @ np.linalg.inv(prior_var * h @ h.T + settings.noise**2 * np.eye(len(h)))
    laws = theory.renormalized_readout((gain @ y)[:, 0], prior_var * (np.eye(settings.width) - gain @ h),
                                       np.asarray(flow.metric.stiffness["w"])[:, 0], flow.cutoffs, prior_var)
    return theory.cosnet_effective_variance(*laws)


def mean_error(values):
    """Mean over members, the last axis, and its standard error."""
    return values.mean(-1), values.std(-1, ddof=1) / np.sqrt(values.shape[-1])


def parameters(flow, settings, cutoff, edges, r, phi):
    """Σ_i w_i²; the field's power by momentum shell, Σ_i w_i²/(2(|b_i|² + m²)) per ∫d^dp/(2π)^d; and its transform.

    Means over members and their standard errors: of the sum and the shells, (1 + shells,); of the power's transform
    Σ_i w_i² cos(b_i·r)/(2(|b_i|² + m²)) at the distances `r`, (distance,); and of the covariance of `phi`
    (member, distance) less that transform, member by member: zero where units with phases of their own interfere on
    average in nothing, and the field has no mean, as (86) supposes.
    """
    draws = flow.at(cutoff).flat()
    squares, b = np.asarray(draws["w"], np.float64)[..., 0] ** 2, np.asarray(draws["b"], np.float64)
    p = np.linalg.norm(b, axis=-1)
    power = squares / (2 * (p**2 + settings.mass**2))
    shells = [np.where((p >= low) & (p < high), power, 0.0).sum(1) / size
              for low, high, size in zip(edges, edges[1:], volume(edges, settings), strict=False)]
    transform = np.stack([(power * np.cos(b[..., 0] * distance)).sum(1) for distance in r])
    centred = phi - phi.mean(axis=0)
    products = (centred[:, :1] * centred).T * len(phi) / (len(phi) - 1)
    return mean_error(np.stack([squares.sum(1), *shells])), mean_error(transform), mean_error(products - transform)


def volume(edges, settings):
    """∫ d^dp/(2π)^d over each shell. C_d is (2π)^d over twice the volume of the ball."""
    inside = [0.0 if p == 0 else 0.5 / theory.cosnet_normalization(settings.dim, p) for p in edges]
    return np.diff(inside)


def shell_average(edges, settings, weight_var):
    """C_d σ_w²/(p² + m²) averaged over each shell."""
    def average(low, high):
        p = low + (high - low) * (np.arange(400) + 0.5) / 400
        weight = p ** (settings.dim - 1)
        values = theory.cosnet_spectrum(p, dim=settings.dim, mass=settings.mass, radius=settings.radius,
                                        weight_var=weight_var)
        return np.sum(weight * values) / np.sum(weight)

    return np.array([average(*pair) for pair in zip(edges, edges[1:], strict=False)])


def extras(run, flows):
    settings, flow = experiment.with_settings(run.settings), flows["independent"]
    described = dict(dim=settings.dim, mass=settings.mass, radius=settings.radius)
    cutoffs, exact = flow.cutoffs, effective_variance(settings, run.data, flow)
    mesh = run.data["x_test"].values
    r, pairs = np.linalg.norm(mesh - mesh[0], axis=1), [(0, j) for j in range(len(mesh))]
    edges = np.linspace(0, settings.radius, SHELLS + 1)
    bare = theory.cosnet_covariance(r, **described)
    # Columns *_worst: the largest difference from (86) over points or shells, in standard errors.
    table = pd.DataFrame({"cutoff": cutoffs, "weight_var": exact})
    measured = {}
    for method, made in flows.items():
        phi = run.flows[method]["phi"].isel(point=slice(len(mesh)))
        k = brg.cumulants(phi, order=2, indices=pairs)
        k2, k2_se = np.asarray(k.k2), np.asarray(k.sem.k2)
        members = phi.isel(output=0).transpose("cutoff", "chain", "draw", "point").values.reshape(
            len(cutoffs), -1, len(mesh)).astype(np.float64)
        (found, error), (transform, _), (apart, apart_se) = (
            [np.stack(values) for values in zip(*part, strict=True)] for part in
            zip(*(parameters(made, settings, c, edges, r, f) for c, f in zip(cutoffs, members, strict=True)),
                strict=True))
        table[f"weight_var_{method}"], table[f"weight_var_{method}_se"] = found[:, 0], error[:, 0]
        power, power_se = found[:, 1:], error[:, 1:]
        measured[method] = k2, k2_se, power, power_se, transform, apart / apart_se
        table[f"transform_{method}_worst"] = np.max(np.abs(apart / apart_se), axis=1)
        table[f"mean_{method}_worst"] = np.max(np.abs(k.mean / k.sem.mean)[:, :len(mesh)], axis=1)
        table[f"covariance_{method}_worst"] = np.max(np.abs(k2 - np.outer(exact, bare)) / k2_se, axis=1)
        shell = np.stack([shell_average(edges, settings, v) for v in exact])
        table[f"spectrum_{method}_worst"] = np.max(np.abs(power - shell) / power_se, axis=1)
    table["mass_squared"] = theory.cosnet_mass(settings.mass, dim=settings.dim, radius=settings.radius,
                                               weight_var=exact) ** 2
    table["radius"] = theory.cosnet_radius(settings.radius, dim=settings.dim, weight_var=exact,
                                           prior_var=settings.weight_std**2)
    with matplotlib.rc_context(plots.STYLE):
        figures = {"field": field_figure(settings, cutoffs, exact, r, edges, measured, described),
                   "mass_flow": mass_figure(settings, table)}
    return {**figures, "cosnet": table}


def chosen(cutoffs, exact):
    """Cutoffs to show: Λ = 0, the last, and those between that cut σ_w²(Λ)'s path into equal parts."""
    path = np.concatenate([[0], np.cumsum(np.abs(np.diff(np.log(exact))))])
    return sorted({int(np.abs(path - f * path[-1]).argmin()) for f in np.linspace(0, 1, SHOWN)} | {len(cutoffs) - 1})


def field_figure(settings, cutoffs, exact, r, edges, measured, described):
    figure = Figure(figsize=(10.4, 0.6 + 3.9 * len(measured)), layout="constrained")
    axes = figure.subplots(len(measured), 2, sharex="col", sharey="col", squeeze=False)
    shown = chosen(cutoffs, exact)
    fine, p = np.linspace(r[0], r[-1], 200), np.linspace(0, settings.radius, 400)
    centre = (edges[1:] + edges[:-1]) / 2
    titles = {"independent": "readout independent of the features, as (86) assumes",
              "fitted": "readout fitted to each member's own features"}
    for row, method in zip(axes, measured, strict=True):
        k2, k2_se, power, power_se, transform, apart = measured[method]
        for number, i in enumerate(shown):
            colour, marker = plots.COLOURS[number], plots.MARKERS[number]
            look = dict(color=colour, marker=marker, linestyle="none", capsize=2, elinewidth=1)
            line = dict(color=colour, linestyle=plots.LINES[number], linewidth=1.3)
            label = rf"$\Lambda$ = {cutoffs[i]:.3g}: $\sigma_w^2(\Lambda)$ = {exact[i]:.3g}"
            row[0].plot(fine, theory.cosnet_covariance(fine, weight_var=exact[i], **described), **line)
            row[0].errorbar(r, k2[i], k2_se[i], label=label, **look)
            row[0].plot(r, transform[i], color=colour, linestyle="none", marker="x", markersize=6)
            row[1].plot(p, theory.cosnet_spectrum(p, weight_var=exact[i], **described), **line)
            row[1].errorbar(centre, power[i], power_se[i], label=label, **look)
        row[0].axhline(0, color="#999999", linewidth=0.8)
        row[0].set_ylabel(r"covariance of $\phi(0)$ and $\phi(r)$")
        row[1].set_ylabel(r"spectrum $\Sigma(p)$")
        row[1].set_yscale("log")
        same = verdicts.agree(apart[shown], np.ones_like(apart[shown]), 0.0, "")
        row[0].set_title(f"{titles[method]}\n×: the transform of the points on the right,\n"
                         + ("the same" if same else "not the same, as terms interfere")
                         + f" (up to {np.abs(apart[shown]).max():.1f} standard errors)", loc="left")
        row[1].set_title(r"diagonal terms alone, $w_i^2\,/\,2(b_i^2 + m^2)$" "\n"
                         r"lines, both rows: $C_d\,\sigma_w^2(\Lambda)\,/\,(p^2 + m^2)$, $|p| < R$", loc="left")
        row[0].legend()
    # Above the lines' end at R and, for the rows share the axis, as high as the highest point of either.
    axes[0, 1].set_ylim(bottom=0.6 * min(np.min(power[:, -1]) for _, _, power, *_ in measured.values()))
    axes[-1, 0].set_xlabel(r"distance $r$")
    axes[-1, 1].set_xlabel(r"momentum $p$")
    figure.suptitle(f"cos-net in d = {settings.dim}, {settings.width} units, m = {settings.mass:g}, "
                    f"R = {settings.radius:g}; points: {settings.num_members} members, one standard error", x=0.01,
                    ha="left", fontsize=9, color="#777777")
    return figure


def mass_figure(settings, table):
    figure = Figure(figsize=(11.4, 3.7), layout="constrained")
    axes = figure.subplots(1, 3)
    prior, variance = settings.weight_std**2, table["weight_var_independent"]
    error = table["weight_var_independent_se"]
    constant = theory.cosnet_normalization(settings.dim, settings.radius)
    mass = settings.mass**2 / (constant * variance)
    radius = settings.radius * (variance / prior) ** (-1 / settings.dim)
    for ax, exact, found, se, end, name in (
        (axes[0], table["weight_var"], variance, error, prior, r"effective variance $\sigma_w^2(\Lambda)$"),
        (axes[1], table["mass_squared"], mass, mass * error / variance, settings.mass**2 / (constant * prior),
         r"mass$^2$ $m_\Lambda^2 = m^2 / (C_d \sigma_w^2(\Lambda))$"),
        (axes[2], table["radius"], radius, radius * error / variance / settings.dim, settings.radius,
         r"momentum cutoff $R_\Lambda$"),
    ):
        x = plots.cutoff_axis(ax, table["cutoff"].to_numpy())(table["cutoff"].to_numpy())
        ax.errorbar(x, found, se, color=plots.COLOURS[0], marker="o", linestyle="none", capsize=2, label="members")
        ax.plot(x, exact, color=plots.COLOURS[1], linestyle="--", label="closed form")
        ax.axhline(end, color=plots.COLOURS[2], linestyle=":", linewidth=2, label="prior")
        ax.set_title(name, loc="left")
    axes[0].legend()
    return figure


experiment = brg.Experiment(
    name="cosnet",
    model=model,
    data=data,
    probe=probe,
    infer={"independent": independent, "fitted": fitted},
    metric=lambda settings: {"kind": "diagonal", "at": taught(settings), "sites": ["w"]},
    flow={"refill": "prior", "regulator": "sharp"},
    settings={"dim": 1, "width": 64, "mass": 1.0, "radius": 4.0, "weight_std": 1.0, "noise": 0.1, "amplitude": 2.0,
              "box": 3.0, "num_train": 40, "num_probe": 200, "num_mesh": 16, "num_members": 4000, "seed": 0},
    extras=extras,
)
