"""Run directories: a JSON manifest and NetCDF files, written whole or not at all, read without this package.

    manifest.json            what was run: settings, versions, key, seconds a stage, results
    data.nc                  x, y, x_test, y_test, x_probe
    posterior.nc, flow.nc    of the main method; posterior_NAME.nc, flow_NAME.nc of the others
    summary.csv              one row a cutoff; summary_NAME.csv of the others
    couplings.nc             where asked for: cumulants and couplings of the field along the flow;
                             couplings_NAME.nc of the others
    encoding.csv, encoder.json  of a table: what became of its columns, in words and to be used again
    figures/*.png

`posterior.nc` opens with ``arviz.from_netcdf``, `flow.nc` with ``xarray.open_dataset``. A file is written under
another name in the same directory and then renamed, so a file that is there is complete.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import pandas as pd
import xarray as xr

from ..posterior import Posterior
from .arviz_bridge import posterior_datasets, posterior_from_datasets, tree_from
from .units import Units

__all__ = ["Run", "load_posterior", "load_run", "save_posterior"]

FORMAT = 2  # to be raised when a file's meaning changes: runs of another format are refused
MANIFEST = "manifest.json"


# -- files ----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block ends well, and goes away if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all; numbers that JSON cannot hold (NaN, infinity) become null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def jsonable(value: Any) -> Any:
    """`value` in terms of JSON: arrays as lists, callables by name."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "__array__"):
        return jsonable(np.asarray(value).tolist())
    return getattr(value, "__qualname__", None) or repr(value)


def write_datasets(path: Path, groups: Mapping[str | None, xr.Dataset]) -> None:
    """Write Datasets as the groups of one NetCDF file (None: the root), whole or not at all."""
    with replacing(Path(path)) as temporary:
        for number, (group, dataset) in enumerate(groups.items()):
            dataset.to_netcdf(temporary, mode="a" if number else "w", group=group, engine="h5netcdf")


def read_dataset(path: Path, group: str | None = None) -> xr.Dataset:
    """Read one Dataset into memory."""
    return xr.load_dataset(path, group=group, engine="h5netcdf")


def save_posterior(path: str | Path, posterior: Posterior) -> None:
    """Write a `Posterior` as NetCDF, whole or not at all.

    Parameters
    ----------
    path : str or Path
        Such as ``"posterior.nc"``; opens with ``arviz.from_netcdf``, groups ``posterior`` and ``sample_stats``.
    posterior : Posterior
        Samples, stats, method, trained sites and history are all kept. Site names are escaped where they hold "/".
    """
    groups: dict[str | None, xr.Dataset] = dict(posterior_datasets(posterior).items())
    for epoch, earlier in posterior.history.items():
        for group, dataset in posterior_datasets(earlier).items():
            groups[f"history_{epoch}_{group}"] = dataset
    write_datasets(Path(path), groups)


def load_posterior(path: str | Path) -> Posterior:
    """Read a `Posterior` that `save_posterior` (or ArviZ) wrote.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Posterior
        Equal to the one saved, bit for bit.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not NetCDF or has no group ``posterior``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with h5netcdf.File(path, "r") as file:
            names = list(file.groups)
    except OSError as error:
        raise ValueError(f"{path} is not a NetCDF file: {error}") from None
    if "posterior" not in names and "sample_stats" in names:
        raise ValueError(f"{path} holds no weights, only what its sampler reported: the run was made with "
                         "--no-weights. Its flow has φ and the loss; for more, run it again with weights")
    if "posterior" not in names:
        raise ValueError(f"{path} has no group 'posterior'; its groups are {', '.join(names) or 'none'}")

    def read(prefix: str) -> Posterior:
        stats = f"{prefix}sample_stats"
        return posterior_from_datasets(read_dataset(path, f"{prefix}posterior"),
                                       read_dataset(path, stats) if stats in names else None)

    epochs = sorted(int(n.split("_")[1]) for n in names if n.startswith("history_") and n.endswith("_posterior"))
    return read("").replace(history={epoch: read(f"history_{epoch}_") for epoch in epochs})


def drop_weights(path: Path) -> None:
    """Leave only what the sampler reported in a posterior's file."""
    write_datasets(path, {"sample_stats": read_dataset(path, "sample_stats")})


