"""Fake host for the fallback chain: programs, sockets and a name service."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.errors import AbsentError, UnsupportedError
from ocsf_nft.process import Attribution, Process
from tests.attribution.calling import NETNS
from tests.attribution.programs import Programs

if TYPE_CHECKING:
    from ocsf_nft.attribution.user_names import Kind
    from ocsf_nft.record import Record

#: Upper limit of each wait, enough for a slow machine.
_LONG = 5.0


@dataclass
class Sockets:
    """Fake socket lookup: the results by source port, once ``unblocked`` is set."""

    results: dict[int | None, Attribution | str] = field(default_factory=dict)
    fault: str | None = None
    asked: list[int | None] = field(default_factory=list)
    unblocked: threading.Event = field(default_factory=threading.Event)
    is_open: bool = False
    is_late: bool = False
    closed: None = None
    tables: Any = field(default_factory=lambda: SimpleNamespace(namespace=None))

    def __enter__(self) -> Self:
        if self.fault is not None:
            raise AbsentError(self.fault)
        self.is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

    def attribution(self, record: Record) -> Attribution | str:
        self.asked.append(record.source_port)
        assert self.unblocked.wait(_LONG)
        return self.results.get(record.source_port, "no process has it")


@dataclass
class NameService:
    """A name service that may hang; its earlier answers are known."""

    unblocked: threading.Event = field(default_factory=threading.Event)
    known: set[tuple[Kind, int]] = field(default_factory=set)
    missing: set[tuple[Kind, int]] = field(default_factory=set)
    asked: int = 0

    def cached(self, kind: Kind, number: int) -> str | None:
        if (kind, number) in self.known:
            return f"{kind}{number}"
        self.missing.add((kind, number))
        return None

    def resolve(self) -> None:
        while self.missing:
            key = self.missing.pop()
            self.asked += 1
            assert self.unblocked.wait(_LONG)
            self.known.add(key)


class Reasons(list[str]):
    """Reasons why a chain fell back, in order."""

    async def add(self, reason: str) -> None:
        """Add a reason; the callback of :meth:`FallbackChain.watch_capture`."""
        self.append(reason)


@dataclass
class Host:
    """Fake parts under a chain; nothing hangs or fails unless a test changes it."""

    programs: Programs = field(default_factory=Programs)
    sockets: Sockets = field(default_factory=Sockets)
    names: NameService = field(default_factory=NameService)
    is_permissive: bool = False
    knows_types: bool = True

    def capture(
        self, cookies: Any, *, permissive: Any, knows_types: bool | None = None
    ) -> Programs:
        assert list(cookies) == [NETNS]
        assert permissive == ({NETNS} if self.is_permissive else set())
        self.programs.check()
        if knows_types is None and not self.knows_types:
            raise UnsupportedError("no types here")
        if self.is_permissive or not self.knows_types:
            self.programs.refused = frozenset()
        return self.programs

    def lookup(self, _namespace: object, hashes: object, *, is_late: bool) -> Sockets:
        assert hashes is None
        self.sockets.is_late = is_late
        return self.sockets

    def chain(self, **options: Any) -> FallbackChain:
        permissive = {"sb", "another"} if self.is_permissive else set()
        return FallbackChain({"sb": object()}, permissive=permissive, **options)  # type: ignore[dict-item]


def by_socket(pid: int) -> Attribution:
    return Attribution(
        method="socket", confidence="medium", reason="it has it", process=Process(pid=pid)
    )
