"""Files that the delivery process may open, by the configuration of its sinks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from ocsf_nft import config
from ocsf_nft.delivery.name_resolver import ResolverFiles
from ocsf_nft.delivery.sinks import safe_open
from ocsf_nft.landlock import Access, Rule
from ocsf_nft.service import delivery_files
from ocsf_nft.service.outlet import Outlet, outlets


def _outlets(*tables: dict[str, Any]) -> tuple[Outlet, ...]:
    written = {"sandbox": [{"name": "a"}], "sink": list(tables)}
    return outlets(config.parse(written, where="test").sinks)


def _rules(state: Path, *tables: dict[str, Any], resolver: Path | None = None) -> set[Rule]:
    found = _outlets(*tables)
    files = ResolverFiles() if resolver is None else ResolverFiles(resolv_conf=resolver)
    sinks = state / "db.delivery/sinks"
    return set(delivery_files.rules(found, events=state / "db", sinks=sinks, resolver=files))


def test_only_the_program_the_settings_and_the_databases_are_open_without_sinks(
    tmp_path: Path,
) -> None:
    found = _rules(tmp_path, {"type": "stdout"})
    written = {rule.path for rule in found if rule.access & Access.MAKE_REG}
    assert written == {tmp_path / "db.delivery"}
    device = _rules(tmp_path, {"path": "/dev/stdout"}) - found
    assert device == {Rule(Path("/dev/stdout"), delivery_files._WRITE_FILE)}
    readable = {rule.path for rule in found if rule.access & Access.READ_FILE}
    assert Path(sys.base_prefix) in readable
    assert not {Path("/"), Path("/etc"), Path("/run"), Path("/root"), Path("/proc")} & readable
    assert not any(rule.access & Access.EXECUTE for rule in found)


def test_file_sink_may_write_in_its_directory_and_in_that_of_its_target(tmp_path: Path) -> None:
    for name in ("links", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "links/events").symlink_to(tmp_path / "target/events")
    found = _rules(tmp_path / "state", {"path": str(tmp_path / "links/events")})
    assert {
        Rule(tmp_path / "links", Access.WRITE), Rule(tmp_path / "target", Access.WRITE)
    } <= found  # fmt: skip
    assert not delivery_files.are_allowed([Rule(tmp_path / "other", Access.WRITE)], found)


@pytest.mark.parametrize("path", ["new/events", "new/deep/events"])
def test_parent_of_a_missing_directory_is_never_allowed(tmp_path: Path, path: str) -> None:
    missing = (tmp_path / path).parent
    for table in (
        {"path": str(tmp_path / path)},
        {"type": "parquet", "directory": str(missing), "region": "a"},
    ):
        found = _rules(tmp_path / "state", table)
        written = {rule.path for rule in found if rule.access & Access.MAKE_REG}
        assert written == {tmp_path / "state/db.delivery", missing}


def test_rules_for_one_path_are_added_up(tmp_path: Path) -> None:
    granted = [Rule(tmp_path, access) for access in (Access.READ, Access.WRITE, Access.READ_FILE)]
    assert delivery_files.are_allowed([Rule(tmp_path / "file", Access.WRITE)], granted)


def test_missing_directory_is_created_as_the_sink_would(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target/events")
    (tmp_path / "file").touch()
    tables: list[dict[str, Any]] = [
        {"path": str(tmp_path / path)}
        for path in ("new/events", "missing/deep/events", "link", "file/events", "/dev/x/events")
    ]
    tables.append({"type": "parquet", "directory": str(tmp_path / "lake"), "region": "a"})
    for _ in range(2):
        delivery_files.create_directories(_outlets(*tables), sinks=tmp_path / "db/sinks")
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_dir()}
    assert found == {"new": 0o750, "target": 0o750, "lake": 0o750, "db": 0o700}


def test_link_of_another_user_allows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, target = tmp_path / "links/events", tmp_path / "target"
    link.parent.mkdir()
    link.symlink_to(target / "events")
    monkeypatch.setattr(safe_open, "_is_trusted", lambda _: False)
    delivery_files.create_directories(_outlets({"path": str(link)}), sinks=tmp_path / "db/sinks")
    assert not target.exists()
    assert target not in {rule.path for rule in _rules(tmp_path / "state", {"path": str(link)})}


@pytest.mark.parametrize(
    ("table", "files"),
    [
        (
            {
                "type": "http", "url": "https://a.test/", "bearer": {"file": "/s/token"},
                "headers": {"X-Key": {"file": "/s/header"}},
                "tls": {"ca": "/s/ca", "certificate": "/s/certificate", "key": "/s/key"},
            },
            {"/s/token", "/s/header", "/s/ca", "/s/certificate", "/s/key"},
        ),
        (
            {
                "type": "splunk_hec", "url": "https://a.test:8088",
                "token": {"credential": "ocsf-nft.hec"},
            },
            {"/run/credentials/x/ocsf-nft.hec"},
        ),
        (
            {"type": "syslog", "host": "a.test", "transport": "tls", "tls": {"ca": "/s/ca"}},
            {"/s/ca"},
        ),
        ({"type": "http", "url": "http://a.test/", "bearer": {"env": "TOKEN"}}, set()),
        (
            {
                "type": "nats", "servers": ["nats://a.test"], "subject": "a", "stream": "a",
                "credentials": "/s/credentials",
            },
            {"/s/credentials"},
        ),
        ({"type": "unix", "path": "/run/socket"}, set()),
    ],
)  # fmt: skip
def test_sink_may_read_its_secrets_and_certificates(
    tmp_path: Path, table: dict[str, Any], files: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    more = _rules(tmp_path, table) - _rules(tmp_path, {"type": "stdout"})
    assert {rule for rule in more if rule.access == Access.READ_FILE} == {
        Rule(Path(path), Access.READ_FILE) for path in files
    }
    assert not any(rule.access & Access.WRITE_FILE for rule in more)


def test_parquet_sink_may_write_its_directory(tmp_path: Path) -> None:
    table = {"type": "parquet", "directory": str(tmp_path / "lake"), "region": "a"}
    assert Rule(tmp_path / "lake", Access.WRITE) in _rules(tmp_path / "state", table)


def test_replaced_file_has_another_identity(tmp_path: Path) -> None:
    token, settings = tmp_path / "token", tmp_path / "resolv.conf"
    token.write_text("a", "utf-8")
    table = {"type": "http", "url": "http://a.test/", "bearer": {"file": str(token)}}
    found = _rules(tmp_path, table, resolver=settings)
    before = delivery_files.identities(found)
    assert before[token] is not None
    assert before[settings] is None
    token.write_text("b", "utf-8")
    assert delivery_files.identities(found) == before, "it is the same file"
    (tmp_path / "new").write_text("c", "utf-8")
    (tmp_path / "new").rename(token)
    settings.touch()
    after = delivery_files.identities(found)
    assert {path for path in after if after[path] != before[path]} == {token, settings}


def test_replaced_directory_of_a_sink_has_another_identity(tmp_path: Path) -> None:
    tables: tuple[dict[str, Any], ...] = (
        {"path": str(tmp_path / "a/events")},
        {"type": "parquet", "directory": str(tmp_path / "lake"), "region": "a"},
    )
    for name in ("a", "lake", "state", "state/db.delivery"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/events").touch()
    found = _rules(tmp_path / "state", *tables)
    before = delivery_files.identities(found)
    (tmp_path / "a/events").rename(tmp_path / "a/old")
    (tmp_path / "a/events").touch()
    assert delivery_files.identities(found) == before, "the directory is the same"
    for name in ("a", "lake", "state"):
        (tmp_path / name).rename(tmp_path / f"old-{name}")
    (tmp_path / "a").mkdir()
    after = delivery_files.identities(found)
    changed = {path.name for path in after if after[path] != before[path]}
    assert changed == {"a", "lake", "db.delivery"}
