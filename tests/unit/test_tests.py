"""The tests use public names only and look at nothing outside the repository; checked by their syntax trees."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tests").rglob("*.py"))
OUTSIDE = re.compile(r"\.\./|(?<![\w.])/work\b|\bshared/|^shared$")


NAMED_TUPLES = {"_replace", "_asdict", "_fields"}  # their public methods


def is_private(name: str) -> bool:
    """``_x``, but not ``__x__``, ``_repr_png_`` (names that Python and IPython call), ``_`` and `NAMED_TUPLES`."""
    return name.startswith("_") and not name.endswith("_") and name not in NAMED_TUPLES


def defined(tree: ast.AST) -> set[str]:
    """Private names that a module defines: functions, classes, variables, and attributes of its own objects."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return {name for name in names if is_private(name)}


PRIVATE = set().union(*(defined(ast.parse(path.read_text())) for path in (ROOT / "depthlens").rglob("*.py")))


def touched(tree: ast.AST) -> set[str]:
    """Private names of depthlens that a test module uses; an object's own (``self._x``) are not among them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "depthlens":
            names |= {alias.name for alias in node.names if is_private(alias.name)}
        elif isinstance(node, ast.Attribute):
            if ast.unparse(node.value) not in ("self", "cls", "super()") and node.attr in PRIVATE:
                names.add(node.attr)
        elif isinstance(node, ast.Call) and "attr" in ast.unparse(node.func):  # monkeypatch.setattr, getattr, ...
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            names |= {text for text in texts if text.split(".")[-1] in PRIVATE}
    return names


def documentation(tree: ast.AST) -> set[int]:
    """Identities of the nodes that are docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = (node.body for node in ast.walk(tree) if isinstance(node, owners) and ast.get_docstring(node))
    return {id(body[0].value) for body in bodies}


def outside(path: Path, tree: ast.AST) -> set[str]:
    """Texts of a test module that are paths outside the repository, and climbs above its root from its file."""
    skip = documentation(tree)
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip
    }
    depth = len(path.relative_to(ROOT).parts)
    climbs = {
        text
        for text in (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Subscript))
        if re.search(r"__file__.*\.parents\[\d+\]$", text) and int(text.rsplit("[", 1)[1][:-1]) >= depth
    }
    return {text for text in texts if OUTSIDE.search(text)} | climbs


def test_tests_use_public_names_and_nothing_outside_the_repository():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    private = {str(path): names for path, tree in trees.items() if (names := touched(tree))}
    assert private == {}, "private names of depthlens"
    places = {str(p): texts for p, tree in trees.items() if p != Path(__file__) and (texts := outside(p, tree))}
    assert places == {}, "places outside the repository"
