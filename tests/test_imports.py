"""The direction of imports, and what a first import must not load."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "caloforge"

# A module may import modules of earlier rows and of its own package, at module level or inside functions alike.
ORDER = [
    ("_version", "_callable", "units", "progress", "hub", "settings"),
    ("geometry",),
    ("showers",),
    ("io", "hits"),
    ("simulate",),
    ("datasets",),
    ("evaluate", "solvers", "samplers", "transforms", "tilt", "jet_momentum"),
    ("preprocess", "voxelwise", "fractions", "models"),
    ("fastsim",),
    ("train", "export", "keep", "parallel"),
    ("benchmark", "config", "distill"),
    ("default",),
    ("testing", "runs"),
    ("workflow",),
    ("cli",),
    ("__main__", "__init__"),
]
RANK = {part: rank for rank, row in enumerate(ORDER) for part in row}
# Families of one row that still must not see each other, and what a part never imports at all.
NEVER = {
    "evaluate": {"datasets", "simulate", "models", "train", "fastsim", "preprocess", "transforms"},
    "models": {"io", "showers", "config", "datasets", "simulate", "evaluate", "preprocess", "fastsim", "train"},
    "transforms": {"io", "showers", "models"},
    "tilt": {"io", "showers", "models"},
    "jet_momentum": {"io", "showers", "models"},
    "preprocess": {"io", "showers", "models"},
    "voxelwise": {"io", "showers", "models"},
    "fractions": {"io", "showers", "models"},
    "simulate": {"datasets", "evaluate"},
    "hits": {"io"},
    "io": {"hits"},
    "train": {"export"},
    "export": {"train"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, '' for the package itself."""
    out = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return out


MODULES = modules()


def statements(tree: ast.AST, *, inside_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, without those for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(node, inside_functions=inside_functions)


def imports(name: str, *, inside_functions: bool) -> set[str]:
    """Modules of this package that the module imports, by dotted name."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" and name != "__init__" else name.split(".")[:-1]
    found = set()
    for node in statements(ast.parse(path.read_text()), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            names = [a.name.removeprefix("caloforge.") for a in node.names if a.name.startswith("caloforge.")]
        elif node.level == 0:
            if (node.module or "").split(".")[0] != "caloforge":
                continue
            base = (node.module or "").split(".")[1:]
            names = [".".join([*base, a.name]) for a in node.names]
        else:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            names = [".".join([*base, a.name]) for a in node.names]
        for target in names:  # a name is a module, or something in one
            while target and target not in MODULES:
                target = target.rpartition(".")[0]
            if target and target != name:
                found.add(target)
    return found


def part(name: str) -> str:
    return name.split(".")[0]


def test_every_part_has_its_place() -> None:
    assert {part(name) for name in MODULES} == set(RANK), "add the new part to ORDER, or take the old one out"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name: str) -> None:
    own = part(name)
    if own == "__init__":
        return  # the package names everything, on first use
    for target in imports(name, inside_functions=True):
        other = part(target)
        assert other == own or RANK[other] <= RANK[own], f"{name} imports {target}, which is above it"
        assert other not in NEVER.get(own, set()), f"{name} imports {target}"


def test_there_are_no_cycles() -> None:
    graph = {name: imports(name, inside_functions=False) for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_walk_sees_the_imports_that_are_there() -> None:
    assert {"models", "geometry", "simulate.gun"} <= imports("fastsim", inside_functions=False)
    assert "solvers" in imports("models.flow_matching", inside_functions=False)
    assert "fastsim" in imports("benchmark", inside_functions=True) - imports("benchmark", inside_functions=False)
    assert "evaluate" not in imports("workflow", inside_functions=False)  # for type checkers only


HEAVY = "torch", "matplotlib", "sklearn", "scipy", "h5py", "zuko", "onnxruntime", "distributed", "uproot"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import caloforge", HEAVY),
        (
            "import caloforge; caloforge.detectors.calogan(); caloforge.Gun; caloforge.hub",
            ("torch", "matplotlib", "sklearn", "distributed"),
        ),
        ("import caloforge; caloforge.open_showers; caloforge.convert", ("torch", "matplotlib", "uproot", "awkward")),
        ("import sys; from caloforge.cli import run; run(['--help']); run(['train', '--help'])", HEAVY),
    ],
    ids=["import", "detectors", "datasets", "help"],
)
def test_the_first_import_is_light(code: str, absent: tuple[str, ...]) -> None:
    check = f"{code}\nimport sys\nloaded = [m for m in {absent!r} if m in sys.modules]\nassert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
