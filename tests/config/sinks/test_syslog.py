from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ocsf_nft.config.sinks.syslog import SyslogSink
from ocsf_nft.delivery.receiver_settings import Tls
from ocsf_nft.delivery.sinks.syslog import MAX_BYTES, Connection, Datagrams, Syslog

HOST = "log.example"


def _sink(**facts: Any) -> SyslogSink:
    return SyslogSink.model_validate({"type": "syslog", "transport": "tls", "host": HOST} | facts)


def _made(**facts: Any) -> Syslog:
    made = _sink(**facts).sink()
    assert isinstance(made, Syslog)
    return made


@pytest.mark.parametrize(
    ("facts", "target"),
    [
        ({}, "syslog+tls://log.example:6514"),
        ({"transport": "tcp"}, "syslog+tcp://log.example:514"),
        ({"transport": "udp", "port": 5140}, "syslog+udp://log.example:5140"),
        ({"host": "fe80::1%eth0", "port": 1}, "syslog+tls://[fe80::1%eth0]:1"),
    ],
)
def test_each_transport_has_its_default_port(facts: dict[str, Any], target: str) -> None:
    assert _sink(**facts).called == target


def test_sink_uses_its_transport() -> None:
    by_tls = _made(tls={"ca": "/etc/ca.pem"}, max_bytes=65_000)
    assert by_tls._max_bytes == 65_000
    assert isinstance(by_tls._transport, Connection)
    assert by_tls._transport._tls == Tls(ca=Path("/etc/ca.pem"))
    trusting_the_system, plain = _made()._transport, _made(transport="tcp")._transport
    assert isinstance(trusting_the_system, Connection)
    assert trusting_the_system._tls == Tls()
    assert isinstance(plain, Connection)
    assert plain._tls is None
    datagrams = _made(transport="udp", port=5140)
    assert isinstance(datagrams._transport, Datagrams)
    assert datagrams._transport._port == 5140
    assert datagrams._max_bytes == MAX_BYTES
    # A UDP datagram over IPv4 has at most 65,535 bytes, with 28 bytes of headers.
    assert _made(transport="udp", max_bytes=65_507)._max_bytes == 65_507
    with pytest.raises(ValidationError, match="a datagram has at most 65507"):
        _sink(transport="udp", max_bytes=65_508)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"transport": "relp"}, "transport"),
        ({"transport": "tcp", "tls": {}}, 'has tls, and transport tcp: give transport = "tls"'),
        ({"transport": "udp", "max_bytes": 65_508}, "a datagram has at most 65507"),
        ({"max_bytes": 479}, "max_bytes"),
        ({"timeout_seconds": 0.99}, "timeout_seconds"),
        ({"port": 0}, "port"),
        ({"port": 65_536}, "port"),
        *(
            ({"host": host}, "must be a host's name or address")
            for host in (
                "",
                "a b",
                "[::1]",
                "https://log.example",
                "-h",
                "log.example/",
                "ä",
                "a\n",
            )
        ),
        ({"host": 7}, "must be text"),
    ],
)
def test_invalid_table_is_one_sentence(facts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        _sink(**facts)
