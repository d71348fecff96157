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

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import xarray as xr

from ..core.files import MIB, listed, plain, replacing, short, write_file
from ..posterior import Posterior
from .arviz_bridge import posterior_datasets, posterior_from_datasets, tree_from
from .manifest import (
    COPY,
    FORMAT,
    MANIFEST,
    damage,
    jsonable,
    open_recorded,
    read_manifest,
    recorded,
    remedy,
    write_json,
    write_manifest,
)
from .netcdf import Netcdf, open_netcdf, write_datasets
from .units import Units

__all__ = ["Run", "load_posterior", "load_run", "replacing", "save_posterior", "write_datasets", "write_file",
           "write_json", "write_manifest"]

SMALL = 64 * MIB  # a run up to here is checked byte by byte when it is loaded
TABLE_LIMIT = 64 * MIB
COLUMN_LIMIT = 10_000


# -- posteriors -----------------------------------------------------------------------------------------------
def save_posterior(path: str | Path, posterior: Posterior) -> None:
    """Write a `Posterior` as NetCDF, whole or not at all.

    Parameters
    ----------
    path : str or Path
        Such as ``"posterior.nc"``; opens with ``arviz.from_netcdf``, groups ``posterior`` and ``sample_stats``.
    posterior : Posterior
        Samples, stats, method, trained sites and history are all kept. Site names are escaped where they hold "/".
    """
    write_datasets(Path(path), posterior_groups(posterior))


def posterior_groups(posterior: Posterior) -> dict[str | None, xr.Dataset]:
    """The groups of a posterior's file."""
    groups: dict[str | None, xr.Dataset] = dict(posterior_datasets(posterior).items())
    for epoch, earlier in posterior.history.items():
        for group, dataset in posterior_datasets(earlier).items():
            groups[f"history_{epoch}_{group}"] = dataset
    return groups


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
        raise FileNotFoundError(f"no such file: {plain(str(path))}")
    with open_netcdf(path) as file:
        return posterior_of(file)


