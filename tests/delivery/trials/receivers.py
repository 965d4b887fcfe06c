"""What a trial asks of a receiver, whatever takes events there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from ocsf_nft.delivery.envelope import Message
from tests.delivery.sinks.attempts import attempt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.delivery.sinks.brokers import Certificates
    from tests.delivery.sinks.weed import Weed

#: What lets in, and what does not.
RIGHT: Final = "l3t-m3-in"
WRONG: Final = "n0t-this-one"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a receiver is made, and what it is to be besides.

    With ``certificates`` it speaks TLS, and the sink trusts what is in ``trusted``. Where it
    ``is_locked`` it wants what is in ``secret``. One that ``is_slow`` can be held up, one that
    ``is_strict`` rejects some events.

    With ``is_cut_soon`` a delivery is cut after a second, and may be sent twice. It is for a trial
    with a receiver that leaves its client waiting while it is down (Kafka).
    """

    folder: Path
    weed: Callable[[], Weed]
    certificates: Certificates | None = None
    is_locked: bool = False
    is_slow: bool = False
    is_strict: bool = False
    is_cut_soon: bool = False

    @property
    def trusted(self) -> Path:
        return self.folder / "trusted.pem"

    @property
    def secret(self) -> Path:
        return self.folder / "secret"

    @property
    def tls(self) -> dict[str, Any]:
        """The key ``tls`` of a sink's table."""
        return {} if self.certificates is None else {"tls": {"ca": str(self.trusted)}}

    def secrets(self, key: str, **others: str) -> dict[str, Any]:
        """What of a sink's table is about its secret."""
        return {key: {"file": str(self.secret)}, **others} if self.is_locked else {}


class Receiver(Protocol):
    """A real receiver, which has its address from the beginning, and is down then."""

    #: What is in the reason of an event that it rejects.
    complaint: str = ""
    #: The secret that it wants where it is locked.
    opens: str = RIGHT

    @property
    def table(self) -> dict[str, Any]:
        """The ``[[sink]]`` that delivers to it, as a user would write it."""

    async def start(self) -> None:
        """Come up, with all that it had before."""

    async def kill(self) -> None:
        """Be gone at once, in the middle of whatever it does."""

    async def end(self) -> None:
        """Be gone for good, with all that it started."""

    async def uids(self) -> list[str]:
        """The uids of the events that it has, as they came."""

    async def hold(self) -> None:
        """Answer nothing any more."""
        raise NotImplementedError

    async def drag(self, seconds: float) -> None:
        """Answer again, and take so long for each answer."""
        raise NotImplementedError

    def poisoned(self, number: int) -> Message:
        """An event that it rejects."""
        return event(number, "poison")

    async def relent(self) -> None:
        """Take from now on what it rejected."""
        raise NotImplementedError


@cache
def event(number: int, detail: str = "curl") -> Message:
    """The event of a number: always the same."""
    return attempt(number, detail)


def padded(number: int, size: int) -> Message:
    """The event of a number, longer by so much."""
    found = event(number).event()
    found["unmapped"]["padding"] = "x" * size
    return Message(event(number).uid, orjson.dumps(found))


def uid_of(line: bytes) -> str:
    return str(orjson.loads(line)["metadata"]["uid"])