def in_units(flow: xr.Dataset, y_test: Any = None) -> xr.Dataset:
    """A stored flow in the data's own units, where its targets were standardised or transformed.

    The first output φ is brought back by `Units.back`; a squared loss is multiplied by ``y_scale²``, and a −log p gets
    the Jacobian, ``+ log y_scale``. Further outputs stay as the model has them. Where the target was transformed (log,
    rank) too, the Jacobian is that of the test points, and a squared loss is made anew from φ and `y_test`, the targets
    as the model sees them.
    """
    if "y_scale" not in flow.attrs:
        return flow
    units = Units.of(flow.attrs)
    phi, loss = (flow[name].astype(float) for name in ("phi", "loss"))
    first = phi.isel(output=[0]).copy(data=units.back(phi.isel(output=[0]).values))
    own = xr.concat([first, phi.isel(output=slice(1, None))], "output") if phi.sizes["output"] > 1 else first
    if loss.attrs.get("units") == "nats":
        shifted = loss - float(flow.attrs.get("y_log_jacobian", -math.log(units.scale)))
    elif units.linear:
        shifted = loss * units.scale**2
    else:
        y = units.back(np.asarray(y_test)).ravel()
        squares = (first.isel(output=0, point=slice(len(y))) - xr.DataArray(y, dims="point")) ** 2
        shifted = squares.mean("point").transpose(*loss.dims)
    found = flow.assign(phi=own.transpose(*phi.dims).assign_attrs(phi.attrs | {"units": units.name or "own units"}),
                        loss=shifted.assign_attrs(loss.attrs))
    found.attrs = {k: v for k, v in flow.attrs.items() if not k.startswith("y_")}
    return found


def learned_variables(sites: Mapping[str, Any]) -> dict[str, tuple]:
    """What a likelihood learns, site to (cutoff, chain, draw, …), as variables of a stored flow."""
    return {f"learned_{site}": (("cutoff", "chain", "draw", *(f"learned_{site}_{i}" for i in range(np.ndim(v) - 3))),
                                np.asarray(v)) for site, v in sites.items()}


def learned_sites(flow: xr.Dataset, cutoff: float = 0.0) -> dict[str, np.ndarray]:
    """What the likelihood of a stored flow learns, site to (draws, …), chain by chain."""
    found = {}
    for name in (str(n) for n in flow.data_vars if str(n).startswith("learned_")):
        value = flow[name].sel(cutoff=cutoff).transpose("chain", "draw", ...).values
        found[name.removeprefix("learned_")] = value.reshape(-1, *value.shape[2:])
    return found


