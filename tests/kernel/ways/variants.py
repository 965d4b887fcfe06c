"""All variants, by their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.kernel.ways import (
    fence,
    forging,
    leaving,
    link,
    nesting,
    outside,
    raw,
    redirecting,
    rewriting,
    routing,
    sockets,
    surroundings,
)

if TYPE_CHECKING:
    from tests.kernel.ways.variant import Variant

_MODULES: Final = (
    rewriting, redirecting, leaving, nesting, routing, forging, link, surroundings, fence, outside,
    raw, sockets,
)  # fmt: skip
VARIANTS: Final[dict[str, Variant]] = {
    f"{each.attacker}: {each.name}": each
    for module in _MODULES
    for each in module.VARIANTS.variants
}
