"""The house rules that a machine can see: imports point down, public names are documented, the README runs."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import bayes_brg as brg

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bayes_brg"

# Each module may import from its own level and from those below.
LEVELS = [
    {"_checks", "_map", "_errors", "_provenance", "_settings", "_tensors", "likelihoods"},
    {"model", "networks", "posterior", "output_fisher", "_draws", "_cumulants", "_streaming"},
    {"_geometry", "_metric", "_spectrum", "_sloppiness", "fisher"},
    {"inference", "correlators", "edgeworth", "_regulators", "_critical"},
    {"_member", "flow", "_jeffreys", "stepwise", "pruning", "action", "deform", "closed_form"},
    {"arviz_bridge", "diagnostics", "_compare", "_sides", "_distances", "_sbc", "_scores", "_data", "_measures",
     "plots", "store", "_page"},
    {"experiment"},
    {"report", "tables"},
    {"cli"},
]


def imports(path: pathlib.Path) -> set[str]:
    """Modules of the package that a file imports, by their first name below the package."""
    depth = len(path.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            inside = path.relative_to(PACKAGE).parts[:depth - node.level]
            if inside:
                continue  # within a subpackage
            names = [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
            found |= {n for n in names if not n.startswith("__")}
    return found


def modules():
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


def level(name: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if name in names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    found = imports(path)
    if name == "theory":
        assert found <= {"likelihoods"}
        return
    known = set().union(*LEVELS) | {"theory"}
    assert name in known, f"give {name} a place in LEVELS"
    upward = {other for other in found - {"theory"} if level(other) > level(name)}
    assert not upward


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_bridge_imports_arviz(path):
    names = {n.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)
             for n in node.names} | {node.module for node in ast.walk(ast.parse(path.read_text()))
                                     if isinstance(node, ast.ImportFrom) and not node.level}
    assert path.name == "arviz_bridge.py" or not any((n or "").split(".")[0] == "arviz" for n in names)


@pytest.mark.parametrize("path", sorted([*(ROOT / "models").glob("*.py"), *(ROOT / "notebooks").glob("*.py")]),
                         ids=lambda p: p.name)
def test_models_and_notebooks_use_public_names(path):
    text = path.read_text()
    for name in re.findall(r"\bbrg\.(\w+)", text):
        assert name in brg.__all__ or name == "plots", name
    taken = re.findall(r"^\s*from bayes_brg(\S*) import (.+)", text, flags=re.M)
    assert all(module == "" and set(re.split(r",\s*", names)) <= {*brg.__all__, "plots"} for module, names in taken)
    assert not re.search(r"import bayes_brg\.|brg\._", text)


def test_public_names_are_listed_and_documented():
    for name in brg.__all__:
        thing = getattr(brg, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            doc = inspect.getdoc(thing)
            if inspect.signature(thing).parameters:
                assert "Parameters" in doc, name
            assert "Returns" in doc, name
    assert brg.__all__ == sorted(brg.__all__)


def test_import_changes_nothing_and_is_quiet():
    code = ("import jax, warnings\nwarnings.simplefilter('error')\nbefore = dict(jax.config.values)\n"
            "import bayes_brg\nassert dict(jax.config.values) == before\n")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""


def test_readme_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "critical scale" in capsys.readouterr().out


def test_no_file_is_over_a_megabyte():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    assert not [f for f in files.stdout.split() if (ROOT / f).stat().st_size > 2**20]
