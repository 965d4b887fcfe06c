"""Find the lines that show the effect of a changed line. The coverage map has their tests."""

from __future__ import annotations

import ast
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines_that_show(path: Path, line: int, package: Path) -> Iterator[dict[Path, set[int]]]:
    """Yield the lines, by file, on which a change of one line has an effect; the nearest first.

    In a function, they are the lines of the changed statement. A line that runs at import defines
    names: the lines are the functions that read such a name, in its module or in other modules. If
    no function reads the names, the lines are all functions of its module.
    """
    tree = _parsed(path)
    names = _names(tree, line)
    for function in _functions(tree):
        if function.body[0].lineno <= line <= (function.end_lineno or 0):
            yield {path: _statement_lines(function, line)}
            names = {function.name}
    for paths in ([path], sorted(package.rglob("*.py"))):
        yield {each: _readers(_parsed(each), names) for each in paths}
    yield {path: {line for each in _functions(tree) for line in _body_lines(each)}}


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _functions(tree: ast.AST) -> Iterator[_Function]:
    return (node for node in ast.walk(tree) if isinstance(node, _Function))


def _body_lines(function: _Function) -> range:
    return range(function.body[0].lineno, (function.end_lineno or 0) + 1)


def _statement_lines(function: _Function, line: int) -> set[int]:
    """Return the lines of the innermost statement around a line.

    For a compound statement, return its head, or the line alone (an `except`, for example).
    """
    innermost = function.body[0]
    for node in ast.walk(function):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            innermost = node
    body = getattr(innermost, "body", None)
    end = max(body[0].lineno - 1, innermost.lineno) if body else innermost.end_lineno or 0
    return set(range(innermost.lineno, end + 1)) if line <= end else {line}


def _names(tree: ast.Module, line: int) -> set[str]:
    """Return the names that a line defines at import, and the names that depend on them."""
    defined = {node: names for node in _import_time(tree) if (names := set(_defined(node)))}
    around = [node for node in defined if _begin(node) <= line <= (node.end_lineno or 0)]
    names = set().union(*(defined[node] for node in around[-1:]))
    for node, more in defined.items():
        if not isinstance(node, ast.ClassDef) and names & _read(node):
            names |= more
    return names


def _begin(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)])


def _import_time(tree: ast.AST) -> Iterator[ast.stmt]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.stmt):
            yield node
        if not isinstance(node, _Function):
            yield from _import_time(node)


def _defined(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (part.id for each in targets for part in ast.walk(each)
                        if isinstance(part, ast.Name))  # fmt: skip
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def _readers(tree: ast.Module, names: set[str]) -> set[int]:
    """Return the lines of the functions that read one of the names, or that have such a name."""
    return {
        line
        for function in _functions(tree)
        if function.name in names or names & _read(function)
        for line in _body_lines(function)
    }


def _read(statement: ast.stmt) -> set[str]:
    found = set()
    for node in ast.walk(statement):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                found.add(name)
    return found
