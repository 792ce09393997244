"""The house: imports go down from room to room, in no circle, and none hides inside a function."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / "videoxl"
# A room may import itself and rooms further down. Rooms on one line do not import each other.
FLOORS = (
    ("cli", "benchmarks", "synth"),
    ("train",),
    ("session",),
    ("model",),
    ("cost",),
    ("cache",),
    ("attention", "compression", "media", "chat"),
    ("kernels",),
    ("utils",),
    ("errors", "constants", "version", "auto_classes"),
)
RANK = {room: len(FLOORS) - number for number, rooms in enumerate(FLOORS) for room in rooms}
# Published paths that only hand on what lives elsewhere; nothing in the package imports them.
THIN = {"conversation", "mm_utils", "video", "model.builder", "train.train"}
# Imports inside functions, which keep something heavy or optional away until it is used.
LATE = {
    "cli": "torch and transformers: help and mistakes are told in a fraction of a second",
    "kernels": "Triton, which not every machine has",
    "media.stream": "PyAV: training on frames that are made, not read, can do without it",
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__") if name != "__init__" else ""] = path
    return found


MODULES = modules()


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module of this package, whether the import stands inside a function) of a file, those for types too."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name lives"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] != "videoxl":
                continue
            inner = name.removeprefix("videoxl").removeprefix(".")
            while inner and inner not in MODULES:  # `module.attribute`
                inner = inner.rpartition(".")[0]
            found.append((inner, id(node) in inside))
    return found


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_module_stands_in_a_room():
    homeless = [name for name in MODULES if name and name not in THIN and room(name) not in RANK]
    assert homeless == []


def test_imports_go_down():
    climbs = [
        f"{name} -> {target}"
        for name, found in GRAPH.items()
        for target, _ in found
        if name and name not in THIN and room(name) != room(target)
        if target == "" or target in THIN or RANK[room(target)] >= RANK[room(name)]
    ]
    assert climbs == []


def test_there_is_no_circle():
    graph = {name: {target for target, _ in found if target != name} for name, found in GRAPH.items() if name}
    assert circle(graph) == []


def test_a_circle_is_found():
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The names of one circle, empty where there is none."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def test_an_import_inside_a_function_has_a_reason():
    late = [
        f"{name} -> {target}"
        for name, found in GRAPH.items()
        for target, is_late in found
        if is_late and name and room(name) not in LATE and name not in LATE and room(target) not in LATE
    ]
    assert late == []


def test_training_does_not_know_the_synthetic_world():
    named = [str(path) for path in (PACKAGE / "train").rglob("*.py") if "synth" in path.read_text()]
    assert named == [str(PACKAGE / "train" / "data" / "sources.py")]  # an example in its docstring
    core = [path for room in ("model", "cache", "compression", "session") for path in (PACKAGE / room).rglob("*.py")]
    assert [path for path in core if "synth" in path.read_text()] == []


def test_files_hold_one_concept():
    """Most files have 50 to 250 lines; none has more than 400."""
    sizes = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: size for name, size in sizes.items() if size > 400} == {}
    assert sum(size > 250 for size in sizes.values()) < len(sizes) / 7
