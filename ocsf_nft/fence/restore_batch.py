"""What puts a fence back, prepared while it stands, to be sent at once when it doesn't."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.fence import load_ruleset, replace_keeping_counters, ruleset, ruleset_batch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.fence.replace_keeping_counters import Place
    from ocsf_nft.fence.state import Installed
    from ocsf_nft.netns import Namespace
    from ocsf_nft.nfnetlink import Statement

#: After a table as nft lists it come the elements of its sets (:func:`loading.listings`).
_TABLE: Final = re.compile(r".*?^\}\n", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The tables of a fence in one namespace, and what makes them as they were installed.

    ``kept`` leaves what is counted where it is, whether parts of the tables are missing or all of
    them are there; None where there can't be one. ``whole`` begins with their deletion.
    """

    places: tuple[Place, ...]
    kept: tuple[Statement, ...] | None
    whole: tuple[Statement, ...]

    def ways(self, doubtful: Iterable[Place]) -> tuple[tuple[Statement, ...], ...]:
        """What to try, in order; tables that are ``doubtful`` are not kept."""
        if self.kept is None or set(doubtful) & set(self.places):
            return (self.whole,)
        return self.kept, self.whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """For a fence as it is on record, inside its namespace and on the host's side.

    The first of ``loads`` is that of the fence itself.
    """

    installed: Installed
    loads: tuple[tuple[Namespace, Load], ...]

    @property
    def links(self) -> frozenset[str]:
        """The links that are fenced."""
        return frozenset(self.installed.around.links)

    def fits(self, installed: Installed) -> bool:
        """Whether it puts back a fence on record as well, but for the latest links and routes."""
        ours, theirs = (
            (each.spec, each.transport, each.identity, each.around.ifindex)
            for each in (self.installed, installed)
        )
        return ours == theirs


def prepare(installed: Installed) -> Remedy:
    """Prepare it; blocks for as long as some runs of nft, and changes nothing.

    Raises UnsupportedError or FenceError where nft doesn't help.
    """
    spec, around, transport = installed.spec, installed.around, installed.transport
    places = load_ruleset.fence_places(spec)
    text = ruleset.fence(spec, around, transport)
    loads = [(installed.namespace, _load(installed.namespace, installed, places, text))]
    if spec.guard_device is not None:
        guarded = load_ruleset.guard_places(spec)
        text = ruleset.guard(spec, around, transport)
        loads.append((load_ruleset.HOST, _load(load_ruleset.HOST, installed, guarded, text)))
    return Remedy(installed=installed, loads=tuple(loads))


def _load(
    namespace: Namespace, installed: Installed, places: tuple[Place, ...], definition: str
) -> Load:
    kept = None
    listed = {place: installed.listings.get(" ".join(place), "") for place in places}
    tables = {place: found[0] for place, text in listed.items() if (found := _TABLE.match(text))}
    if len(tables) == len(places):
        kept = replace_keeping_counters.text(definition, tables)
    if kept is not None:
        kept = _commented(kept, places, is_owned=installed.spec.is_owned)
    return Load(
        places=places,
        kept=None if kept is None else ruleset_batch.compiled(namespace, kept),
        whole=ruleset_batch.compiled(namespace, definition),
    )


def _commented(kept: str, places: tuple[Place, ...], *, is_owned: bool) -> str:
    """With what makes a missing table say whose it is; one that is there keeps what it says."""
    for place in places:
        where = f"table {place.family} {place.table}"
        says = rf'^{re.escape(where)} \{{\n(?:\tflags .*\n)?\tcomment ".*"\n\}}\n'
        comment = re.search(says, kept, re.MULTILINE)
        if comment is not None:
            first, flush = ruleset.first(*place, persists=is_owned), f"flush {where}\n"
            kept = kept.replace(f"\n{first}{flush}", f"\n{comment[0]}{flush}", 1)
    return kept
