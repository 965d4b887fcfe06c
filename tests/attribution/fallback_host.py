"""Fake host for the fallback chain: programs, sockets and a name service."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.errors import AbsentError, UnsupportedError
from ocsf_nft.process import Attribution, Process
from tests.attribution.programs import Programs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.attribution.socket_lookups import AttachedNamespace
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

    def capture(self, *, knows_types: bool | None = None) -> Programs:
        self.programs.check()
        if knows_types is None and not self.knows_types:
            raise UnsupportedError("no types here")
        self.programs.reports_refused = self.knows_types
        return self.programs

    def lookup(self, _namespace: object, hashes: object, *, is_late: bool) -> Sockets:
        assert hashes is None
        self.sockets.is_late = is_late
        return self.sockets

    def chain(self, **options: Any) -> NamedChain:
        return NamedChain(FallbackChain(**options), is_permissive=self.is_permissive)


class NamedChain:
    """A chain with one attached namespace, that of the sandbox ``sb``."""

    def __init__(self, chain: FallbackChain, *, is_permissive: bool) -> None:
        self.chain = chain
        self._is_permissive = is_permissive
        self.attached: dict[str, AttachedNamespace] = {}

    async def __aenter__(self) -> Self:
        await self.chain.__aenter__()
        try:
            namespace: Any = object()
            attach = self.chain.attach(namespace, is_permissive=self._is_permissive)
            self.attached["sb"] = await attach
        except BaseException:
            await self.chain.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.chain.__aexit__()

    async def attributions(
        self, sandbox: str, records: Sequence[Record], since_ns: int
    ) -> list[Attribution]:
        return await self.chain.attributions(self.attached.get(sandbox), records, since_ns)

    def since_last(self, sandbox: str, *arguments: Any) -> Attribution | None:
        return self.chain.since_last(self.attached.get(sandbox), *arguments)

    def mark_reported(self, sandbox: str, *arguments: Any) -> None:
        self.chain.mark_reported(self.attached.get(sandbox), *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.chain, name)


def by_socket(pid: int) -> Attribution:
    return Attribution(
        method="socket", confidence="medium", reason="it has it", process=Process(pid=pid)
    )
