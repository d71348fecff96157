"""Files that are whole or not there, whatever happens while they are written, and one owner of a directory.

A file is written under a temporary name beside its place, brought to the disk, and renamed. The temporary name says who
writes: host, process, when it started. What a dead process left is cleared by the next owner of the directory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import socket
import stat
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows has other locks: there the owner is told by its process alone
    fcntl = None  # type: ignore[assignment]

__all__ = ["MIB", "Owner", "WriteError", "amount", "bounded", "check_name", "inside", "listed", "make_directory",
           "open_regular", "plain", "replacing", "seal", "sweep", "unseal", "write_file"]

MIB = 2**20
OWNER = ".owner"
ZEROS = "0" * 64
JSON_LIMIT = 16 * MIB
DAY = 86400.0
TEMPORARY = re.compile(r"\..*~(?P<host>[^~/]*)~(?P<pid>\d{1,12})~(?P<start>\d{1,20})~\d+\.tmp")
OLDER = re.compile(r"\..*\.(?P<pid>\d{1,12})\.tmp")  # as earlier versions named theirs
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a terminal obeys, and what turns the direction of writing; new lines and tabs stay.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

_count = itertools.count()


class WriteError(OSError):
    """A file could not be written; the message names it and says what to do. Nothing was changed."""

    def __str__(self) -> str:
        return str(self.args[1]) if len(self.args) > 1 else super().__str__()


# -- words ----------------------------------------------------------------------------------------------------
def plain(text: str) -> str:
    """Text without what a terminal obeys: control characters are written out."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def short(value: Any, width: int = 60) -> str:
    """A value in a message: its beginning, if it is long."""
    text = plain(str(value))
    return text if len(text) <= width else f"{text[:width - 1]}…"


def listed(names: Iterable[Any], most: int = 8) -> str:
    """Names in a message: the first of them, and how many there are."""
    found = [short(n) for n in names]
    return ", ".join(found[:most]) + (f", … ({len(found)} in all)" if len(found) > most else "")


