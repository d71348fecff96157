"""Actions and running couplings from estimated cumulants: one pipeline, with its errors, its bias and its ridge.

Block by block the cumulants go through the rules of `action`; the jackknife gives the couplings' standard errors and
their bias, which is subtracted.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from ..core.jackknife import jackknife
from . import symmetric_tensors
from .action import NEEDED, RANKS, Action, couplings_of, filled, pack, unpacked
from .cumulants import Cumulants, field_tensors

__all__ = ["action", "running_couplings"]

HIGHEST = {0: 2, 1: 3, 2: 4, "next": 6}
EVEN_SIGMAS = 6.0
AT_ONCE = 1 << 22  # numbers of replicates' tensors


class _Recipe(NamedTuple):
    """How couplings are made of cumulants; the options of `action`."""

    order: int | str
    even: bool = False
    about: str = "mean"
    bias_correction: bool = True
    ridge: float | None = None
    max_condition: float = 1e8

    @classmethod
    def checked(cls, k: Any, order: int | str | None, even: bool, about: str, bias_correction: bool,
                ridge: float | None, max_condition: float) -> _Recipe:
        if order is None:
            known = [n for n in ("k3", "k4") if isinstance(k, Cumulants) and getattr(k, n) is not None]
            order = 2 if "k4" in known or not isinstance(k, Cumulants) else len(known)
        if order not in NEEDED:
            raise ValueError(f"order is {order!r}; expected 0, 1, 2 or 'next'")
        if about not in ("mean", "zero"):
            raise ValueError(f"about is {about!r}; expected 'mean' or 'zero'")
        if ridge is not None and not ridge >= 0:
            raise ValueError(f"ridge is {ridge}; expected a variance >= 0")
        if not max_condition > 1:
            raise ValueError(f"max_condition is {max_condition}; expected more than 1")
        return cls(order, even, about, bias_correction, ridge, max_condition)

    def tensors(self, k: Cumulants) -> dict[str, Any]:
        return field_tensors(k, *NEEDED[self.order])

    def couplings(self, k: Cumulants, noise: Any) -> dict[str, Any]:
        """The couplings that do not vanish at this order, and the mean."""
        return couplings_of(self.tensors(k), self.order, noise, self.even, self.about)

    def noise(self, k: Cumulants) -> np.ndarray:
        """The ridge of one set of cumulants, after a look at whether they are even where that is assumed."""
        if self.even or self.order == "next":
            check_even(k)
        return np.asarray(regularise(k, self.max_condition) if self.ridge is None else float(self.ridge))

    def measured(self, function: Callable[..., dict[str, Any]], ridge: np.ndarray, k: Cumulants, *others: Cumulants
                 ) -> Action:
        """The action whose packed couplings a function makes of cumulants in the same blocks."""
        def full(c: dict[str, Any]) -> Action:
            c = filled(unpacked(c, k.num_points), c["mean"].shape)
            return Action(**c, ridge=ridge, order=self.order)

        if k.blocks is None or any(other.blocks is None for other in others):
            return _finite(full(function(k, *others)), k)
        value, sem, bias = k.jackknife(function, *others)
        bias = {n: bias_share(k) * v for n, v in bias.items()}
        if self.bias_correction:
            value = {n: v - bias[n] for n, v in value.items()}
        made = dataclasses.replace(full(value), sem=full(sem), bias=full(bias) if self.bias_correction else None)
        return _finite(made, k)


def _finite(made: Any, k: Cumulants) -> Any:
    """Couplings by name, of an action or a table, unless float64 does not hold one."""
    for name, value in (vars(made) if isinstance(made, Action) else made).items():
        if (isinstance(made, dict) or name in RANKS) and value is not None and not np.isfinite(value).all():
            raise ValueError(f"the {name} coupling of the action leaves float64: k2 is up to {np.abs(k.k2).max():.3g}; "
                             "scale the field")
    return made


def _packed(c: dict[str, Any]) -> dict[str, Any]:
    return {n: pack(v, RANKS.get(n, 1)) for n, v in c.items()}


def regularise(k: Cumulants, max_condition: float) -> float:
    """Smallest ridge that brings the condition number to ``max_condition``, with a warning; or 0.

    The covariance of all draws but one block, which the jackknife inverts too, is held to the same.
    """
    k2 = np.asarray(k.k2, dtype=np.float64)[None]
    if k.blocks is not None:
        k2 = np.concatenate([k2, k.up_to(2).replicates().k2])
    eigenvalues = np.linalg.eigvalsh(k2)
    low, high = eigenvalues[:, 0], eigenvalues[:, -1]
    if low[0] < -1e-6 * abs(high[0]) or high[0] <= 0:
        raise ValueError(f"k2 is not a covariance: its eigenvalues run from {low[0]:.3g} to {high[0]:.3g}")
    lacking = (high - low * max_condition) / (max_condition - 1)
    worst = 0 if lacking[0] > 0 else int(np.argmax(lacking))
    if lacking[worst] <= 0:
        return 0.0
    ridge = float(lacking.max())
    condition = high[worst] / low[worst] if low[worst] > 0 else np.inf
    warnings.warn(
        f"k2 is near-singular{' without one block of draws' if worst else ''} (condition number {condition:.3g}); a "
        f"ridge of {ridge:.3g} was added to its diagonal, so this is the action of the field plus white noise of that "
        "variance. Use fewer points or more draws, or set ridge= or max_condition=.",
        stacklevel=4,
    )
    return ridge


def bias_share(k: Cumulants) -> float:
    """What to keep of the jackknife's bias, so that A of independent Gaussian draws is exactly unbiased.

    The inverse of a sample covariance is off by c/(T-s), s = M+2 (M+1 if the mean is known), and the jackknife, which
    takes a bias of c/T off, would take too much. A block of correlated draws is worth fewer, so that s is then less
    than it should be.
    """
    assert k.blocks is not None
    left = float(k.blocks.count.sum()) * (1 - 1 / k.blocks.num_blocks)
    return max(0.0, 1 - (k.num_points + (1 if k.blocks.zero_mean else 2)) / left)


def action(
    k: Cumulants,
    order: int | str | None = None,
    *,
    even: bool = False,
    about: str = "mean",
    bias_correction: bool = True,
    ridge: float | None = None,
    max_condition: float = 1e8,
    relative_to: Cumulants | None = None,
) -> Action:
    """The action of the field whose cumulants are ``k``, by the inverse Feynman rules.

    Parameters
    ----------
    k : Cumulants
        A leading cutoff axis gives an action with that axis. If ``k`` was estimated from draws the couplings
        are corrected for bias and have standard errors.
    order : 0, 1, 2 or "next", optional
        0: the free (Gaussian) action. 1: third cumulants, error O(1/N). 2: all of 1/N, error O(N^(-3/2)), or
        O(N^(-2)) if odd cumulants vanish. "next": one order more for theories even about their mean; needs
        ``k.k6``, from ``cumulants(phi, order=6, zero_mean=True)``. The highest of 0, 1, 2 that ``k`` allows
        if left out.
    even : bool
        Take odd cumulants as zero: z -> -z is a symmetry. Implied by "next".
    about : "mean" or "zero"
        Couplings of z = phi - mean, or of phi.
    bias_correction : bool
        Subtract the bias estimated by the jackknife. The inverse of a sample covariance alone is biased by
        (T-1)/(T-M-2), and g4 carries four.
    ridge : float, optional
        Added to the diagonal of k2, in field^2. Chosen by ``max_condition`` if left out.
    max_condition : float
        Largest condition number of k2 taken as it is.
    relative_to : Cumulants, optional
        Another theory, whose couplings are subtracted. Measured on the same draws (another weight, another
        features' field), the standard errors are those of the paired difference. For a prior weighted by
        exp(-O(phi)) and the free one, the difference is a measurement of O itself. Both need the same mean, or
        ``about="zero"``.

    Returns
    -------
    Action

    Warns
    -----
    UserWarning
        Where a ridge was needed, where errors cannot be given, or where an odd cumulant contradicts ``even``.

    Notes
    -----
    (41), (42), (57), (58). A ridge is exactly the action of the field plus independent white noise of that
    variance, which has no higher cumulants.
    """
    recipe = _Recipe.checked(k, order, even, about, bias_correction, ridge, max_condition)
    t = recipe.tensors(k)
    k = k.up_to(HIGHEST[recipe.order])
    if relative_to is not None:
        return _relative(k, relative_to, recipe)
    if t["k2"].ndim == 3:
        parts = [action(part, **recipe._asdict()) for part in _split(k)]
        return dataclasses.replace(_stack(parts), cutoff=k.cutoff)
    if t["k2"].ndim != 2:
        raise ValueError(f"k2 has shape {t['k2'].shape}; expected (M, M) or (cutoff, M, M)")
    if symmetric_tensors.namespace(t) is jnp:
        traced: Any = 0.0 if ridge is None else ridge
        return Action(**filled(recipe.couplings(k, traced), t["mean"].shape), ridge=traced, order=recipe.order)
    noise = recipe.noise(k)
    if k.blocks is None and k.sem is not None:
        warnings.warn(
            "the couplings have no standard errors and no bias correction: k keeps no block sums. "
            "Use fewer points or more draws.",
            stacklevel=2,
        )
    with np.errstate(over="ignore", invalid="ignore"):  # said by name
        return recipe.measured(lambda part: _packed(recipe.couplings(part, noise)), noise, k)


def _relative(k: Cumulants, base: Cumulants, recipe: _Recipe) -> Action:
    """Couplings of ``k`` less those of ``base``, block by block."""
    tensors = [recipe.tensors(part) for part in (k, base)]
    if any(t["k2"].ndim != 2 for t in tensors):
        raise ValueError("relative_to compares two theories at one cutoff each: pass k[i] and relative_to=base[i]")
    means = [t["mean"] for t in tensors]
    if means[0].shape != means[1].shape:
        raise ValueError(f"k is on {means[0].shape[-1]} points and relative_to on {means[1].shape[-1]}")
    if recipe.about == "mean" and (means[0] != means[1]).any():
        raise ValueError("the two theories have different means, so their couplings are of different fields; pass "
                         "about='zero', or cumulants(..., zero_mean=True)")
    base = base.up_to(HIGHEST[recipe.order])
    noise = [recipe.noise(part) for part in (k, base)]

    def difference(*parts: Cumulants) -> dict[str, Any]:
        c, c0 = (filled(recipe.couplings(p, n), p.mean.shape) for p, n in zip(parts, noise, strict=True))
        return _packed({n: v if n == "mean" else v - c0[n] for n, v in c.items()})

    with np.errstate(over="ignore", invalid="ignore"):
        return recipe.measured(difference, noise[0], k, base)


def check_even(k: Cumulants) -> None:
    """Speak up where a theory is called even although κ3 is away from zero by its errors."""
    error = None if k.sem is None else k.sem.k3
    if k.k3 is None or error is None and k.num_samples is not None:  # an estimate without its error proves nothing
        return
    k3 = np.abs(np.asarray(k.k3))
    if error is None:
        scale = np.sqrt(np.diagonal(k.k2).max()) ** 3
        odd = bool((k3 > 1e-8 * scale).any())
    else:
        odd = bool((k3 > EVEN_SIGMAS * error).any())
    if odd:
        warnings.warn(
            "the theory is taken as even, but a third cumulant differs from zero; the couplings ignore it",
            stacklevel=3,
        )


def _split(k: Cumulants) -> list[Cumulants]:
    return [k[i] for i in range(k.mean.shape[0])]


def _stack(parts: list) -> Any:
    return jax.tree_util.tree_map(lambda *leaves: symmetric_tensors.namespace(leaves).stack(leaves), *parts)


def running_couplings(
    k: Cumulants,
    order: int | str | None = None,
    *,
    even: bool = False,
    ridge: float | None = None,
    max_condition: float = 1e8,
) -> xr.Dataset:
    """Couplings at every scale of a flow, with standard errors, as one table.

    Parameters
    ----------
    k : Cumulants
        With a leading cutoff axis, as :func:`~bayes_brg.correlators.cumulants` makes from ``flow.predict``;
        one cutoff works too.
    order, even, ridge, max_condition
        As for :func:`action`.

    Returns
    -------
    xarray.Dataset
        Over ``cutoff`` (units of the metric's stiffness) and ``point`` (mesh index). Each name has a ``_sem``
        beside it if ``k`` came from draws, and is then corrected for bias by the same jackknife; with several
        cutoffs also ``_change``, its difference from the first cutoff, and ``_change_sem``. Members keep their draws
        along a flow, so that the error of a difference is far below those of its terms; it is that of paired draws:

        constant, linear, cubic, quartic
            S0, J_i, g3_iii, g4_iiii.
        quadratic
            A_ij, dims (point, point2).
        mass
            sum_j A_ij: the mass-like term, what S costs a field that is the same at all points.
        effective_cubic, effective_quartic
            g3_iii K_ii^(3/2) and g4_iiii K_ii^2: dimensionless, unchanged if the field is rescaled.
        variance, skewness, kurtosis
            K_ii, kappa3_iii / K_ii^(3/2) and kappa4_iiii / K_ii^2 (0 for a Gaussian).
    """
    recipe = _Recipe.checked(k, order, even, "mean", True, ridge, max_condition)
    t = recipe.tensors(k)
    leading = t["k2"].ndim == 3
    if t["k2"].ndim not in (2, 3):
        raise ValueError(f"k2 has shape {t['k2'].shape}; expected (M, M) or (cutoff, M, M)")
    parts = [part.up_to(HIGHEST[recipe.order]) for part in (_split(k) if leading else [k])]
    ridges = [regularise(part, max_condition) if ridge is None else float(ridge) for part in parts]
    rows: list[dict[str, Any]] = []
    first: dict[str, np.ndarray] = {}
    for part, noise in zip(parts, ridges, strict=True):
        replicates = _replicates(part, recipe, noise)
        first = first or replicates
        rows.append(_row(part, replicates, first if leading else {}))
    dims = {"constant": (), "quadratic": ("point", "point2")}
    lead = ("cutoff",) if leading else ()
    data = {name: (lead + dims.get(name.split("_sem")[0].split("_change")[0], ("point",)),
                   np.stack([row[name] for row in rows]) if leading else rows[0][name]) for name in rows[0]}
    coords: dict[str, Any] = {"point": np.arange(t["k2"].shape[-1])}
    if leading:
        coords["cutoff"] = k.cutoff if k.cutoff is not None else np.arange(t["k2"].shape[0])
    data["ridge"] = (lead, np.array(ridges) if leading else ridges[0])
    out = xr.Dataset(data, coords=coords, attrs={"order": str(recipe.order)})
    if k.labels is not None:
        out = out.assign_coords(label=("point", [str(label) for label in k.labels]))
    return out


def _replicates(part: Cumulants, recipe: _Recipe, noise: float) -> dict[str, np.ndarray]:
    """The table's numbers, (1 + block, ...): of all draws, then without each block."""
    def table(p: Cumulants) -> dict[str, Any]:
        return _running(recipe.tensors(p), recipe.order, np.asarray(noise), recipe.even)

    with np.errstate(over="ignore", invalid="ignore"):
        whole = _finite(table(dataclasses.replace(part, sem=None, blocks=None)), part)
        rows = [{n: np.asarray(v)[None] for n, v in whole.items()}]
        if part.blocks is not None:
            step = max(1, AT_ONCE // part.num_points ** (6 if part.k6 is not None else 4))
            rows += [table(part.replicates(slice(i, i + step))) for i in range(0, part.blocks.num_blocks, step)]
    return {n: np.concatenate([row[n] for row in rows]) for n in rows[0]}


def _row(part: Cumulants, replicates: dict[str, np.ndarray], first: dict[str, np.ndarray]) -> dict[str, Any]:
    """One scale of the table: values less their bias, errors, and paired differences from the first scale."""
    if part.blocks is None:
        return {n: v[0] for n, v in replicates.items()}
    sizes, share = part.blocks.count, bias_share(part)
    row: dict[str, np.ndarray] = {}
    for name, values in replicates.items():
        for label, numbers in ((name, values), (f"{name}_change", values - first[name] if first else None)):
            if numbers is not None:
                sem, bias = jackknife(numbers, sizes)
                row |= {label: numbers[0] - share * bias, f"{label}_sem": sem}
    return row


def _running(t: dict[str, Any], order: int | str, ridge: Any, even: bool) -> dict[str, Any]:
    c = filled(couplings_of(t, order, ridge, even, "mean"), t["mean"].shape)
    i = np.arange(t["k2"].shape[-1])
    variance = t["k2"][..., i, i]
    g3, g4 = c["cubic"][..., i, i, i], c["quartic"][..., i, i, i, i]
    out = {
        "constant": c["constant"],
        "linear": c["linear"],
        "quadratic": c["quadratic"],
        "mass": c["quadratic"].sum(-1),
        "cubic": g3,
        "quartic": g4,
        "effective_cubic": g3 * variance**1.5,
        "effective_quartic": g4 * variance**2,
        "variance": variance,
    }
    if "k3" in t and not even:
        out["skewness"] = t["k3"][..., i, i, i] / variance**1.5
    if "k4" in t:
        out["kurtosis"] = t["k4"][..., i, i, i, i] / variance**2
    return out
