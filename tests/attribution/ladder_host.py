"""A host for the attribution ladder of a test: programs, sockets and a name service."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from ocsf_nft.attribution.fallback_chain import Ladder
from ocsf_nft.errors import AbsentError, UnsupportedError
from ocsf_nft.process import Attribution, Process
from tests.attribution.calling import NETNS
from tests.attribution.programs import Programs

if TYPE_CHECKING:
    from ocsf_nft.attribution.user_names import Kind
    from ocsf_nft.record import Record

#: However slow this machine is, who waits for longer than this waits without an end.
_LONG = 5.0


@dataclass
class Sockets:
    """Who has the sockets: ``told`` by their ports, once it is not held up any more."""

    told: dict[int | None, Attribution | str] = field(default_factory=dict)
    fault: str | None = None
    asked: list[int | None] = field(default_factory=list)
    goes_on: threading.Event = field(default_factory=threading.Event)
    is_open: bool = False

    def __enter__(self) -> Self:
        if self.fault is not None:
            raise AbsentError(self.fault)
        self.is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

    def attribution(self, said: Record) -> Attribution | str:
        self.asked.append(said.source_port)
        assert self.goes_on.wait(_LONG)
        return self.told.get(said.source_port, "nobody has it")


@dataclass
class NameService:
    """A name service that may hang; what it has answered is known."""

    goes_on: threading.Event = field(default_factory=threading.Event)
    known: set[tuple[Kind, int]] = field(default_factory=set)
    asked: int = 0

    def kept(self, kind: Kind, number: int) -> tuple[bool, str | None]:
        is_known = (kind, number) in self.known
        return is_known, f"{kind}{number}" if is_known else None

    def user(self, number: int) -> None:
        self._ask("user", number)

    def group(self, number: int) -> None:
        self._ask("group", number)

    def _ask(self, kind: Kind, number: int) -> None:
        self.asked += 1
        assert self.goes_on.wait(_LONG)
        self.known.add((kind, number))


class Reasons(list[str]):
    """Reasons why a ladder fell back, in order."""

    async def add(self, reason: str) -> None:
        """Take in one; it is the callback of :meth:`Ladder.keep`."""
        self.append(reason)


@dataclass
class Host:
    """What a ladder stands on here, of which nothing hangs or fails until a test says so."""

    programs: Programs = field(default_factory=Programs)
    sockets: Sockets = field(default_factory=Sockets)
    names: NameService = field(default_factory=NameService)
    is_permissive: bool = False

    def capture(
        self, cookies: Any, *, permissive: Any, knows_types: bool | None = None
    ) -> Programs:
        assert list(cookies) == [NETNS]
        assert permissive == ({NETNS} if self.is_permissive else set())
        self.programs.check()
        if knows_types is None and not self.programs.knows_types:
            raise UnsupportedError("no types here")
        return self.programs

    def lookup(self, _namespace: object, hashes: object) -> Sockets:
        assert hashes is None
        return self.sockets

    def ladder(self, **facts: Any) -> Ladder:
        permissive = {"sb", "another"} if self.is_permissive else set()
        return Ladder({"sb": object()}, permissive=permissive, **facts)  # type: ignore[dict-item]


def by_socket(pid: int) -> Attribution:
    return Attribution(
        rung="socket", sureness="medium", reason="it has it", process=Process(pid=pid)
    )
