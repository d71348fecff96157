"""How the directions of a metric are spread over decades of stiffness, as a small table that a run can keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

__all__ = ["spectrum_table"]

QUANTILES = (0.05, 0.5, 0.95)


def spectrum_table(metric: Any, num: int | None = 300) -> xr.Dataset:
    """Stiffness of a metric's directions in descending order, as quantiles over draws.

    Parameters
    ----------
    metric : Metric
        Diagonal: directions are parameters, grouped by site. Other kinds: eigenmodes, by site for ``kind="block"``.
    num : int, optional
        Ranks kept of a group, evenly spaced; None for all.

    Returns
    -------
    xarray.Dataset
        ``stiffness`` (group, rank, quantile), λ per datum, 0 at or under the noise floor; ``share`` (group, rank), the
        share of directions at least as stiff; NaN beyond a group's ranks. ``num_directions``, ``zero_fraction``,
        ``num_parameters`` (group): parameters beyond the number of modes are directions of stiffness zero (of a
        low-rank metric, unknown) that the others leave out. Attributes ``kind``, ``at``, ``whitened``, ``num_draws``.
    """
    if metric.kind == "diagonal":
        groups = metric.stiffness
    else:
        groups = metric.eigenvalues if isinstance(metric.eigenvalues, dict) else {"eigenvalues": metric.eigenvalues}
    sizes = {s: int(np.prod(shape)) for s, shape in metric.geometry.shapes().items()}
    draws = int(np.prod(metric.lead)) if metric.per_draw else 1
    found = []
    for label, values in groups.items():
        table = -np.sort(-np.asarray(values, float).reshape(draws, -1), axis=1)
        if metric.kind != "diagonal":
            floor = metric.noise_floor[label] if isinstance(metric.noise_floor, dict) else metric.noise_floor
            table = np.where(table > np.asarray(floor, float).reshape(draws, -1), table, 0.0)
        size = table.shape[1]
        keep = np.arange(size) if num is None or size <= num else np.linspace(0, size - 1, num).round().astype(int)
        found.append((size, float(np.mean(table <= 0)), (keep + 1) / size,
                      np.quantile(table[:, keep], QUANTILES, axis=0).T))
    most = max(len(share) for _, _, share, _ in found)

    def padded(array: np.ndarray) -> np.ndarray:
        return np.pad(array, [(0, most - len(array)), *[(0, 0)] * (array.ndim - 1)], constant_values=np.nan)

    return xr.Dataset(
        {"stiffness": (("group", "rank", "quantile"), np.stack([padded(f[3]) for f in found])),
         "share": (("group", "rank"), np.stack([padded(f[2]) for f in found])),
         "num_directions": ("group", [f[0] for f in found]), "zero_fraction": ("group", [f[1] for f in found]),
         "num_parameters": ("group", [sizes.get(label, sum(sizes.values())) for label in groups])},
        {"group": [str(label) for label in groups], "quantile": list(QUANTILES)},
        {"kind": metric.kind, "at": metric.at, "whitened": int(bool(metric.whiten)), "num_draws": draws},
    )
