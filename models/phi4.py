"""λφ⁴ on a mesh from a cos-net: a theory engineered by weighting a network's prior (44), and its coupling measured.

A cos-net is a free field. Its prior weighted by exp(−O), O = λ/4! Σ_x φ(x)⁴ over a mesh, is an interacting one, with
the action of the free network plus O exactly. Draws of the free network with importance weights are such a theory; NUTS
on the deformed model is another way to it, shown beside. From the cumulants of the weighted draws the inverse Feynman
rules, to next order, give back the coupling that was put in, once that of the same draws without weights (λ = 0: a
network of finite width has a quartic coupling of its own) is subtracted.

There are no data: the theory is a prior, and the likelihood only sets the units of Λ. The flow gives the parameters
back to the *free* prior, so the coupling runs from λ to that of the free network.

    bayes-brg run models/phi4.py
    bayes-brg run models/phi4.py --set coupling=0.3 num_draws=400000
"""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import bayes_brg as brg
from bayes_brg import plots, theory

BATCH = 10_000  # draws at once
FRACTIONS = (0.25, 0.5, 1.0, 1.5, 2.0)  # of the coupling, at which it is measured


def model(settings):
    """The free network, scaled to variance 1 at a point; λ is then in units of 1/variance²."""
    described = dict(dim=1, mass=settings.mass, radius=settings.radius)
    std = 1 / np.sqrt(float(theory.cosnet_covariance(0.0, **described)))
    return brg.cosnet(settings.width, 1, settings.mass, settings.radius, std, likelihood=brg.gaussian(1.0))


def mesh(settings):
    return jnp.arange(settings.num_points, dtype=float)[:, None] * settings.spacing


def interaction(coupling):
    return lambda phi: coupling / 24 * jnp.sum(phi**4)


def data(settings, key):
    x = mesh(settings)  # targets are noise that no method looks at
    return brg.Data(x, jax.random.normal(key, (len(x), 1)), x, jnp.zeros((len(x), 1)), characteristic=x[0])


def probe(settings, key):
    return mesh(settings)


def weighted(model, x, y, key, settings):
    free = brg.prior(model, x, key=key, num_samples=settings.num_members)
    weights = brg.importance_weights(brg.deform(model, interaction(settings.coupling), mesh(settings)), free)
    return weights.resample(jax.random.fold_in(key, 1))


def nuts(model, x, y, key, settings):
    interacting = brg.deform(model, interaction(settings.coupling), mesh(settings), likelihood=False)
    return brg.nuts(interacting, x, y, key=key, num_chains=4, num_warmup=settings.num_warmup, init="prior",
                    num_samples=settings.num_members // 8, max_tree_depth=4)


def free_field(settings):
    """Many draws of the free field on the mesh, and of the interaction at unit coupling: (draw, point) and (draw,)."""
    net, x, key = model(settings), mesh(settings), jax.random.fold_in(jax.random.key(settings.seed), 1)
    unit, phi, weights = brg.deform(net, interaction(1.0), x), [], []
    for number in range(-(-settings.num_draws // BATCH)):
        draws = brg.prior(net, x, key=jax.random.fold_in(key, number), num_samples=BATCH)
        phi.append(np.asarray(brg.predict(net, draws, x, progress_bar=False), np.float64).reshape(BATCH, -1))
        weights.append(brg.importance_weights(unit, draws).log_weights.ravel())
    return np.concatenate(phi), -np.concatenate(weights)


def recovered(settings):
    """The measured coupling at several λ: one row for each λ and order, site by site and their mean."""
    phi, unit = free_field(settings)
    free, rows = brg.cumulants(phi, order=6, zero_mean=True), []
    site = np.arange(settings.num_points)
    for fraction in FRACTIONS:
        coupling = fraction * settings.coupling
        weight = np.exp(-coupling * unit)
        k = brg.cumulants(phi, order=6, zero_mean=True, weights=weight)
        for order in (2, "next"):
            # The same draws with and without weights: their errors are paired.
            measured = brg.action(k, order, even=True, relative_to=free)

            def mean(*pair, order=order):
                with_weights, without = (brg.action(part, order, even=True) for part in pair)
                return {"mean": (with_weights.quartic - without.quartic)[..., site, site, site, site].mean(-1)}

            value, error, bias = k.jackknife(mean, free)
            row = {"coupling": coupling, "order": str(order), "ess": weight.sum() ** 2 / (weight**2).sum(),
                   "measured": value["mean"] - bias["mean"], "measured_se": error["mean"],
                   "quadratic": np.diagonal(measured.quadratic).mean(),
                   "quartic_between_sites": measured.quartic[0, 0, 1, 1] if len(site) > 1 else np.nan}
            for i in site:
                row[f"site{i}"], row[f"site{i}_se"] = measured.quartic[i, i, i, i], measured.sem.quartic[i, i, i, i]
            rows.append(row)
    return pd.DataFrame(rows)


def coupling_figure(table):
    figure = Figure(figsize=(5.8, 4.6), layout="constrained")
    ax = figure.subplots()
    for number, (order, label) in enumerate((("next", "next order"), ("2", "order 1/N"))):
        part = table[table["order"] == order]
        ax.errorbar(part["coupling"], part["measured"], 1.96 * part["measured_se"], color=plots.COLOURS[number],
                    marker=plots.MARKERS[number], linestyle=plots.LINES[number], capsize=2, linewidth=1.0,
                    label=f"measured, {label}")
    top = 1.05 * table["coupling"].max()
    ax.plot([0, top], [0, top], color=plots.INK, linestyle=":", label="put in")
    ax.set_xlabel(r"coupling $\lambda$ put in (1/variance²)")
    ax.set_ylabel(r"$g_4$ measured, mean over sites")
    ax.set_xlim(0, top)
    ax.set_ylim(bottom=0)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    return figure


def extras(run, flows):
    settings = experiment.with_settings(run.settings)
    table = recovered(settings)
    phi = run.flow["phi"].sel(cutoff=0).isel(output=0, point=slice(settings.num_points))
    names = [f"x = {x:g}" for x in np.asarray(mesh(settings))[:2, 0]]
    with matplotlib.rc_context(plots.STYLE):
        figures = {"coupling": coupling_figure(table), "running": Figure(figsize=(5.8, 4.4), layout="constrained")}
        end = theory.cosnet_kappa4(np.zeros((4, 1)), mass=settings.mass, radius=settings.radius, width=settings.width,
                                   weight_var=model(settings).weight_std**2)
        ax = plots.coupling_along_flow(
            run.couplings, "quartic", ax=figures["running"].subplots(), reference=settings.coupling - float(end),
            reference_label=rf"$\lambda$ + that of the free network, {settings.coupling:g} − {float(end):.2g}")
        ax.axhline(-float(end), color=plots.INK, linestyle="-.", linewidth=1.0, label="that of the free network")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
        figures["marginals"] = plots.edgeworth_marginals(phi, points=range(len(names)), names=names)
    return {**figures, "phi4": table}


experiment = brg.Experiment(
    name="phi4",
    model=model,
    data=data,
    probe=probe,
    infer={"weighted": weighted, "nuts": nuts},
    metric={"kind": "diagonal", "at": "draw"},
    flow={"cutoffs": [0, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30], "refill": "prior"},
    settings={"coupling": 0.2, "num_points": 3, "spacing": 2.5, "width": 64, "mass": 1.0, "radius": 3.0,
              "num_members": 8000, "num_warmup": 200, "num_draws": 100_000, "seed": 0},
    couplings=1,
    extras=extras,
)
