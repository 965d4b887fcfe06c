"""Interface of the receivers in trials of the sinks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from ocsf_nft.delivery.sinks.base import Message
from tests.delivery.sinks.attempts import attempt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.delivery.sinks.brokers import Certificates
    from tests.delivery.sinks.weed import Weed

#: The secret that receivers accept, and another one.
RIGHT: Final = "l3t-m3-in"
WRONG: Final = "n0t-this-one"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Folder and properties of a receiver.

    With ``certificates`` the receiver uses TLS, and the sink trusts the file ``trusted``. If it
    ``is_locked``, it requires the secret in the file ``secret``. If it ``is_slow``, it can stop
    answering. If it ``is_strict``, it refuses some events.

    With ``is_cut_soon`` a delivery is cut after a second, and may be sent twice. This is for a
    trial with a receiver that does not answer its client while it is down (Kafka).
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
        """Return the key ``tls`` of a sink's table."""
        return {} if self.certificates is None else {"tls": {"ca": str(self.trusted)}}

    def secrets(self, key: str, **others: str) -> dict[str, Any]:
        """Return the keys of a sink's table for its secret."""
        return {key: {"file": str(self.secret)}, **others} if self.is_locked else {}


class Receiver(Protocol):
    """A real receiver. It has its address from the beginning, and is down at first."""

    #: Part of the reason for an event that it refuses.
    refusal_text: str = ""
    #: The secret that it requires if it is locked.
    accepted_secret: str = RIGHT

    @property
    def table(self) -> dict[str, Any]:
        """Return the ``[[sink]]`` that delivers to it, as a user would write it."""

    async def start(self) -> None:
        """Start, with all events that it had before."""

    async def kill(self) -> None:
        """Stop at once, without finishing its current work."""

    async def end(self) -> None:
        """Stop finally, with all processes that it started."""

    async def uids(self) -> list[str]:
        """Return the uids of its events, in the order of arrival."""

    async def stop_answering(self) -> None:
        """Stop answering."""
        raise NotImplementedError

    async def answer_slowly(self, seconds: float) -> None:
        """Answer again, each time after ``seconds``."""
        raise NotImplementedError

    def poisoned(self, number: int) -> Message:
        """Return an event that it refuses."""
        return event(number, "poison")

    async def accept_refused(self) -> None:
        """Accept from now on the events that it refused."""
        raise NotImplementedError


@cache
def event(number: int, detail: str = "curl") -> Message:
    """Return the event of a number; it is always the same."""
    return attempt(number, detail)


def padded(number: int, size: int) -> Message:
    """Return the event of a number, with ``size`` more bytes."""
    found = event(number).event()
    found["unmapped"]["padding"] = "x" * size
    return Message(event(number).uid, orjson.dumps(found))


def uid_of(line: bytes) -> str:
    return str(orjson.loads(line)["metadata"]["uid"])