def posterior_of(file: Netcdf) -> Posterior:
    """The posterior that an open file holds."""
    names = file.groups
    if "posterior" not in names and "sample_stats" in names:
        raise ValueError(f"{file.name} holds no weights, only what its sampler reported: the run was made with "
                         "--no-weights. Its flow has φ and the loss; for more, run it again with weights")
    if "posterior" not in names:
        raise ValueError(f"{file.name} has no group 'posterior'; its groups are {listed(names) or 'none'}")

    def read(prefix: str) -> Posterior:
        stats = f"{prefix}sample_stats"
        return posterior_from_datasets(file.read(f"{prefix}posterior"), file.read(stats) if stats in names else None)

    try:
        epochs = sorted(int(n.split("_")[1]) for n in names if n.startswith("history_") and n.endswith("_posterior"))
        return read("").replace(history={epoch: read(f"history_{epoch}_") for epoch in epochs})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if file.name in str(error):
            raise
        raise ValueError(f"{file.name} holds no posterior that can be read: {short(error, 200)}") from None


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

    @property
    def recorded(self) -> list[str]:
        """Names of the files that its stages left, in the directory; of runs of format 2, of all that are there."""
        if self.manifest["format"] == FORMAT:
            return [n for n in recorded(self.manifest) if (self.path / n).exists()]
        found = [*self.path.glob("*.*"), *(self.path / "figures").glob("*.png")]
        return sorted(p.relative_to(self.path).as_posix() for p in found if p.is_file() and p.name[0] != ".")

    def open(self, path: Path | str, limit: int | None = None) -> BinaryIO:
        """A file of the run, for reading: its bytes are those that were written, or an error names it.

        Raises
        ------
        FileNotFoundError, ValueError
            If it is missing or damaged, with what to do.
        """
        file = Path(path)
        name = (file.relative_to(self.path) if file.is_relative_to(self.path) else file).as_posix()
        known = self.manifest["format"] != FORMAT or name in recorded(self.manifest)
        if not known or not (self.path / name).exists():
            state = "the file was removed" if self.finished and known else (
                "it is none of the run's" if self.finished else "the run is not finished: run it again to go on")
            raise FileNotFoundError(f"{plain(str(self.path))} has no {short(name)}; {state}")
        return open_recorded(self.path, name, self.manifest, limit)

    def _read(self, path: Path, reader: Callable[[Netcdf], Any]) -> Any:
        with Netcdf(self.open(path), str(path)) as file:
            return reader(file)

    def read_bytes(self, path: Path | str) -> bytes:
        """All of a file of the run."""
        with self.open(path, SMALL) as file:
            return file.read()

    def table(self, name: str, **options: Any) -> pd.DataFrame:
        """A CSV file of the run."""
        with self.open(name, TABLE_LIMIT) as file:
            wide = file.readline().count(b",")
            if wide > COLUMN_LIMIT:
                raise ValueError(f"{plain(str(self.path / name))} has {wide + 1} columns, more than such a table "
                                 "ever has")
            file.seek(0)
            try:
                return pd.read_csv(file, **options)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{plain(str(self.path / name))} is no table that can be read: "
                                 f"{short(error, 200)}") from None

    def read_posterior(self, method: str) -> Posterior:
        """The posterior of one method, without reading the others'."""
        return self._read(self.file("posterior", method), posterior_of)

    @cached_property
    def posteriors(self) -> dict[str, Posterior]:
        """The posterior of each method, sites (chain, draw, *site shape)."""
        return {m: self.read_posterior(m) for m in self.methods}

    @cached_property
    def posterior(self) -> Posterior:
        """The main method's posterior."""
        return self._read(self.file("posterior"), posterior_of)

    @cached_property
    def flows(self) -> dict[str, xr.Dataset]:
        """The flow of each method, as `flow`."""
        return {m: self.read_flow(m) for m in self.methods}

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
        stats = self._read(self.file("posterior", method), lambda file: file.read("sample_stats"))
        return bool(json.loads(stats.attrs.get("scalars", "{}")).get("independent", False))

    def inputs(self, name: str) -> Any:
        """``"x"``, ``"x_test"`` or ``"x_probe"`` as the model takes them: an array, or a dict or tuple of arrays."""
        try:
            names = json.loads(self.data.attrs["trees"])[name]
            json.dumps(names)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{plain(str(self.path / 'data.nc'))} does not say how {name} is built up") from None
        if names is None:
            raise ValueError(f"{name} of {self.path} is no array, dict, list or tuple, and cannot be read back; pass "
                             "the flow, experiment.flow_of(run, method)")
        try:
            return tree_from(names, self.data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{plain(str(self.path / 'data.nc'))} holds no {name} that can be read: "
                             f"{short(error)}") from None

    def read_flow(self, method: str) -> xr.Dataset:
        """The flow of one method, without reading the others'."""
        return self._read(self.file("flow", method), Netcdf.read)

    @cached_property
    def flow(self) -> xr.Dataset:
        """The main method's flow.

        ``phi`` (cutoff, chain, draw, point, output), ``loss`` (cutoff, chain, draw), ``stiff_fraction`` (cutoff,),
        ``diverged`` (chain, draw); the attribute ``characteristic_point`` is the position along ``point`` of the
        characteristic input. Λ is per datum.
        """
        return self._read(self.file("flow"), Netcdf.read)

    @cached_property
    def spectra(self) -> dict[str, xr.Dataset]:
        """Sloppiness spectrum of each method's metric, for `plots.spectrum`; of runs that kept it."""
        return self._beside_flows("spectrum")

    @cached_property
    def sampling(self) -> dict[str, xr.Dataset]:
        """Diagnostics of each method's flow, where that was sampled scale by scale (`SampledFlow.diagnostics`)."""
        return self._beside_flows("sampling")

    def _beside_flows(self, group: str) -> dict[str, xr.Dataset]:
        """A group of each method's flow file, of those that have it."""
        found = {m: self._read(self.file("flow", m), lambda file: file.read(group) if group in file.groups else None)
                 for m in self.methods}
        return {m: held for m, held in found.items() if held is not None}

    @cached_property
    def data(self) -> xr.Dataset:
        """``x, y, x_test, y_test, x_probe``, as the model takes them, and ``truth`` where the experiment gives it."""
        return self._read(self.path / "data.nc", Netcdf.read)

    @cached_property
    def encoding(self) -> pd.DataFrame | None:
        """What became of each column of the run's table, one row a column; None where its data are no table."""
        return self.table("encoding.csv", keep_default_na=False) if "encoding.csv" in self.recorded else None

    @cached_property
    def summaries(self) -> dict[str, pd.DataFrame]:
        """The table of each method."""
        return {m: self.table(self.file("summary", m, ".csv").name) for m in self.methods}

    @cached_property
    def summary(self) -> pd.DataFrame:
        """The main method's table, one row a cutoff."""
        return self.table(self.file("summary", None, ".csv").name)

    @cached_property
    def couplings(self) -> dict[str, xr.Dataset]:
        """Cumulants and running couplings of the field along each method's flow, of an experiment that asks for them.

        Over (cutoff, point), as `bayes_brg.running_couplings` names them, each with its ``_sem``.
        """
        return {m: self._read(self.file("couplings", m), Netcdf.read) for m in self.methods}

    @property
    def figures(self) -> dict[str, Path]:
        """Figures by name."""
        names = sorted(n for n in self.recorded if n.startswith("figures/") and n.endswith(".png"))
        return {Path(n).stem: self.path / n for n in names}

    def __repr__(self) -> str:
        state = "finished" if self.finished else f"unfinished, {len(self.manifest['stages'])} stages done"
        return f"Run({self.name!r}, {state}, methods: {', '.join(self.methods)}, path={str(self.path)!r})"


