"""Archives of arrays (.npz) whose sizes are looked at before arrays are made, and that know their own SHA-256."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from .files import MIB, amount, short

__all__ = ["archive", "check_mark", "load_arrays"]

MARK = b"sha256:"  # and 64 digits: the archive's comment, over all before it
MEMBERS = 100_000


def archive(arrays: Mapping[str, Any]) -> bytearray:
    """An uncompressed archive that `numpy.load` reads, whose comment is the SHA-256 of all before it."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    content = bytearray(buffer.getvalue())
    content[-2:] = (len(MARK) + 64).to_bytes(2, "little")  # the comment's length ends an archive without one
    return content + MARK + hashlib.sha256(content).hexdigest().encode()


def check_mark(content: bytes) -> None:
    """Refuse an archive that is not what `archive` made.

    Raises
    ------
    ValueError
    """
    at = len(content) - len(MARK) - 64
    if at < 0 or content[at:] != MARK + hashlib.sha256(memoryview(content)[:max(at, 0)]).hexdigest().encode():
        raise ValueError(f"its {len(content)} bytes are not those that were written (its SHA-256 is another)")


def load_arrays(file: BinaryIO, limit: int) -> dict[str, np.ndarray]:
    """The arrays of an archive, by name.

    Parameters
    ----------
    file : binary file
    limit : int
        Bytes that all of them together may have.

    Raises
    ------
    ValueError
        If it is no such archive, holds Python objects, or declares more than it holds or than `limit`.
    """
    try:
        with zipfile.ZipFile(file) as members:
            infos = members.infolist()
            total = sum(info.file_size for info in infos)
            if len(infos) > MEMBERS or total > limit:
                raise ValueError(f"it declares {len(infos)} arrays of {amount(total)}, more than {amount(limit)}: "
                                 "that is what an archive of its size may hold; if that is as it should be, write it "
                                 "without compression (numpy.savez)")
            held = {}
            for info in infos:
                name = info.filename.removesuffix(".npy")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                    raise ValueError(f"its part {short(name)!r} is packed as numpy.savez packs none")
                if name in held or name == info.filename:
                    raise ValueError(f"its part {short(name)!r} is no array, or there twice")
                with members.open(info) as member:
                    held[name] = _array(member, info.file_size, name)
            return held
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError, OverflowError,
            RecursionError, UnicodeDecodeError) as error:
        raise ValueError("it is no archive of arrays; write it with numpy.savez "
                         f"({short(error) or type(error).__name__})") from None


def _array(member: Any, size: int, name: str) -> np.ndarray:
    version = np.lib.format.read_magic(member)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its part {short(name)!r} has a format that is not read")
    shape, fortran, dtype = read(member)
    if dtype.hasobject:
        raise ValueError(f"its part {short(name)!r} holds Python objects, which are not read: write it as an array of "
                         "numbers or text")
    entries, room = math.prod(shape), size - member.tell()
    if any(n < 0 for n in shape) or entries * dtype.itemsize != room or (dtype.itemsize == 0 and entries > MIB):
        raise ValueError(f"its part {short(name)!r} declares {short(shape)} entries of {dtype.itemsize} bytes and has "
                         f"{room} bytes")
    array = np.empty(entries, dtype)
    if room:
        view, done = array.view(np.uint8), 0
        while done < room:
            block = member.read(min(4 * MIB, room - done))
            if not block:
                raise EOFError
            view[done:done + len(block)] = np.frombuffer(block, np.uint8)
            done += len(block)
    member.read(1)  # its end: where its own checksum is looked at
    return array.reshape(shape, order="F" if fortran else "C")
