"""Mutation operators: those of cosmic-ray that make a plausible mistake, and three of our own.

Operators come in groups. The sample draws a group first, so that comparisons, which are many, do
not crowd out removed statements, which are few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import parso
from cosmic_ray import plugins

if TYPE_CHECKING:
    from collections.abc import Iterator

Position = tuple[tuple[int, int], tuple[int, int]]

#: Statements of these types may be removed. Plain assignments are not among them: without one, the
#: name is undefined, and any test detects that.
_TARGETS: Final = {"atom_expr", "power"}
_LOGGERS: Final = ("log.", "_log.", "logger.")


class RemoveStatement:
    """Operator that replaces a call, a raise, a deletion or an assignment to a part by `pass`."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        """Yield the position of a statement that may be removed."""
        if node.type == "simple_stmt" and _is_removable(node.children[0]):
            yield node.start_pos, node.children[0].end_pos

    def mutate(self, node: Any, _index: int) -> Any:
        """Replace the statement by `pass`."""
        leaf = parso.parse("pass").children[0]
        leaf.prefix = node.children[0].get_first_leaf().prefix
        node.children[0] = leaf
        return node


class SwapMembership:
    """Operator that replaces `in` by `not in`, and the reverse."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        """Yield the position of each membership test of a comparison."""
        if node.type == "comparison":
            for operator in node.children[1::2]:
                if _words(operator) in {"in", "not in"}:
                    yield operator.start_pos, operator.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Swap one operator."""
        at = [at for at in range(1, len(node.children), 2) if _words(node.children[at]) in _SWAPPED]
        node.children[at[index]] = parso.parse(_SWAPPED[_words(node.children[at[index]])])
        return node


class ReplaceException:
    """Operator that replaces a type of an `except` clause by one that is never raised here.

    The operator of cosmic-ray fails on a dotted name in parentheses. It also inserts an undefined
    name: that raises NameError, also for an exception of another type of the clause.
    """

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        """Yield the position of each type of an `except` clause."""
        for kind in _caught(node):
            yield kind.start_pos, kind.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Replace one type."""
        kind = _caught(node)[index]
        siblings = kind.parent.children
        never = parso.parse("BytesWarning").children[0]
        never.prefix = kind.get_first_leaf().prefix
        siblings[siblings.index(kind)] = never
        return node


_SWAPPED: Final = {"in": " not in", "not in": " in"}


def _caught(node: Any) -> list[Any]:
    """Return the types of an `except` clause, and nothing for another node."""
    if node.type != "except_clause":
        return []
    kinds = node.children[1]
    if kinds.type == "atom":  # in parentheses
        kinds = kinds.children[1]
    return kinds.children[::2] if kinds.type == "testlist_comp" else [kinds]


def _words(node: Any) -> str:
    return " ".join(node.get_code().split())


def _is_removable(node: Any) -> bool:
    if node.type == "expr_stmt":
        target, sign = node.children[0], node.children[1]
        if sign.type == "annassign" and len(sign.children) == 2:
            return False  # it only declares a type
        return target.type in _TARGETS or (sign.type == "operator" and sign.value != "=")
    if node.type in {"raise_stmt", "del_stmt"}:
        return True
    called = node.type in {"atom_expr", "power"} and node.children[-1].get_code().startswith("(")
    return called and not node.get_code().strip().startswith(_LOGGERS)


_BINARY: Final = (
    "Add_Sub", "Sub_Add", "Mul_FloorDiv", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul",
    "RShift_LShift", "LShift_RShift", "BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitAnd",
)  # fmt: skip
_COMPARISONS: Final = (
    "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt",
    "GtE_Lt", "Is_IsNot", "IsNot_Is",
)  # fmt: skip

_GROUPS: Final = {
    "number": ("NumberReplacer",),
    "arithmetic": tuple(f"ReplaceBinaryOperator_{each}" for each in _BINARY),
    "comparison": tuple(f"ReplaceComparisonOperator_{each}" for each in _COMPARISONS),
    "boolean": ("ReplaceAndWithOr", "ReplaceOrWithAnd"),
    "condition": (
        "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue",
        "ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub",
        "ReplaceUnaryOperator_Delete_Invert",
    ),
    "loop": ("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
    "decorator": ("RemoveDecorator",),
}  # fmt: skip


def by_group() -> dict[str, dict[str, Any]]:
    """Return the operators of each group by their names."""
    groups = {
        group: {name: plugins.get_operator(f"core/{name}")() for name in names}
        for group, names in _GROUPS.items()
    }
    groups["comparison"]["SwapMembership"] = SwapMembership()
    groups["exception"] = {"ReplaceException": ReplaceException()}
    groups["statement"] = {"RemoveStatement": RemoveStatement()}
    return groups
