"""NetCDF made in memory and read from bytes that were checked: HDF5 never meets a full disk or a stranger's path.

HDF5 that cannot write ends the interpreter, so that it writes to memory alone, and the bytes go to disk by plain I/O.
A file from elsewhere may point to other files, and may declare arrays far larger than itself: both are looked at before
anything is read.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import h5netcdf
import h5py
import numpy as np
import xarray as xr
from xarray.backends import H5NetCDFStore

from ..core.files import MIB, amount, inside, listed, open_regular, plain, short, write_file

__all__ = ["Netcdf", "content_digest", "open_netcdf", "to_bytes", "write_datasets"]

Groups = Mapping[str | None, xr.Dataset]
SLACK = 64 * MIB  # what a file may declare beyond eight times its own bytes
OBJECTS = 10_000
LABELS = 20_000  # texts of an array that are looked at one by one


def to_bytes(groups: Groups) -> bytes:
    """Datasets as the groups of one NetCDF file (None: the root), in memory."""
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        for group, dataset in groups.items():
            dataset.dump_to_store(H5NetCDFStore(file, group=group or "/", mode="a"))
    return buffer.getvalue()


def write_datasets(path: Path, groups: Groups, *, root: Path | None = None) -> None:
    """Write Datasets as the groups of one NetCDF file (None: the root), whole or not at all."""
    write_file(Path(path), to_bytes(groups), root=root)


def content_digest(groups: Groups) -> str:
    """SHA-256 of the numbers of Datasets, whatever else their file says: names, types, shapes, entries."""
    whole = hashlib.sha256()
    for group in sorted(groups, key=str):
        dataset = groups[group]
        for name in sorted(map(str, dataset.variables)):
            values = np.asarray(dataset[name].values)
            whole.update(f"{group}/{name} {values.dtype} {values.shape}\n".encode())
            if values.dtype.kind == "O":
                whole.update(repr(values.tolist()).encode())
            else:
                whole.update(np.ascontiguousarray(values).tobytes())
    return whole.hexdigest()


class Netcdf:
    """A NetCDF file whose links and sizes were looked at: its groups, read when asked for.

    Parameters
    ----------
    source : binary file
        Its bytes.
    name : str
        What errors call it.
    """

    def __init__(self, source: BinaryIO, name: str):
        self.source, self.name = source, plain(name)
        size = source.seek(0, io.SEEK_END)
        self.groups = self._guarded(lambda: _looked_at(source, size, self.name))

    def read(self, group: str | None = None) -> xr.Dataset:
        """One Dataset, in memory."""
        return self._guarded(lambda: xr.load_dataset(self.source, group=group, engine="h5netcdf"))

    def _guarded(self, read: Any) -> Any:
        try:
            self.source.seek(0)
            return read()
        except _Refused as error:
            raise ValueError(str(error)) from None
        except MemoryError:
            raise
        except Exception as error:  # whatever HDF5, h5netcdf and xarray make of what is no NetCDF
            raise ValueError(f"{self.name} is not a NetCDF file that can be read: {short(error, 200)}") from None

    def close(self) -> None:
        self.source.close()

    def __enter__(self) -> Netcdf:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


class _Refused(Exception):
    pass


def _looked_at(source: BinaryIO, size: int, name: str) -> list[str]:
    """Names of the groups beside the root, after every object was looked at and none opened that is elsewhere."""
    with h5py.File(source, "r") as file:
        declared, groups, seen, stack = 0, [], set(), [("", file)]  # type: int, list[str], set, list[tuple[str, Any]]
        while stack:
            prefix, group = stack.pop()
            declared += _attributes(group, size, name, prefix)
            for key in group:
                path = f"{prefix}/{key}".lstrip("/")
                if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                    raise _Refused(f"{name} points with {short(path)!r} to another place or file; put that into it")
                thing = group[key]
                address = h5py.h5o.get_info(thing.id).addr
                if address in seen:
                    raise _Refused(f"{name} holds {short(path)!r} under two names")
                seen.add(address)
                if len(seen) > OBJECTS:
                    raise _Refused(f"{name} holds more than {OBJECTS} arrays and groups")
                if isinstance(thing, h5py.Group):
                    groups.append(path)
                    stack.append((path, thing))
                elif isinstance(thing, h5py.Dataset):
                    declared += _array(thing, size, name, path)
        if declared > 8 * size + SLACK:
            raise _Refused(f"{name} has {amount(size)} and declares arrays of {amount(declared)}; if it is as it "
                           "should be, write it again without compression")
    return groups


def _array(array: h5py.Dataset, size: int, name: str, path: str) -> int:
    """Bytes that an array declares, and its attributes."""
    plist = array.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise _Refused(f"{name}: the entries of {short(path)!r} are in another file; put them into this one")
    entries = int(np.prod([int(n) for n in array.shape or ()], dtype=object))
    declared = _attributes(array, size, name, path)
    most = _bytes(entries, array.dtype, size)
    if most > SLACK and array.ndim == 1 and entries <= LABELS and h5py.check_string_dtype(array.dtype) is not None:
        most = _labels(array, 8 * size + SLACK)
    return declared + most


def _labels(array: h5py.Dataset, limit: int) -> int:
    """Bytes of texts of any length, such as the names along an axis, read one by one until they are too many."""
    total = 0
    for i in range(array.shape[0]):
        total += 1024 + len(array[i])  # what is short takes its time too
        if total > limit:
            break
    return total


def _attributes(thing: Any, size: int, name: str, path: str) -> int:
    declared = 0
    for key in thing.attrs:
        held = thing.attrs.get_id(key)
        if key in ("DIMENSION_LIST", "REFERENCE_LIST"):
            continue
        entries = int(np.prod([int(n) for n in held.shape], dtype=object))
        declared += _bytes(entries, held.dtype, size if entries > 1 else 0)
    return declared


def _bytes(entries: int, dtype: np.dtype, size: int) -> int:
    """Bytes of entries; texts of any length may all be the same long one."""
    if h5py.check_vlen_dtype(dtype) is None and h5py.check_string_dtype(dtype) is None:
        return entries * dtype.itemsize
    text = h5py.check_string_dtype(dtype)
    if text is not None and text.length is not None:
        return 4 * entries * text.length
    return entries * 64 if entries <= 64 or entries * size <= SLACK else entries * size


def open_netcdf(path: Path, root: Path | None = None) -> Netcdf:
    """A NetCDF file, by its path; with `root`, it must lie inside this directory."""
    if root is not None:
        inside(root, str(path.relative_to(root)))
    file, _ = open_regular(path)
    try:
        return Netcdf(file, str(path))
    except BaseException:
        file.close()
        raise


def needs_group(found: Netcdf, group: str, names: Iterable[str]) -> ValueError:
    """What is said of a file that lacks a group."""
    return ValueError(f"{found.name} has no group {group!r}; its groups are {listed(names) or 'none'}")
