"""Configuration of a sink of type nats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ocsf_nft.config.sinks.nats import NatsSink
from ocsf_nft.delivery.receiver_settings import Secret, Tls
from ocsf_nft.delivery.sinks.nats import Login, Nats
from ocsf_nft.errors import UnsupportedError

TOKEN = {"env": "TOKEN"}


def _sink(**facts: Any) -> NatsSink:
    given = {"type": "nats", "servers": ["nats://nats.example"], "subject": "ocsf"}
    return NatsSink.model_validate(given | facts)


def test_only_servers_and_subject_are_required() -> None:
    table = _sink()
    assert table.target == "nats://nats.example/ocsf"
    sink = table.sink()
    assert isinstance(sink, Nats)
    assert (sink.servers, sink.subject) == (("nats://nats.example",), "ocsf")
    assert (sink.stream, sink.has_class, sink.tls, sink.is_tls_first) == (
        None, False, None, False,
    )  # fmt: skip
    assert sink.login == Login()


def test_all_settings_reach_the_sink() -> None:
    table = _sink(
        servers=["tls://[2001:db8::7]:4223", "tls://b.example:4222"],
        subject="a.b",
        class_subjects=True,
        stream="OCSF",
        user="me",
        password=TOKEN,
        tls={"ca": "/etc/ca.pem"},
        tls_first=True,
    )
    assert table.target == "nats://[2001:db8::7]:4223/a.b.*"
    sink = table.sink()
    assert isinstance(sink, Nats)
    assert (sink.stream, sink.has_class, sink.is_tls_first) == ("OCSF", True, True)
    assert sink.tls == Tls(ca=Path("/etc/ca.pem"))
    assert sink.login == Login(user="me", password=Secret("environment", "TOKEN"))


@pytest.mark.parametrize("kind", ["token", "nkey"])
def test_credentials_may_be_one_secret(kind: str) -> None:
    sink = _sink(**{kind: TOKEN}).sink()
    assert isinstance(sink, Nats)
    assert getattr(sink.login, kind) == Secret("environment", "TOKEN")


def test_credentials_may_be_a_file() -> None:
    sink = _sink(credentials="/etc/user.creds").sink()
    assert isinstance(sink, Nats)
    assert sink.login == Login(credentials=Path("/etc/user.creds"))


@pytest.mark.parametrize(
    ("server", "cause"),
    [
        ("nats.example:4222", "begins with nats:// or tls://"),
        ("ws://nats.example", "begins with nats:// or tls://"),
        ("nats://", "must be a host and port"),
        ("nats://a b", "must be a host and port"),
        ("nats://nats.example/", "must be a host and port"),
        ("nats://nats.example:4222\r\n", "must be a host and port"),
        ("nats://[::g]:4222", "must be a host and port"),
        ("nats://[1:2]:4222", "address of IPv6"),
        ("nats://nats.example:0", "port of 1 to 65535"),
        ("nats://nats.example:65536", "port of 1 to 65535"),
        ("nats://me:hunter2@nats.example", "must not hold a user, password or token"),
        ("nats://token@nats.example", "must not hold a user, password or token"),
        (4222, "must be text"),
    ],
)
def test_invalid_server_is_refused(server: object, cause: str) -> None:
    with pytest.raises(ValidationError, match=cause):
        _sink(servers=[server])


@pytest.mark.parametrize(
    "facts",
    [
        {"servers": []},
        {"subject": ""},
        {"subject": "a..b"},
        {"subject": "a."},
        {"subject": "a.*"},
        {"subject": "a.>"},
        {"subject": "$JS.API"},
        {"subject": "a b"},
        {"subject": "a\r\nPUB b"},
        {"subject": "a\n"},
        {"stream": "a.b"},
        {"stream": "a\n"},
        {"credentials": ""},
        {"token": "hunter2"},
        {"colour": "red"},
    ],
)
def test_invalid_setting_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(facts))):
        _sink(**facts)


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        ({"user": "me"}, "give both"),
        ({"password": TOKEN}, "give both"),
        ({"user": "me", "password": TOKEN, "token": TOKEN}, "more than one"),
        ({"nkey": TOKEN, "credentials": "/etc/user.creds"}, "more than one"),
    ],
)
def test_credentials_that_contradict_each_other_are_refused(
    facts: dict[str, Any], cause: str
) -> None:
    with pytest.raises(ValidationError, match=cause):
        _sink(**facts)


@pytest.mark.parametrize("missing", ["nats", "nkeys"])
def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UnsupportedError, match=r"needs the extra ocsf-nft\[nats\]"):
        _sink().sink()
