"""State has one owner: in the server, an object's attributes are assigned by its own methods only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dtun.server

FILES = sorted(Path(dtun.server.__file__).parent.glob("*.py"))


def foreign_assignments(tree: ast.AST) -> Iterator[str]:
    """Assignments and deletions of `other.attribute`, `other.attribute[key]` and `self.other.attribute`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Subscript) or isinstance(node.ctx, ast.Load):
            continue
        target: ast.expr = node
        while isinstance(target, ast.Subscript):
            target = target.value
        if isinstance(target, ast.Attribute) and ast.unparse(target.value) != "self":
            yield ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_other_object_is_changed(path: Path) -> None:
    assert list(foreign_assignments(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "identity.mtu = 1",
        "identity.mtu += 1",
        "del self.identities.by_name[name]",
        "self.other.config, x = 1, 2",
    ],
)
def test_an_assignment_from_outside_is_found(code: str) -> None:
    assert len(list(foreign_assignments(ast.parse(code)))) == 1
