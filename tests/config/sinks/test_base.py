"""The tables that several kinds of sinks have in common."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from ocsf_nft import config
from ocsf_nft.config.sinks.base import SecretTable, TlsTable
from ocsf_nft.delivery.secrets import Secret
from ocsf_nft.delivery.tls import Tls
from ocsf_nft.errors import UsageError


def test_secret_table_takes_one_place() -> None:
    for place, secret in (
        ({"file": "/run/token"}, Secret("file", "/run/token")),
        ({"env": "TOKEN"}, Secret("environment", "TOKEN")),
        ({"credential": "token"}, Secret("credential", "token")),
    ):
        assert SecretTable.model_validate(place).secret() == secret
    for places in ({}, {"env": "A", "credential": "a"}, {"file": "/a", "env": "A"}):
        with pytest.raises(ValidationError, match="a secret is kept in one place: give file, env"):
            SecretTable.model_validate(places)


def test_secret_in_the_place_of_its_table_is_not_repeated() -> None:
    sink = {"type": "http", "url": "https://siem.example", "bearer": "itself"}
    with pytest.raises(UsageError) as refused:
        config.parse({"sandbox": [{"name": "a"}], "sink": [sink]}, where="test")
    assert str(refused.value) == "test: sink.0.bearer: must be one table, such as { key = value }"


def test_tls_table_refuses_a_key_without_a_certificate() -> None:
    with pytest.raises(ValidationError, match="has a key without a certificate: give both"):
        TlsTable.model_validate({"key": "/key"})
    for given in ({}, {"certificate": "/cert"}, {"certificate": "/cert", "key": "/key"}):
        made = TlsTable.model_validate(given).tls()
        assert made == Tls(**{name: Path(path) for name, path in given.items()})
