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

# Each folder (or module beside them) may import those above it in this list: the order of the walk.
ORDER = [{"core"}, {"theory"}, {"model"}, {"posterior"}, {"field", "metric"}, {"plots", "flow", "inference"}, {"io"},
         {"diagnostics"}, {"runs"}, {"cli"}]


def name_of(path: pathlib.Path, root: pathlib.Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: pathlib.Path, root: pathlib.Path = PACKAGE) -> set[str]:
    """Modules of the package that a file imports, in whatever form: relative, absolute, in a function, importlib."""
    here, found = name_of(path, root), set()
    files = {name_of(p, root) for p in root.rglob("*.py")}
    package = here if path.name == "__init__.py" else here.rpartition(".")[0]

    def add(module: str, names: tuple[str, ...] = ()) -> None:
        for name in names or ("",):  # `from package import module` imports the module
            whole = f"{module}.{name}" if name else module
            found.add(whole if whole in files else module)

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            module = ".".join(filter(None, [base, node.module])) if node.level else node.module
            add(module, tuple(a.name for a in node.names))
        elif isinstance(node, ast.Import):
            for a in node.names:
                add(a.name)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            name = node.args[0]
            assert isinstance(name, ast.Constant), f"{here} imports a module by a computed name"
            dots = len(name.value) - len(name.value.lstrip("."))
            base = package.rsplit(".", dots - 1)[0] if dots > 1 else package
            add(f"{base}.{name.value.lstrip('.')}" if dots else name.value)
    return {m for m in found if m.split(".")[0] == root.name and m != here}


def place(module: str, root: pathlib.Path = PACKAGE) -> int:
    """How far up a module stands; the package itself, which hands names on, stands above all."""
    parts = module.split(".")
    if len(parts) == 1:
        return len(ORDER)
    return next(i for i, names in enumerate(ORDER) if parts[1] in names)


def faults(root: pathlib.Path) -> list[str]:
    """Imports that run up, between neighbours that must not know each other, or in a circle."""
    graph = {name_of(p, root): imports(p, root) for p in sorted(root.rglob("*.py"))}
    found = []
    for module, others in graph.items():
        for other in others if len(module.split(".")) > 1 else ():
            same = module.split(".")[1:2] == other.split(".")[1:2]
            if other == root.name and module.split(".")[1] in ("cli", "runs"):
                continue  # for the version
            if not same and place(other, root) >= place(module, root):
                found.append(f"{module} imports {other}")

    def circle(module: str, trail: tuple[str, ...], done: set) -> None:
        if module in trail:
            found.append("circle: " + " -> ".join([*trail[trail.index(module):], module]))
        elif module not in done:
            for other in graph.get(module, ()):
                if other != root.name:
                    circle(other, (*trail, module), done)
            done.add(module)

    done: set = set()
    for module in graph:
        if module != root.name:
            circle(module, (), done)
    return found


def test_imports_point_down_and_in_no_circle():
    assert not faults(PACKAGE)


@pytest.mark.parametrize("text", [
    "from ..runs import report", "from bayes_brg.runs.report import x", "import bayes_brg.runs.report",
    "def f():\n    from ..cli import main", "import importlib\nimportlib.import_module('bayes_brg.runs')",
    "import importlib\nimportlib.import_module('..runs', __package__)", "from . import batching",
])
def test_an_import_that_runs_up_or_in_a_circle_is_found(text, tmp_path):
    root = tmp_path / "bayes_brg"
    for name, content in {"__init__": "", "core/__init__": "", "core/checks": text, "core/batching":
                          "from .checks import y", "runs/__init__": "", "runs/report": "", "cli": ""}.items():
        (root / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text(content)
    assert faults(root)


def test_no_file_hides_and_none_is_too_long():
    for path in PACKAGE.rglob("*.py"):
        assert path.name == "__init__.py" or not path.name.startswith("_"), path
        assert len(path.read_text().splitlines()) <= 600, path


def modules():
    return sorted(PACKAGE.rglob("*.py"))


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


@pytest.mark.slow
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
