"""Every notebook runs; the file one reads and the file one runs are the same notebook."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
CELL_SECONDS = 3600


def environment(scale):
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    return os.environ | {"BRG_NOTEBOOK_SCALE": scale, "PYTHONPATH": path, "MPLBACKEND": "agg"}


def as_script(path, scale, folder):
    """Run the .py file in `folder`; whatever a cell raises fails it."""
    notebook = folder / "notebooks" / path.name
    notebook.parent.mkdir()
    notebook.write_text(path.read_text())
    (folder / "models").symlink_to(ROOT / "models")  # notebooks look for it beside or above where they run
    run = subprocess.run([sys.executable, str(notebook)], cwd=notebook.parent, env=environment(scale),
                         capture_output=True, text=True)
    assert run.returncode == 0, f"{path.name} fails at {scale} size:\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}"
    return run.stdout


def as_notebook(path, scale, monkeypatch):
    """Run the .ipynb file in a kernel, as a user does."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    for name, value in environment(scale).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND")  # the kernel's own draws figures into the notebook
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3",
                                     resources={"metadata": {"path": str(ROOT / "notebooks")}})
    client.execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_are_six():
    assert [p.name[:2] for p in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_both_files_hold_the_same_cells(path):
    jupytext = pytest.importorskip("jupytext")
    notebook, script = jupytext.read(path.with_suffix(".ipynb")), jupytext.read(path)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in script.cells]
    assert not any(c.get("outputs") or c.get("execution_count") for c in notebook.cells), "commit it without outputs"
    assert path.with_suffix(".ipynb").stat().st_size < 100_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_at_small_size(path, tmp_path):
    said = as_script(path, "small", tmp_path)
    assert said.strip()


def test_a_failing_cell_fails(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("# %%\nprint(1)\n\n# %%\nraise ValueError('of this cell')\n")
    with pytest.raises(AssertionError, match="of this cell"):
        as_script(broken, "small", tmp_path)


@pytest.mark.slow
def test_runs_in_a_kernel(monkeypatch):
    outputs = as_notebook(next(p for p in NOTEBOOKS if p.stem.startswith("03")), "small", monkeypatch)
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_at_full_size(path, monkeypatch):
    outputs = as_notebook(path, "full", monkeypatch)
    assert any("image/png" in o.get("data", {}) for o in outputs)
