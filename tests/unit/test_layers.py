"""The layers of ARCHITECTURE.md: a package imports only from layers below its own, and no two import each other."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dtun

ROOT = Path(dtun.__file__).parent

LAYERS = (
    {"cli"},
    {"service"},
    {"client", "server"},
    {"handover"},
    {"session"},
    {"dataplane", "dtls", "config", "platform"},
    {"network", "protocol"},
    {"errors", "owned_files", "pacing", "text"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Within a layer, one package may use another one as long as that is no circle.
SIDEWAYS = {("dataplane", "platform"), ("network", "protocol")}


def modules() -> dict[str, Path]:
    """Every module by its dotted name below dtun; a package by the name of its directory."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """The modules of dtun that this file imports, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "dtun" and len(parts) > 1:
                # `from dtun.config import Config`: the last part may be a name in the module.
                below = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
                yield next(module for module in (*below, "") if module in MODULES)


@pytest.mark.parametrize("name", sorted(module for module in MODULES if module not in ("", "__main__")))
def test_imports_point_downwards(name: str) -> None:
    package = name.split(".", maxsplit=1)[0]
    for imported in imports(MODULES[name]):
        other = imported.split(".")[0]
        if other in ("", package):  # dtun itself has the version only
            continue
        below = LEVEL[other] > LEVEL[package]
        assert below or (package, other) in SIDEWAYS, f"dtun.{name} imports dtun.{imported}"


def test_no_circle() -> None:
    graph = {name: set(imports(path)) - {name} for name, path in MODULES.items()}
    # A package's own __init__ imports from its modules, which is not the other way round.
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
