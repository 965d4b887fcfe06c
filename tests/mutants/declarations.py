"""Find the code in which no run can show a fault: types, declarations and log messages."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

Position = tuple[int, int]
Span = tuple[Position, Position]

#: mypy checks these, or they only save time.
_DECORATORS: Final = {
    "dataclass", "override", "overload", "final", "abstractmethod", "runtime_checkable", "unique",
    "cache", "lru_cache",
}  # fmt: skip

_VALIDATORS: Final = {"field_validator", "model_validator"}


def declarations(tree: ast.AST) -> list[Span]:
    """Return the spans of types and declarations, as lines and columns."""
    return [_span(node) for node in _nodes(tree)]


def is_within(position: Position, spans: list[Span]) -> bool:
    """Return whether a position is in one of the spans."""
    return any(begin <= position < end for begin, end in spans)


def _nodes(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    for node in ast.walk(tree):
        match node:
            case (
                ast.AnnAssign(annotation=annotation) | ast.arg(annotation=ast.expr() as annotation)
            ):
                yield annotation
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield node
            case ast.Assign(targets=[ast.Name(id="__slots__" | "__all__")]):
                yield node
            # It is an assertion: both have the same length.
            case ast.Call(func=ast.Name(id="zip"), keywords=[ast.keyword(arg="strict") as keyword]):
                yield keyword.value
            case ast.BinOp(op=ast.BitOr()) if _is_type(node.left) or _is_type(node.right):
                yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            yield node.returns
        decorators = {_name(each): each for each in getattr(node, "decorator_list", ())}
        yield from (decorators[name] for name in _DECORATORS & decorators.keys())
        # pydantic makes a class method of a validator by itself.
        if _VALIDATORS & decorators.keys() and "classmethod" in decorators:
            yield decorators["classmethod"]


def _is_type(node: ast.expr) -> bool:
    """Return whether an operand of `|` is None or has the name of a class."""
    if isinstance(node, ast.Constant):
        return node.value is None
    name = _name(node)
    return name[:1].isupper() and not name.isupper()


def _name(node: ast.expr) -> str:
    """Return the last part of a name, or of the called or subscripted name."""
    match node:
        case ast.Call(func=inner) | ast.Subscript(value=inner):
            return _name(inner)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _span(node: ast.expr | ast.stmt) -> Span:
    end = node.end_lineno, node.end_col_offset
    assert end[0] is not None
    assert end[1] is not None
    return (node.lineno, node.col_offset), (end[0], end[1])
