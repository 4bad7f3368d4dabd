"""Which room may import which: the picture of docs/build/architecture.md, held against the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

GROUND = {
    "errors",
    "files",
    "fitting",
    "folders",
    "foreign",
    "interrupts",
    "locks",
    "paths",
    "private",
    "protocol",
    "terminal",
}
"""Single files that every room may use."""

FACTS = "vllm_patches.methods"
"""What the patches know of drafting methods: plain data, which the catalog's rows must agree with and so read."""

INTERPRETED = "vllm_patches.interpreted"
"""Runs Triton kernels on a CPU: knows neither vLLM nor the patches, so that it may be loaded before either."""

ALLOWED: dict[str, set[str]] = {
    "cli": {"commands", "engines", "speceval"},
    "commands": {
        "speceval",
        "api",
        "captures",
        "exactness.kernels",
        "show",
        "exactness",
        "measure",
        "estimate",
        "engines",
        "suites",
        "catalog",
        "store",
        "zoo",
    },
    "api": {
        "show",
        "captures",
        "drafters",
        "exactness",
        "measure",
        "estimate",
        "engines",
        "engines.server",
        "suites",
        "catalog",
        "store",
        "zoo",
    },
    "show": {"exactness.kernels", "exactness", "measure", "estimate", "engines", "suites", "catalog", "store", "zoo"},
    "captures": {"drafters", "measure", "estimate", "engines", "suites", "catalog", "store", "zoo"},
    "drafters": set(),
    "exactness": {"measure", "estimate", "engines", "suites", "catalog", "store", "zoo"},
    "exactness.kernels": {"exactness", "vllm_patches", INTERPRETED},
    "measure": {"estimate", "engines", "suites", "catalog", "store", "zoo"},
    "engines.vllm": {"engines", "store", "catalog", "vllm_patches", FACTS, INTERPRETED},
    "engines.server": {"engines.vllm", "engines", "store", "catalog", "vllm_patches"},
    "engines": {"store", "catalog"},
    "estimate": {"store", "catalog"},
    "suites": {"catalog"},
    "catalog": {"zoo", FACTS},
    "store": set(),
    "zoo": set(),
    "vllm_patches": {FACTS, INTERPRETED},
    INTERPRETED: set(),
    FACTS: set(),
}
"""Room -> the rooms that its files may import, beside GROUND and their own.

Two rooms know vLLM: the engine that drives it, and the tests of its sampling code alone, with and without the patches.
"""


def modules(root: Path) -> dict[str, Path]:
    """Dotted name of each module -> its file."""
    files = (path for top in ("speceval", "vllm_patches") for path in (root / top).rglob("*.py"))
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def room(module: str) -> str:
    """The room of a module: its folder below speceval, or its own name at the top."""
    parts = module.split(".")
    if module == FACTS or len(parts) == 1:
        return module
    if parts[0] == "vllm_patches":
        return INTERPRETED if module.startswith(INTERPRETED) else parts[0]
    own = ".".join(parts[1:3])
    return own if own in ALLOWED else parts[1]


def imports(module: str, names: dict[str, Path]) -> Iterator[str]:
    """Modules of ours that a module imports, wherever in the file; what only types need counts too."""
    for node in ast.walk(ast.parse(names[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from named & names.keys() or {str(node.module)} & names.keys()


def arrows(root: Path) -> set[tuple[str, str]]:
    """Pairs (module, module that it imports)."""
    names = modules(root)
    return {(module, other) for module in names for other in imports(module, names)}


def against_the_rule(root: Path) -> dict[tuple[str, str], set[str]]:
    """Arrows between rooms that ALLOWED does not have, with the modules at their ends."""
    wrong: dict[tuple[str, str], set[str]] = {}
    for module, other in arrows(root):
        a, b = room(module), room(other)
        if a in ("speceval", "__main__") or a == b or b in GROUND or b in ALLOWED.get(a, set()):
            continue
        wrong.setdefault((a, b), set()).add(f"{module} -> {other}")
    return wrong


def circle(root: Path) -> list[str]:
    """Modules that import each other in a circle; empty if none do."""
    graph: dict[str, set[str]] = {}
    for module, other in arrows(root):
        graph.setdefault(module, set()).add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_arrow_runs_against_the_rule() -> None:
    assert against_the_rule(ROOT) == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(ROOT) == []


def test_every_room_of_the_package_has_its_rule() -> None:
    names = modules(ROOT)
    rooms = {room(module) for module in names} - {"speceval", "__main__"} - GROUND
    assert rooms == ALLOWED.keys()


def house(root: Path, **files: str) -> Path:
    """A package `speceval` with these files; "__" in a name is a folder."""
    for name, text in files.items():
        path = root / "speceval" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "vllm_patches").mkdir(exist_ok=True)
    return root


@pytest.mark.parametrize(
    "line",
    [
        "from speceval.show import tables",
        "import speceval.show.tables",
        "def late():\n    from speceval.show.tables import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from speceval.show import tables",
    ],
)
def test_an_arrow_back_up_is_seen_however_it_is_written(tmp_path: Path, line: str) -> None:
    root = house(tmp_path, estimate__statistics=line, show__tables="x = 1")
    assert against_the_rule(root) == {("estimate", "show"): {"speceval.estimate.statistics -> speceval.show.tables"}}


def test_a_circle_is_seen(tmp_path: Path) -> None:
    root = house(
        tmp_path,
        measure__a="from speceval.measure import b",
        measure__b="def f():\n    from speceval.measure.a import x",
    )
    assert set(circle(root)) == {"speceval.measure.a", "speceval.measure.b"}
