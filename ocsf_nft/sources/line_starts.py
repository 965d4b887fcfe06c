"""Which lines of a shared log are a source's business."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.record import PREFIX_ROOT

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet


def line_starts(sandboxes: AbstractSet[str] | None) -> tuple[str, ...]:
    """How a line begins that claims to be of one of the sandboxes; None means of any."""
    if sandboxes is None:
        return (PREFIX_ROOT,)
    return tuple(f"{PREFIX_ROOT}{sandbox}:" for sandbox in sorted(sandboxes))