# -- runs -----------------------------------------------------------------------------------------------------
def method_file(stem: str, name: str, methods: list[str], suffix: str) -> str:
    """File of a method's stage: the first method is the main one and has the plain name."""
    return f"{stem}{suffix}" if name == methods[0] else f"{stem}_{name}{suffix}"


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run, read from its directory. Arrays are read when first asked for.

    Attributes
    ----------
    path : Path
        The directory.
    manifest : dict
        What was run (``experiment``, ``settings``, ``options``, ``key``), with what (``versions``, ``platform``), how
        long each stage took (``stages``, seconds), and what came out (``results``, for each method: ``critical_scale``,
        ``num_diverged``).
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.manifest["experiment"]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings it ran with."""
        return self.manifest["settings"]

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return bool(self.manifest.get("finished"))

    @property
    def methods(self) -> list[str]:
        """Names of the methods, the main one first."""
        return list(self.manifest["methods"])

    def file(self, stem: str, method: str | None = None, suffix: str = ".nc") -> Path:
        """Path of a method's file; the main method's by default."""
        return self.path / method_file(stem, method or self.methods[0], self.methods, suffix)

    @property
    def files(self) -> list[Path]:
        """What a finished run holds, but for its figures."""
        kinds = (("posterior", ".nc"), ("flow", ".nc"), ("summary", ".csv"))
        return [self.path / "data.nc", *(self.file(s, m, suffix) for s, suffix in kinds for m in self.methods)]

    def _read(self, path: Path, reader: Callable[[Path], Any]) -> Any:
        if not path.is_file():
            state = "the file was removed" if self.finished else "the run is not finished: run it again to go on"
            raise FileNotFoundError(f"{self.path} has no {path.name}; {state}")
        return reader(path)

    @cached_property
    def posteriors(self) -> dict[str, Posterior]:
        """The posterior of each method, sites (chain, draw, *site shape)."""
        return {m: self._read(self.file("posterior", m), load_posterior) for m in self.methods}

    @cached_property
    def posterior(self) -> Posterior:
        """The main method's posterior."""
        return self._read(self.file("posterior"), load_posterior)

    @cached_property
    def flows(self) -> dict[str, xr.Dataset]:
        """The flow of each method, as `flow`."""
        return {m: self._read(self.file("flow", m), read_dataset) for m in self.methods}

    @cached_property
    def own_units(self) -> dict[str, xr.Dataset]:
        """`flows` in the data's own units, for people: what summaries, figures and the report show.

        The same as `flows` unless the targets were standardised; then these hold φ and loss as the model has them.
        """
        y_test = self.data["y_test"].values if "y_transform" in self.data.attrs else None
        return {m: in_units(flow, y_test) for m, flow in self.flows.items()}

    @property
    def truth(self) -> float | None:
        """True φ at the characteristic input, first output, in the data's own units, where the experiment gives it."""
        if "truth" not in self.data:
            return None
        return float(Units.of(self.data.attrs).back(self.data["truth"].values[0]))

    def independent(self, method: str) -> bool:
        """Whether a method's draws are independent of each other, by its own word; known without its weights too."""
        stats = self._read(self.file("posterior", method), lambda path: read_dataset(path, "sample_stats"))
        return bool(json.loads(stats.attrs.get("scalars", "{}")).get("independent", False))

    def inputs(self, name: str) -> Any:
        """``"x"``, ``"x_test"`` or ``"x_probe"`` as the model takes them: an array, or a dict or tuple of arrays."""
        names = json.loads(self.data.attrs["trees"])[name]
        if names is None:
            raise ValueError(f"{name} of {self.path} is no array, dict, list or tuple, and cannot be read back; pass "
                             "the flow, experiment.flow_of(run, method)")
        return tree_from(names, self.data)

    def read_flow(self, method: str) -> xr.Dataset:
        """The flow of one method, without reading the others'."""
        return self._read(self.file("flow", method), read_dataset)

    @cached_property
    def flow(self) -> xr.Dataset:
        """The main method's flow.

        ``phi`` (cutoff, chain, draw, point, output), ``loss`` (cutoff, chain, draw), ``stiff_fraction`` (cutoff,),
        ``diverged`` (chain, draw); the attribute ``characteristic_point`` is the position along ``point`` of the
        characteristic input. Λ is per datum.
        """
        return self._read(self.file("flow"), read_dataset)

    @cached_property
    def spectra(self) -> dict[str, xr.Dataset]:
        """Sloppiness spectrum of each method's metric, for `plots.spectrum`; of runs that kept it."""
        found = {}
        for method in self.methods:
            with h5netcdf.File(self._read(self.file("flow", method), lambda path: path), "r") as file:
                held = "spectrum" in file.groups
            if held:
                found[method] = read_dataset(self.file("flow", method), "spectrum")
        return found

    @cached_property
    def data(self) -> xr.Dataset:
        """``x, y, x_test, y_test, x_probe``, as the model takes them, and ``truth`` where the experiment gives it."""
        return self._read(self.path / "data.nc", read_dataset)

    @cached_property
    def encoding(self) -> pd.DataFrame | None:
        """What became of each column of the run's table, one row a column; None where its data are no table."""
        path = self.path / "encoding.csv"
        return pd.read_csv(path, keep_default_na=False) if path.is_file() else None

    @cached_property
    def summaries(self) -> dict[str, pd.DataFrame]:
        """The table of each method."""
        return {m: self._read(self.file("summary", m, ".csv"), pd.read_csv) for m in self.methods}

    @cached_property
    def summary(self) -> pd.DataFrame:
        """The main method's table, one row a cutoff."""
        return self._read(self.file("summary", None, ".csv"), pd.read_csv)

    @cached_property
    def couplings(self) -> dict[str, xr.Dataset]:
        """Cumulants and running couplings of the field along each method's flow, of an experiment that asks for them.

        Over (cutoff, point), as `bayes_brg.running_couplings` names them, each with its ``_sem``.
        """
        return {m: self._read(self.file("couplings", m), read_dataset) for m in self.methods}

    @property
    def figures(self) -> dict[str, Path]:
        """Figures by name."""
        return {p.stem: p for p in sorted((self.path / "figures").glob("*.png"))}

    def __repr__(self) -> str:
        state = "finished" if self.finished else f"unfinished, {len(self.manifest['stages'])} stages done"
        return f"Run({self.name!r}, {state}, methods: {', '.join(self.methods)}, path={str(self.path)!r})"


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a run's manifest, or say why the path is not a run."""
    if not path.exists():
        raise FileNotFoundError(f"no such run: {path}")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; a run is a directory with a {MANIFEST}")
    if not (path / MANIFEST).is_file():
        raise FileNotFoundError(f"{path} is not a run: it has no {MANIFEST}")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path / MANIFEST} cannot be read: {error}") from None
    needed = ("format", "experiment", "settings", "methods", "stages")
    missing = [k for k in needed if not isinstance(manifest, dict) or k not in manifest]
    if missing:
        raise ValueError(f"{path / MANIFEST} is not a run's manifest: it lacks {', '.join(missing)}")
    if manifest["format"] != FORMAT:
        raise ValueError(f"{path} has run format {manifest['format']}; this version reads format {FORMAT}: run the "
                         "experiment again into another directory")
    return manifest