def load_run(path: str | Path, verify: bool | None = None) -> Run:
    """Read a run directory.

    Parameters
    ----------
    path : str or Path
        What ``bayes-brg run FILE --out path`` left.
    verify : bool, optional
        Whether every file is compared with the SHA-256 that the manifest has of it, and none may be missing. Default:
        sizes, and the bytes where the run has less than 64 MiB; False: only what is read, when it is.

    Returns
    -------
    Run
        Manifest, posterior(s), flow(s), data, summary. Arrays are read when asked for, and checked then.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, ValueError
        If the path is not a run, naming what is missing, or a file is damaged, naming it and what to do.
    """
    path = Path(path)
    run = Run(path, read_manifest(path))
    if verify is not False:
        size = sum(found["size"] for found in recorded(run.manifest).values())
        faults = damage(path, run.manifest, deep=bool(verify) or size < SMALL, missing=bool(verify))
        if verify and run.manifest["format"] != FORMAT:
            raise ValueError(f"{plain(str(path))} has run format {run.manifest['format']}, which has no checksums: it "
                             "cannot be verified")
        if faults:
            raise ValueError(f"{'; '.join(list(faults.values())[:3])}{'; …' * (len(faults) > 3)}; "
                             f"{remedy(path, run.manifest)}")
    return run


def check_place(path: Path) -> None:
    """Refuse a directory in which no run can be: a file, or one that holds other things."""
    again = "choose another directory with --out, or remove this one"
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; {again}")
    if path.exists() and not any((path / name).exists() for name in (MANIFEST, COPY)):
        held = [p.name for p in path.iterdir() if not p.name.startswith(".")]
        if held:
            raise ValueError(f"{path} holds files ({listed(sorted(held), 3)}) but no run; {again}")


def open_run(path: Path, identity: Mapping[str, Any], accept_changed: bool = False) -> dict[str, Any]:
    """The manifest to go on with: a new one, or that of the same experiment's earlier run in this directory.

    Parameters
    ----------
    path : Path
        The run directory; made where there is none.
    identity : mapping
        What must agree for stages to be taken over: ``experiment``, ``settings``, ``methods``, ``options``, ...
    accept_changed : bool
        Whether the files that declare the experiment may have changed; the manifest then says so.

    Raises
    ------
    ValueError
        If the directory holds another experiment's run, the same one's with other settings, or unknown files.
    """
    identity = jsonable(identity)
    new = {"format": FORMAT, **identity, "stages": {}, "results": {}, "finished": False}
    remedy = "choose another directory with --out, or remove this one"
    check_place(path)
    if not path.exists() or not any((path / name).exists() for name in (MANIFEST, COPY)):
        return new
    manifest = read_manifest(path, mend=True)
    done = [name for name in manifest["stages"] if name != "data"]
    if not done:  # it failed before anything was inferred: nothing is lost
        return new
    if manifest["experiment"] != identity["experiment"]:
        raise ValueError(f"{path} holds a run of {manifest['experiment']!r}, not of {identity['experiment']!r}; "
                         f"{remedy}")
    for part, now in identity.items():
        old = manifest.get(part)
        if old == now or (part == "imports" and old is None):
            continue
        if part in ("source", "imports") and old is not None and now is not None:
            names = [] if part == "source" else [k for k in {**old, **now} if old.get(k) != now.get(k)]
            what = f"a file that its model file imports ({listed(names)})" if names else "a model file"
            if not accept_changed:
                raise ValueError(f"{path} holds a run of {identity['experiment']!r} by {what} that has changed since; "
                                 f"{remedy}, or keep its stages ({listed(done)}) with --accept-changed")
            manifest.setdefault("accepted", []).append(f"{listed(done)}: made by {what} that has changed since")
            manifest[part] = now
            continue
        if isinstance(old, dict) and isinstance(now, dict):
            names = [k for k in {**old, **now} if old.get(k) != now.get(k)]
            what = listed(f"{k} = {_short(old.get(k))} there, {_short(now.get(k))} now" for k in names)
            raise ValueError(f"{path} holds a run of {identity['experiment']!r} with other {part}: {what}; {remedy}")
        raise ValueError(f"{path} holds a run of {identity['experiment']!r} with another {part} "
                         f"({_short(old)} there, {_short(now)} now); {remedy}")
    return manifest


def _short(value: Any) -> str:
    return short(json.dumps(value), 40)
