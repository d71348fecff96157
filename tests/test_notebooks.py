"""Every notebook runs; the file one reads and the file one runs are the same notebook."""

import os
import pathlib
import runpy

import matplotlib
import matplotlib.pyplot as plt
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
CELL_SECONDS = 3600


def here(path, scale, monkeypatch):
    """Run the .py file in this process, which spares its imports; whatever a cell raises is raised."""
    monkeypatch.setenv("BRG_NOTEBOOK_SCALE", scale)
    monkeypatch.chdir(path.parent)
    with matplotlib.rc_context():
        try:
            return runpy.run_path(str(path), run_name="__main__")
        finally:
            plt.close("all")


def as_notebook(path, scale, monkeypatch):
    """Run the .ipynb file in a kernel, as a user does."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("BRG_NOTEBOOK_SCALE", scale)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own draws figures into the notebook
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3",
                                     resources={"metadata": {"path": str(ROOT / "notebooks")}})
    client.execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_are_seven():
    assert [p.name[:2] for p in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06", "07"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_both_files_hold_the_same_cells(path):
    jupytext = pytest.importorskip("jupytext")
    notebook, script = jupytext.read(path.with_suffix(".ipynb")), jupytext.read(path)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in script.cells]
    assert not any(c.get("outputs") or c.get("execution_count") for c in notebook.cells), "commit it without outputs"
    assert path.with_suffix(".ipynb").stat().st_size < 100_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*standard errors rest on")  # so few draws
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_at_small_size(path, monkeypatch, capsys):
    here(path, "small", monkeypatch)
    assert "nan" not in capsys.readouterr().out.lower().split()


def test_a_failing_cell_fails(tmp_path, monkeypatch):
    broken = tmp_path / "broken.py"
    broken.write_text("# %%\nprint(1)\n\n# %%\nraise ValueError('of this cell')\n")
    with pytest.raises(ValueError, match="of this cell"):
        here(broken, "small", monkeypatch)


@pytest.mark.slow
def test_runs_in_a_kernel(monkeypatch):
    outputs = as_notebook(next(p for p in NOTEBOOKS if p.stem.startswith("03")), "small", monkeypatch)
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_at_full_size(path, monkeypatch):
    outputs = as_notebook(path, "full", monkeypatch)
    assert any("image/png" in o.get("data", {}) for o in outputs)
