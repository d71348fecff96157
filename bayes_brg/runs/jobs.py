"""Runs by several processes: joining a job of JAX's, whose directory is whose, and starting some on one machine."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from ..core import processes
from ..core.checks import check_count
from ..io.manifest import MANIFEST

__all__ = ["join", "launch", "place"]

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead, and the others end
GRACE = 45.0  # seconds that the others of a job have to end by themselves, with their own message


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join a job by ``jax.distributed.initialize``; to be called before JAX has counted its devices.

    Parameters
    ----------
    coordinator : str, optional
        ``HOST:PORT`` of process 0. Without it Slurm, Open MPI, Kubernetes and cloud TPUs are asked, as JAX does.
    num_processes, process_id : int, optional
        How many there are, and which this one is, from 0.

    Raises
    ------
    ValueError
        If some but not all of the three are given, or nothing is given and no job is found.
    """
    given = [v is not None for v in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise ValueError("a job needs all of --coordinator HOST:PORT, --num-processes N and --process-id I, or none of "
                         "them and --distributed, where Slurm, Open MPI or Kubernetes say it")
    if all(given) and not 0 <= check_count(process_id, "process_id", 0) < check_count(num_processes, "num_processes"):
        raise ValueError(f"process_id must be below num_processes = {num_processes}, got {process_id}")
    if hasattr(jax.config, "jax_enable_preemption_service"):  # it takes SIGTERM for itself, by which a run ends
        jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=120,
                                   heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"no job could be joined ({error}); start the processes by bayes-brg launch -n N, by Slurm, "
                         "Open MPI or Kubernetes, or name --coordinator, --num-processes and --process-id") from None


@contextlib.contextmanager
def place(out: Path) -> Iterator[Path]:
    """Where this process keeps a run: process 0 in `out`, which it owns, the others in a copy that is thrown away.

    All take the same steps over the same stages, so that they meet in every collective.

    Raises
    ------
    ValueError
        If the processes do not see the same run in `out`.
    """
    if processes.count() == 1:
        yield out
        return
    from jax.experimental import multihost_utils

    first, manifest = jax.process_index() == 0, out / MANIFEST
    if not processes.same_everywhere(manifest.read_bytes() if manifest.is_file() else b""):
        raise ValueError(f"the processes of the job do not see the same run in {out}; use a directory that all of them "
                         "share, or one that is new")
    with tempfile.TemporaryDirectory(prefix="bayes-brg-") as folder:
        mine = out if first else Path(folder) / "run"
        if not first and out.is_dir():
            shutil.copytree(out, mine)
        multihost_utils.sync_global_devices("the run was copied")
        yield mine
        multihost_utils.sync_global_devices("the run was made")


def launch(count: int, arguments: Sequence[str]) -> int:
    """Start a command of ``bayes-brg`` in `count` processes of one job on this machine, and wait for them.

    Parameters
    ----------
    count : int
    arguments : sequence of str
        Those of ``bayes-brg run``.

    Returns
    -------
    int
        0, or the first exit status that is not (that of a signal only if all are); the others are then ended. Each
        failure is a line of the error stream.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bayes_brg.cli", *arguments, "--coordinator", f"127.0.0.1:{port}",
               "--num-processes", str(check_count(count, "count"))]
    running = {i: subprocess.Popen([*command, "--process-id", str(i)]) for i in range(count)}
    failed = since = 0
    try:
        while running:
            for i, process in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                del running[i]
                if status:
                    print(f"process {i} of {count} ended with status {status}", file=sys.stderr)
                if status > 0 > failed:  # its own words, rather than what it did to another
                    failed = status
                if status and not failed:
                    failed, since = status, time.monotonic()  # type: ignore[assignment]
                    print("the others end within a minute, and the same command goes on from the finished stages",
                          file=sys.stderr)
            if failed and time.monotonic() - since > GRACE:
                break
            time.sleep(0.1)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
    return failed if failed >= 0 else 128 - failed