def amount(size: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError


def check_name(name: Any, what: str) -> str:
    """`name` if it can name a file in any directory, on any system.

    Raises
    ------
    ValueError
        If it is no text, empty, too long, hidden, or has a separator, a drive or a control character.
    """
    if (not isinstance(name, str) or not name or len(name.encode(errors="replace")) > 150 or name[0] in ".~"
            or any(c in '/\\:' or unicodedata.category(c)[0] == "C" for c in name)):
        raise ValueError(f"{what} must be text that can name a file (not hidden, no '/', '\\', ':' or control "
                         f"characters, at most 150 bytes), got {short(ascii(name))}")
    return name


def inside(root: Path, name: str) -> Path:
    """The path of a file of a directory, wherever the links on its way lead.

    Raises
    ------
    ValueError
        If it is not inside the directory.
    """
    path = root / name
    try:
        found = path.resolve()
        held = found.is_relative_to(root.resolve()) and not found.is_symlink()
    except (OSError, RuntimeError):  # links in a circle
        found, held = Path("nowhere"), False
    if not held:
        raise ValueError(f"{plain(str(path))} leads out of {plain(str(root))}, to {short(found)}; a run's files are in "
                         "its directory: put the file itself there")
    return path


# -- processes ------------------------------------------------------------------------------------------------
def host_name() -> str:
    """Name of this machine, as temporary names hold it."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:40] or "host"


def start_of(pid: int) -> int:
    """When a process started, in ticks since the machine did; 0 where it is gone or that cannot be known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        return int(text.rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def alive(host: str, pid: int, start: int) -> bool | None:
    """Whether a process lives; None where that cannot be known, on another machine."""
    if host and host != host_name():
        return None
    if os.name != "posix":
        return True if pid == os.getpid() else None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # somebody else's
    now = start_of(pid)
    return not (start and now and start != now)  # a number that was given anew


# -- writing --------------------------------------------------------------------------------------------------
def temporary_for(path: Path) -> Path:
    """The name under which this process writes what is to be `path`."""
    pid = os.getpid()
    return path.with_name(f".{path.name[:100]}~{host_name()}~{pid}~{start_of(pid)}~{next(_count)}.tmp")


def sweep(directory: Path) -> list[Path]:
    """Remove what dead processes left under temporary names; living ones keep theirs.

    Of another machine's processes nothing is known: theirs go when they are a day old.
    """
    gone = []
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(directory)):
            found = TEMPORARY.fullmatch(entry.name) or OLDER.fullmatch(entry.name)
            if not found or not entry.is_file(follow_symlinks=False):
                continue
            parts = found.groupdict()
            lives = alive(parts.get("host", ""), int(parts["pid"]), int(parts.get("start", 0)))
            if lives is None:
                lives = time.time() - entry.stat(follow_symlinks=False).st_mtime < DAY
            if not lives:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    gone.append(Path(entry.path))
    return gone


def failed(error: OSError, path: Path, needed: int | None) -> WriteError:
    """What is said of a file that could not be written."""
    where = path.parent
    if error.errno in FULL:
        needs = "" if needed is None else f" it needs {amount(needed)}"
        with contextlib.suppress(OSError):
            needs += f"{' and' if needs else ' where'} {amount(shutil.disk_usage(where).free)} is free"
        why = {errno.ENOSPC: "there is no room on the disk", errno.EDQUOT: "the disk quota is used up",
               errno.EFBIG: "it is larger than a file may be here"}[error.errno]
        said = f"{why}:{needs}; make room there"
    elif error.errno == errno.EROFS or isinstance(error, PermissionError):
        said = f"{error.strerror}; make {where} writable"
    elif isinstance(error, IsADirectoryError):
        said = "a directory is in its place; remove it"
    elif isinstance(error, FileNotFoundError):
        said = f"{where} has vanished" if not where.exists() else str(error.strerror)
    else:
        said = str(error.strerror or error)
    return WriteError(error.errno, f"{plain(str(path))} could not be written: {said}, then run the same command again: "
                      "what was finished is kept")


@contextlib.contextmanager
def replacing(path: Path, *, root: Path | None = None, needed: int | None = None) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block ends well, and goes away if not.

    Parameters
    ----------
    path : Path
    root : Path, optional
        A directory that must be there and hold `path`, whatever links lead; without it, folders are made as needed.
    needed : int, optional
        How many bytes will be written, for the message where there is no room.

    Raises
    ------
    WriteError
        If the file cannot be written; the old one, if any, is as it was.
    """
    path = Path(path)
    try:
        if root is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            inside(root, str(path.relative_to(root)))
            if path.parent != root:
                path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise failed(error, path, needed) from error
    temporary = temporary_for(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise failed(error, path, needed) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Bring the names of a directory to the disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EROFS):
            raise
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """A directory and those above it, where they are not there yet."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failed(error, path, None) from error


def write_file(path: Path, content: bytes | bytearray | memoryview, *, root: Path | None = None) -> None:
    """Write bytes whole or not at all, and to the disk; see `replacing`."""
    with replacing(path, root=root, needed=len(content)) as temporary, open(temporary, "xb", buffering=0) as file:
        done = 0
        with memoryview(content) as view:
            while done < len(view):
                done += file.write(view[done:done + 64 * MIB])


# -- reading --------------------------------------------------------------------------------------------------
def open_regular(path: Path) -> tuple[BinaryIO, int]:
    """A file that is one, open, and its size; a pipe or a device in its place would be waited for, or have no end."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
                     | getattr(os, "O_CLOEXEC", 0))
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise ValueError(f"{plain(str(path))} is no ordinary file; remove it")
    return os.fdopen(handle, "rb"), found.st_size


def seal(value: Mapping[str, Any]) -> bytes:
    """JSON that knows its own SHA-256, of its text with zeros in its place."""
    text = json.dumps({**value, "sha256": ZEROS}, indent=2, allow_nan=False) + "\n"
    before, _, after = text.rpartition(ZEROS)
    return f"{before}{hashlib.sha256(text.encode()).hexdigest()}{after}".encode()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def unseal(path: Path, needs_seal: Callable[[dict], bool] = lambda value: True) -> dict[str, Any]:
    """The JSON object of a file, its seal checked; `needs_seal` says of an object without one whether that is a fault.

    Raises
    ------
    ValueError
        If it is no such file, or has changed since it was written.
    """
    file, size = open_regular(path)
    with file:
        content = file.read(JSON_LIMIT + 1)
    name = plain(str(path))
    if size > JSON_LIMIT or len(content) > JSON_LIMIT:
        raise ValueError(f"{name} cannot be read: it has {amount(size)}, more than such a file ever has")
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read: {short(error, 120) or type(error).__name__}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} cannot be read: it holds no JSON object")
    mark = value.pop("sha256", None)
    if mark is None and not needs_seal(value):
        return value
    if not isinstance(mark, str) or len(mark) != 64:
        raise ValueError(f"{name} cannot be read: it has no checksum of its own")
    before, _, after = content.rpartition(mark.encode(errors="replace"))
    if hashlib.sha256(before + ZEROS.encode() + after).hexdigest() != mark:
        raise ValueError(f"{name} is damaged: it is not what was written (its SHA-256 is another)")
    return value


# -- one owner ------------------------------------------------------------------------------------------------
class Owner:
    """A context in which this process alone writes in a directory; others are refused, dead ones' places taken over.

    The file ``.owner`` says who it is, and is locked where the system has locks: a lock dies with its process.
    """

    def __init__(self, directory: Path):
        self.path = Path(directory) / OWNER
        self.handle: int | None = None

    def __enter__(self) -> Owner:
        for _ in range(100):
            try:
                if self._taken():
                    return self
            except WriteError:
                raise
            except OSError as error:
                raise failed(error, self.path, 200) from error
        raise WriteError(errno.EAGAIN, f"{self.path} comes and goes; several processes start at once: try again")

    def _taken(self) -> bool:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        handle = os.open(self.path, flags, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ValueError(f"{plain(str(self.path))} is no ordinary file; remove it")
            locked = _lock(handle)
            if locked is False:
                raise self._refusal(handle)
            try:  # between opening and locking its owner may have ended, and removed it
                now = os.stat(self.path)
            except FileNotFoundError:
                return False
            if not os.path.samestat(os.fstat(handle), now):
                return False
            who = self._who(handle)
            if locked is None and who and alive(*who[:3]) is not False:
                raise self._refusal(handle)
            pid = os.getpid()
            held = {"process": pid, "host": host_name(), "start": start_of(pid),
                    "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, json.dumps(held).encode())
            self.handle, handle = handle, -1
            return True
        finally:
            if handle >= 0:
                os.close(handle)

    def _who(self, handle: int) -> tuple[str, int, int, str] | None:
        try:
            os.lseek(handle, 0, os.SEEK_SET)
            held = json.loads(os.read(handle, 4096))
            return str(held["host"]), int(held["process"]), int(held["start"]), str(held["since"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def _refusal(self, handle: int) -> ValueError:
        who = self._who(handle)
        name = "another process" if who is None else (f"process {who[1]} on {short(who[0])}, at work since "
                                                      f"{short(who[3])}")
        gone = "" if who is None or alive(*who[:3]) is not None else f"; if it is gone, remove {plain(str(self.path))}"
        return ValueError(f"{plain(str(self.path.parent))} is written by {name}; wait until it ends, or choose another "
                          f"directory{gone}")

    def __exit__(self, *error: Any) -> None:
        if self.handle is None:
            return
        with contextlib.suppress(OSError):
            ours = os.path.samestat(os.fstat(self.handle), os.lstat(self.path))
            if os.name != "posix":  # Windows removes no open file
                os.close(self.handle)
                self.handle = None
            if ours:
                os.unlink(self.path)
        if self.handle is not None:
            os.close(self.handle)
        self.handle = None


def _lock(handle: int) -> bool | None:
    """Whether the file is now locked by us; None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN) else None
    return True


def bounded(stream: BinaryIO, limit: int) -> bytes | None:
    """All of a stream, or None where it has more than `limit` bytes."""
    out = io.BytesIO()
    while block := stream.read(min(MIB, limit + 1 - out.tell())):
        out.write(block)
        if out.tell() > limit:
            return None
    return out.getvalue()
