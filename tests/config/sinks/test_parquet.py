from __future__ import annotations

import sys
from typing import Any

import pytest

from ocsf_nft.config.sinks.parquet import ParquetSink
from ocsf_nft.delivery.sinks.parquet import Parquet
from ocsf_nft.errors import UnsupportedError

BUCKET: dict[str, Any] = {"type": "parquet", "bucket": "s3://lake", "region": "eu-west-1"}
DIRECTORY: dict[str, Any] = {"type": "parquet", "directory": "/var/lib/lake", "region": "local"}


def _sink(table: dict[str, Any]) -> ParquetSink:
    return ParquetSink.model_validate(table)


def test_a_bucket_and_its_region_are_enough() -> None:
    sink = _sink(BUCKET)
    assert (sink.account, sink.source, sink.batch_seconds) == ("external", "ocsf-nft", 300)
    assert isinstance(sink.sink(), Parquet)


def test_all_settings_of_a_bucket_reach_the_sink() -> None:
    sink = _sink(
        BUCKET
        | {
            "bucket": "s3://lake/security/logs/",
            "endpoint": "https://s3.example.com:9000/",
            "access_key": "AKIAEXAMPLE",
            "secret": {"env": "S3_SECRET"},
            "tls": {"ca": "/etc/ca.pem"},
        }
    )
    bucket: Any = sink.sink().storage  # type: ignore[attr-defined]  # of Parquet, not of any sink
    assert bucket.name == "lake"
    assert bucket.prefix == "security/logs"
    assert bucket.endpoint == "https://s3.example.com:9000"
    assert str(bucket.ca) == "/etc/ca.pem"


def test_directory_requires_only_a_region() -> None:
    assert isinstance(_sink(DIRECTORY).sink(), Parquet)


@pytest.mark.parametrize(
    ("more", "target"),
    [
        ({}, "s3://lake/ext/ocsf-nft/1.8.0"),
        ({"ocsf_version": "1.1", "bucket": "s3://lake/a/"}, "s3://lake/a/ext/ocsf-nft/1.1.0"),
        ({"source": "fence", "source_version": "2.0"}, "s3://lake/ext/fence/2.0"),
        ({"source_version": ""}, "s3://lake/ext/ocsf-nft"),
        ({"endpoint": "http://h:1/"}, "http://h:1/lake/ext/ocsf-nft/1.8.0"),
    ],
)
def test_target_is_the_location_of_the_files(more: dict[str, Any], target: str) -> None:
    assert _sink(BUCKET | more).called == target
    assert _sink(DIRECTORY).called == "/var/lib/lake/ext/ocsf-nft/1.8.0"


def test_only_selected_classes_have_columns() -> None:
    sink: Any = _sink(BUCKET | {"classes": ["detection_finding"]}).sink()
    assert sink.columns.keys() == {2004}


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"bucket": None}, "either a directory or a bucket"),
        ({"directory": "/x"}, "either a directory or a bucket"),
        ({"access_key": "AKIA"}, "access_key and secret, or neither"),
        ({"secret": {"env": "X"}}, "access_key and secret, or neither"),
        ({"access_key": "AKIA", "secret": "itself"}, "secret"),
        ({"tls": {"certificate": "/c", "key": "/k"}}, "asks for credentials instead"),
        ({"bucket": "lake"}, "bucket"),
        ({"bucket": "s3://Lake"}, "bucket"),
        ({"bucket": "s3://lake/../x"}, "bucket"),
        ({"bucket": "s3://lake//x"}, "bucket"),
        ({"bucket": "s3://user:password@lake"}, "bucket"),
        ({"endpoint": "s3.example.com"}, "a URL of http or https"),
        ({"endpoint": "ftp://s3.example.com"}, "a URL of http or https"),
        ({"endpoint": "https://"}, "a URL of http or https"),
        ({"endpoint": "https://h:99999"}, "must be a URL"),
        ({"endpoint": "https://user:secret@h"}, "must not hold a user or a password"),
        ({"endpoint": "https://user@h"}, "must not hold a user or a password"),
        ({"endpoint": "https://h/lake"}, "without a path"),
        ({"endpoint": "https://h?x=1"}, "without a path"),
        ({"endpoint": "https://h\n"}, "a URL of http or https"),
        ({"region": "eu west"}, "region"),
        ({"region": ""}, "region"),
        ({"account": "a/b"}, "account"),
        ({"account": ".."}, "account"),
        ({"source": "longer-than-it-may"}, "source"),
        ({"source": "a/b"}, "source"),
        ({"source_version": "../.."}, "source_version"),
        ({"batch_events": 0}, "batch_events"),
        ({"batch_bytes": 1 << 40}, "batch_bytes"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_invalid_table_is_one_sentence(more: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        _sink(BUCKET | more)
    if "user" in str(more):
        assert "password@" not in str(caught.value.errors(include_input=False))  # type: ignore[attr-defined]  # pydantic's


@pytest.mark.parametrize(
    "more",
    [
        {"endpoint": "https://h"},
        {"access_key": "AKIA", "secret": {"env": "X"}},
        {"tls": {"ca": "/ca"}},
    ],
)
def test_directory_refuses_settings_of_a_bucket(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="for a directory"):
        _sink(DIRECTORY | more)


@pytest.mark.parametrize(
    ("table", "module"),
    [(DIRECTORY, "pyarrow"), (BUCKET, "obstore")],
)
def test_missing_extra_is_reported_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, table: dict[str, Any], module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnsupportedError, match=r"needs the extra ocsf-nft\[parquet\]: install it"):
        _sink(table).sink()