def load_run(path: str | Path) -> Run:
    """Read a run directory.

    Parameters
    ----------
    path : str or Path
        What ``bayes-brg run FILE --out path`` left.

    Returns
    -------
    Run
        Manifest, posterior(s), flow(s), data, summary. Arrays are read when asked for.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, ValueError
        If the path is not a run, naming what is missing.
    """
    path = Path(path)
    return Run(path, read_manifest(path))


def open_run(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest to go on with: a new one, or that of the same experiment's earlier run in this directory.

    Parameters
    ----------
    path : Path
        The run directory; made where there is none.
    identity : mapping
        What must agree for stages to be taken over: ``experiment``, ``settings``, ``methods``, ``options``, ...

    Raises
    ------
    ValueError
        If the directory holds another experiment's run, the same one's with other settings, or unknown files.
    """
    identity = jsonable(identity)
    new = {"format": FORMAT, **identity, "stages": {}, "results": {}, "finished": False}
    remedy = "choose another directory with --out, or remove this one"
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; {remedy}")
    if not (path / MANIFEST).exists():
        held = [p.name for p in path.iterdir() if not p.name.startswith(".")] if path.exists() else []
        if held:
            raise ValueError(f"{path} holds files ({', '.join(sorted(held)[:3])}) but no run; {remedy}")
        return new
    manifest = read_manifest(path)
    if not set(manifest["stages"]) - {"data"}:  # it failed before anything was inferred: nothing is lost
        return new
    if manifest["experiment"] != identity["experiment"]:
        raise ValueError(f"{path} holds a run of {manifest['experiment']!r}, not of {identity['experiment']!r}; "
                         f"{remedy}")
    for part, now in identity.items():
        old = manifest.get(part)
        if old == now:
            continue
        if part == "source" and old and now:
            raise ValueError(f"{path} holds a run of {identity['experiment']!r} by a model file that has changed "
                             f"since; {remedy}")
        if isinstance(old, dict) and isinstance(now, dict):
            names = [k for k in {**old, **now} if old.get(k) != now.get(k)]
            what = ", ".join(f"{k} = {_short(old.get(k))} there, {_short(now.get(k))} now" for k in names)
            raise ValueError(f"{path} holds a run of {identity['experiment']!r} with other {part}: {what}; {remedy}")
        raise ValueError(f"{path} holds a run of {identity['experiment']!r} with another {part} "
                         f"({_short(old)} there, {_short(now)} now); {remedy}")
    return manifest


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
