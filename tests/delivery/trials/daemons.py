"""rsyslog, by UDP, TCP and TLS."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from tests.delivery.sinks.brokers import Certificates
from tests.delivery.sinks.daemons import Rsyslog, ServerTls
from tests.delivery.trials.receivers import Receiver, padded, uid_of
from tests.delivery.trials.relay import Relay

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Message
    from tests.delivery.trials.receivers import Setting

_MOST_BYTES: Final = 4096


class Syslog(Receiver):
    """rsyslog, which accepts longer messages than the sink's ``max_bytes``."""

    refusal_text = f"longer than max_bytes, which is {_MOST_BYTES}"

    def __init__(self, setting: Setting, transport: Literal["udp", "tcp", "tls"]) -> None:
        self._setting = setting
        self._transport = transport
        self._most_bytes = _MOST_BYTES
        if transport == "tls" and setting.certificates is None:
            certificates = Certificates(setting.folder)
            setting.trusted.write_bytes(certificates.ca.read_bytes())
            self._setting = setting = replace(setting, certificates=certificates)
        self._rsyslog = Rsyslog(folder=setting.folder, tls=_tls(setting.certificates))
        self._relay = Relay(self._rsyslog.port, is_narrow=True)

    @property
    def table(self) -> dict[str, Any]:
        return {
            "type": "syslog",
            "transport": self._transport,
            "host": "127.0.0.1",
            "port": self._relay.port if self._setting.is_slow else self._rsyslog.port,
            "max_bytes": self._most_bytes,
            **({"timeout_seconds": 1.0} if self._setting.is_slow else {}),
            **self._setting.tls,
        }

    async def start(self) -> None:
        await self._rsyslog.start()
        if self._setting.is_slow:
            await self._relay.open()

    async def kill(self) -> None:
        self._rsyslog.stop()

    async def end(self) -> None:
        await self._relay.close()
        self._rsyslog.stop()

    async def uids(self) -> list[str]:
        return [uid_of(text) for text in self._rsyslog.texts]

    async def stop_answering(self) -> None:
        self._relay.may_pass.clear()

    async def answer_slowly(self, seconds: float) -> None:
        self._relay.seconds = seconds / 10  # for each piece of a request
        self._relay.may_pass.set()

    def poisoned(self, number: int) -> Message:
        return padded(number, _MOST_BYTES)

    async def accept_refused(self) -> None:
        """Raise ``max_bytes`` of the sink: rsyslog itself accepts the event."""
        self._most_bytes = 2 * _MOST_BYTES - 96


def _tls(certificates: Certificates | None) -> ServerTls | None:
    if certificates is None:
        return None
    return ServerTls(ca=certificates.ca, certificate=certificates.certificate, key=certificates.key)
