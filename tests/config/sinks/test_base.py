"""Tables that several kinds of sinks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import ValidationError

from ocsf_nft import config
from ocsf_nft.config.sinks import KINDS
from ocsf_nft.config.sinks.base import SecretTable, TlsTable
from ocsf_nft.delivery.receiver_settings import Secret, Tls
from ocsf_nft.errors import UsageError


def test_secret_table_takes_one_source() -> None:
    for source, secret in (
        ({"file": "/run/token"}, Secret("file", "/run/token")),
        ({"env": "TOKEN"}, Secret("environment", "TOKEN")),
        ({"credential": "token"}, Secret("credential", "token")),
    ):
        assert SecretTable.model_validate(source).secret() == secret
    for sources in ({}, {"env": "A", "credential": "a"}, {"file": "/a", "env": "A"}):
        with pytest.raises(ValidationError, match="a secret has one source: give file, env"):
            SecretTable.model_validate(sources)


def test_secret_given_as_the_table_itself_is_not_in_the_message() -> None:
    sink = {"type": "http", "url": "https://siem.example", "bearer": "itself"}
    with pytest.raises(UsageError) as refused:
        config.parse({"sandbox": [{"name": "a"}], "sink": [sink]}, where="test")
    assert str(refused.value) == "test: sink.0.bearer: must be one table, such as { key = value }"


@pytest.mark.parametrize(
    "sink",
    [
        {
            "type": "parquet",
            "region": "r",
            "bucket": "s3://logs",
            "endpoint": "https://a:itself@h:x",
        },
        {
            "type": "parquet",
            "region": "r",
            "bucket": "s3://logs",
            "endpoint": "https://h/?k=itself",
        },
        {"type": "kafka", "topic": "t", "servers": ["a:itself@h:9092"]},
        {"type": "syslog", "transport": "tls", "host": "a:itself@h"},
    ],
)
def test_secret_in_an_address_is_not_in_the_message(sink: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        config.parse({"sandbox": [{"name": "a"}], "sink": [sink]}, where="test")
    assert "itself" not in str(refused.value)


def test_tls_table_refuses_a_key_without_a_certificate() -> None:
    with pytest.raises(ValidationError, match="has a key without a certificate: give both"):
        TlsTable.model_validate({"key": "/key"})
    for given in ({}, {"certificate": "/cert"}, {"certificate": "/cert", "key": "/key"}):
        made = TlsTable.model_validate(given).tls()
        assert made == Tls(**{name: Path(path) for name, path in given.items()})


_COMMON: Final = {
    "batch_events": (1, 500, 10_000),
    "batch_bytes": (1024, 1 << 20, 64 << 20),
    "batch_seconds": (0, 0.2, 3600),
    "timeout_seconds": (0.001, 30.0, 3600),
    "retry_seconds": (0.001, 30.0, 3600),
}
_LOCAL: Final = {"batch_seconds": (0, 0.0, 3600), "timeout_seconds": (0.001, None, 3600)}
_SINKS: Final[list[tuple[dict[str, Any], dict[str, Any]]]] = [
    ({"type": "file", "path": "/x"}, _LOCAL),
    ({"type": "stdout"}, _LOCAL),
    ({"type": "unix", "path": "/x"}, {"batch_seconds": (0, 0.0, 3600)}),
    ({"type": "http", "url": "https://siem.example"}, {}),
    ({"type": "otlp", "url": "https://siem.example"}, {"batch_seconds": (0, 1.0, 3600)}),
    (
        {"type": "opensearch", "url": "https://siem.example"},
        {
            "batch_events": (1, 1000, 10_000), "batch_bytes": (1024, 5 << 20, 64 << 20),
            "batch_seconds": (0, 1.0, 3600),
        },
    ),
    (
        {"type": "splunk_hec", "url": "https://siem.example", "token": {"env": "TOKEN"}},
        {"ack_seconds": (0.001, None, 29.999)},
    ),
    (
        {"type": "syslog", "transport": "tcp", "host": "siem.example"},
        {"timeout_seconds": (1, 30.0, 3600), "max_bytes": (480, 8096, 1 << 20)},
    ),
    (
        {"type": "kafka", "servers": ["siem.example:9092"], "topic": "ocsf"},
        {"timeout_seconds": (1, 30.0, 3600), "max_message_bytes": (1024, 1 << 20, 64 << 20)},
    ),
    ({"type": "nats", "servers": ["nats://siem.example"], "subject": "ocsf"}, {}),
    (
        {"type": "parquet", "bucket": "s3://lake", "region": "eu-central-1"},
        {
            "batch_events": (1, 10_000, 10_000), "batch_bytes": (1024, 16 << 20, 64 << 20),
            "batch_seconds": (0, 300.0, 3600), "timeout_seconds": (0.001, 120.0, 3600),
        },
    ),
]  # fmt: skip


def test_number_of_a_sink_has_its_default_and_its_limits() -> None:
    assert sorted(table["type"] for table, _ in _SINKS) == sorted(KINDS)

    def made(table: dict[str, Any]) -> Any:
        return config.parse({"sandbox": [{"name": "a"}], "sink": [table]}, where="test").sink[0]

    for table, numbers in _SINKS:
        for key, (lowest, default, highest) in (_COMMON | numbers).items():
            where = table["type"], key
            assert getattr(made(table), key) == default, where
            for taken in (lowest, highest):
                assert getattr(made(table | {key: taken}), key) == taken, where
            step = 1 if isinstance(lowest, int) else 0.001
            for refused in (lowest - step, highest + step):
                with pytest.raises(UsageError, match=key):
                    made(table | {key: refused})
