"""Configuration of sinks that send to message brokers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ocsf_nft.config.sinks.brokers import KafkaSink, NatsSink
from ocsf_nft.delivery.receiver_settings import Secret, Tls
from ocsf_nft.delivery.sinks.kafka import Kafka
from ocsf_nft.delivery.sinks.nats import Login, Nats
from ocsf_nft.errors import UnsupportedError

PASSWORD = {"credential": "kafka"}


def _kafka(**facts: Any) -> KafkaSink:
    given = {"type": "kafka", "servers": ["kafka.example:9092"], "topic": "ocsf"}
    return KafkaSink.model_validate(given | facts)


def test_only_servers_and_topic_are_required() -> None:
    table = _kafka()
    assert table.called == "kafka://kafka.example:9092/ocsf"
    sink = table.sink()
    assert isinstance(sink, Kafka)
    assert (sink.servers, sink.topic) == (("kafka.example:9092",), "ocsf")
    assert (sink.is_compressed, sink.max_bytes, sink.timeout_seconds) == (True, 1 << 20, 30.0)
    assert (sink.mechanism, sink.user, sink.password, sink.tls) == (None, None, None, None)


def test_all_settings_reach_the_kafka_sink() -> None:
    sink = _kafka(
        servers=["[2001:db8::7]:9093", "b.example:9093"],
        compress=False,
        max_message_bytes=5 << 20,
        sasl="SCRAM-SHA-512",
        user="me",
        password=PASSWORD,
        tls={},
        timeout_seconds=5,
    ).sink()
    assert isinstance(sink, Kafka)
    assert (sink.is_compressed, sink.max_bytes, sink.timeout_seconds) == (False, 5 << 20, 5.0)
    assert (sink.mechanism, sink.user) == ("SCRAM-SHA-512", "me")
    assert sink.password == Secret("credential", "kafka")
    assert sink.tls == Tls()


@pytest.mark.parametrize(
    ("server", "cause"),
    [
        ("kafka.example", "must have a port"),
        ("kafka://kafka.example:9092", "must be a host and port"),
        ("me:hunter2@kafka.example:9092", "must not hold a user or password"),
        ("a.example:9092,b.example:9092", "must be a host and port"),
        ("", "must be a host and port"),
        (":9092", "must be a host and port"),
        ("::1:9092", "must be a host and port"),
        ("kafka.example:9092\n", "must be a host and port"),
        ("[::1]", "must have a port"),
        ("[1:2]:9092", "address of IPv6"),
        ("kafka.example:0", "port of 1 to 65535"),
        ("kafka.example:99999999", "port of 1 to 65535"),
        (9092, "must be text"),
    ],
)
def test_invalid_broker_of_kafka_is_refused(server: object, cause: str) -> None:
    with pytest.raises(ValidationError, match=cause):
        _kafka(servers=[server])


@pytest.mark.parametrize(
    "facts",
    [
        {"servers": []},
        {"topic": ""},
        {"topic": "."},
        {"topic": ".."},
        {"topic": "a b"},
        {"topic": "a\n"},
        {"topic": "x" * 250},
        {"max_message_bytes": 0},
        {"sasl": "GSSAPI"},
        {"timeout_seconds": None},
        {"password": "hunter2"},
        {"colour": "red"},
    ],
)
def test_invalid_setting_of_kafka_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(facts))):
        _kafka(**facts)


@pytest.mark.parametrize("topic", ["...", "..a", ".a", "a.b_c-1", "x" * 249])
def test_topic_name_must_be_valid_for_brokers(topic: str) -> None:
    assert _kafka(topic=topic).topic == topic


@pytest.mark.parametrize(
    "facts",
    [
        {"sasl": "PLAIN"},
        {"user": "me", "password": PASSWORD},
        {"sasl": "PLAIN", "user": "me"},
        {"sasl": "PLAIN", "password": PASSWORD},
    ],
)
def test_incomplete_login_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give all three, or none"):
        _kafka(**facts)


def test_missing_extra_for_kafka_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiokafka", None)
    with pytest.raises(UnsupportedError, match=r"needs the extra ocsf-nft\[kafka\]"):
        _kafka().sink()


def test_server_has_a_port_of_1_to_65535() -> None:
    for port in (1, 65_535):
        assert _kafka(servers=[f"kafka.example:{port}"]).servers == (f"kafka.example:{port}",)
    for port in (0, 65_536, 100_000, 1_000_000):
        with pytest.raises(ValidationError, match="must have a port of 1 to 65535"):
            _kafka(servers=[f"kafka.example:{port}"])


TOKEN = {"env": "TOKEN"}


def _nats(**facts: Any) -> NatsSink:
    given = {"type": "nats", "servers": ["nats://nats.example"], "subject": "ocsf"}
    return NatsSink.model_validate(given | facts)


def test_only_servers_and_subject_are_required() -> None:
    table = _nats()
    assert table.called == "nats://nats.example/ocsf"
    sink = table.sink()
    assert isinstance(sink, Nats)
    assert (sink.servers, sink.subject) == (("nats://nats.example",), "ocsf")
    assert (sink.stream, sink.has_class, sink.tls, sink.is_tls_first) == (
        None, False, None, False,
    )  # fmt: skip
    assert sink.login == Login()


def test_all_settings_reach_the_nats_sink() -> None:
    table = _nats(
        servers=["tls://[2001:db8::7]:4223", "tls://b.example:4222"],
        subject="a.b",
        class_subjects=True,
        stream="OCSF",
        user="me",
        password=TOKEN,
        tls={"ca": "/etc/ca.pem"},
        tls_first=True,
    )
    assert table.called == "nats://[2001:db8::7]:4223/a.b.*"
    sink = table.sink()
    assert isinstance(sink, Nats)
    assert (sink.stream, sink.has_class, sink.is_tls_first) == ("OCSF", True, True)
    assert sink.tls == Tls(ca=Path("/etc/ca.pem"))
    assert sink.login == Login(user="me", password=Secret("environment", "TOKEN"))


@pytest.mark.parametrize("kind", ["token", "nkey"])
def test_credentials_may_be_one_secret(kind: str) -> None:
    sink = _nats(**{kind: TOKEN}).sink()
    assert isinstance(sink, Nats)
    assert getattr(sink.login, kind) == Secret("environment", "TOKEN")


def test_credentials_may_be_a_file() -> None:
    sink = _nats(credentials="/etc/user.creds").sink()
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
def test_invalid_server_of_nats_is_refused(server: object, cause: str) -> None:
    with pytest.raises(ValidationError, match=cause):
        _nats(servers=[server])


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
def test_invalid_setting_of_nats_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(facts))):
        _nats(**facts)


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
        _nats(**facts)


@pytest.mark.parametrize("missing", ["nats", "nkeys"])
def test_missing_extra_for_nats_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UnsupportedError, match=r"needs the extra ocsf-nft\[nats\]"):
        _nats().sink()
