"""Checkpoints that die at any touch of the disk, are damaged, or have an owner."""

import contextlib
import os
import shutil

import numpy as np
import pytest
from test_checkpoint import assert_same, run

from bayes_brg.core import files
from bayes_brg.inference.numpyro_hmc import hmc


class Killed(BaseException):
    """What no handler may see."""


def die_at(directory, at):
    """Whether the chains died at the `at`-th call that touches the disk; after it nothing can be touched."""
    calls = []

    def touching(call):
        def touch(*args, **options):
            calls.append(1)
            if len(calls) >= at:
                raise Killed
            return call(*args, **options)
        return touch

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "fsync", "unlink"):
            patch.setattr(os, name, touching(getattr(os, name)))
        patch.setattr(files, "open", touching(open), raising=False)
        patch.setattr(files, "start_of", lambda pid: 1)  # whoever comes after sees a process that is gone
        patch.setattr(files.Owner, "__exit__", lambda owner, *error: os.close(owner.handle))
        with contextlib.suppress(Killed):
            run(hmc, directory)
    return len(calls) >= at


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, run(hmc, path)


def test_death_at_any_touch_of_the_disk(whole, tmp_path):
    for at in range(2, 10**6, 7):
        died = die_at(tmp_path / str(at), at)
        assert_same(run(hmc, tmp_path / str(at)), whole[1])
        assert {p.name for p in (tmp_path / str(at)).iterdir()} == {p.name for p in whole[0].iterdir()}
        if not died:
            break
    assert at > 30


def test_every_damage_is_noticed_and_named(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    rng = np.random.default_rng(0)
    for file in (tmp_path / "run").iterdir():
        content = file.read_bytes()
        flipped = []
        for bit in rng.integers(8 * len(content), size=6):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            flipped.append(bytes(damaged))
        for bad in (content[:-5], b"", rng.bytes(len(content)), None, *flipped):
            file.unlink(missing_ok=True)
            if bad is not None:
                file.write_bytes(bad)
            elif file.name in ("state.npz", "run.json"):
                continue  # without a state it begins anew, without a manifest it is no checkpoint
            with pytest.raises(ValueError, match=f"{file.name} .*remove .*run, and the chains begin anew"):
                run(hmc, tmp_path / "run")
        file.write_bytes(content)
    assert_same(run(hmc, tmp_path / "run"), whole[1])


def test_whole_files_of_others_are_not_taken_for_ones_own(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    blocks = sorted((tmp_path / "run").glob("draws_*.npz"))
    kept = blocks[0].read_bytes()
    shutil.copy(blocks[1], blocks[0])
    with pytest.raises(ValueError, match=f"{blocks[0].name} is damaged: it is another file"):
        run(hmc, tmp_path / "run")
    blocks[0].write_bytes(kept)
    assert_same(run(hmc, tmp_path / "run"), whole[1])


def test_a_second_process_is_refused(whole):
    with files.Owner(whole[0]), pytest.raises(ValueError, match=rf"is written by process {os.getpid()} on "):
        run(hmc, whole[0])


def test_a_full_disk_is_told_and_the_chains_go_on(whole, tmp_path, monkeypatch):
    true, calls = os.fsync, []

    def full(handle):
        calls.append(1)
        if len(calls) > 9:
            raise OSError(28, "No space left on device")
        return true(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(files.WriteError, match="no room on the disk: it needs .* is free"):
        run(hmc, tmp_path / "run")
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob(".*"))
    assert_same(run(hmc, tmp_path / "run"), whole[1])
