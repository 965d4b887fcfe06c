"""Check of a configuration file before a run."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import orjson
import pytest
from jsonschema import Draft202012Validator

from ocsf_nft.config.schema import json_schema
from tests.cli import forked

if TYPE_CHECKING:
    from pathlib import Path

FILE = """
listen = "127.0.0.1:9469"
host_log = "journal"
[[sandbox]]
name = "agent-1"
proxy = ["10.0.0.1:3128"]
install = true
[[sandbox]]
name = "agent-2"
[[sink]]
path = "{path}"
[[sink]]
type = "http"
name = "siem"
url = "http://127.0.0.1:{port}/"
bearer = {{ env = "SIEM_TOKEN" }}
ocsf_version = "1.3"
timeout_seconds = 5
"""


def check(path: Path, *options: str, siem: str = "t0ps3cret") -> subprocess.CompletedProcess[str]:
    return forked.run("config", path, *options, env={"SIEM_TOKEN": siem} if siem else {})


def written(folder: Path, port: int = 9) -> Path:
    path = folder / "ocsf-nft.toml"
    path.write_text(FILE.format(path=folder / "events.jsonl", port=port))
    return path


def test_config_shows_the_effective_settings(tmp_path: Path) -> None:
    done = check(written(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    command = (sys.executable, "-m", "ocsf_nft", "config", written(tmp_path))
    alone = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (alone.stdout, alone.stderr) == (done.stdout, done.stderr)
    assert done.stderr.splitlines() == [
        "sandbox agent-1: to be fenced and watched, profile sandbox",
        "sandbox agent-2: to be watched, profile sandbox",
        "logs of other firewalls: read from journal",
        f"sink {tmp_path / 'events.jsonl'}: OCSF 1.8.0",
        "sink siem: OCSF 1.3.0",
        "metrics and health: http://127.0.0.1:9469/metrics, /healthz, /readyz",
    ]
    assert not (tmp_path / "events.jsonl").exists()


def test_fault_is_one_sentence(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace("ocsf_version", "version"))
    done = check(path)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"ocsf-nft: {path}: there is no key sink.1.version: did you mean ocsf_version?\n"
    )
    assert check(tmp_path / "none.toml").returncode == 2


def test_sink_that_can_not_be_opened_is_named_and_the_others_are_tried(tmp_path: Path) -> None:
    done = check(written(tmp_path), "--connect")
    assert done.returncode == 3
    assert f"sink {tmp_path / 'events.jsonl'}: can be opened" in done.stderr
    assert "sink siem: " in done.stderr.splitlines()[-1]
    assert "can be opened" not in done.stderr.splitlines()[-1]
    assert "t0ps3cret" not in done.stderr


def test_sinks_that_can_be_opened_are_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        path = written(tmp_path, server.getsockname()[1])
        done = check(path, "--connect")
        assert (done.returncode, done.stderr.count("can be opened")) == (0, 2)
        missing = check(path, "--connect", siem="")
    assert missing.returncode == 3
    assert "the environment has no SIEM_TOKEN" in missing.stderr


def test_schema_is_written_to_standard_output() -> None:
    done = forked.run("config", "--schema")
    assert (done.returncode, done.stderr) == (0, "")
    schema = orjson.loads(done.stdout)
    Draft202012Validator.check_schema(schema)
    assert schema == json_schema()


@pytest.mark.parametrize(
    "arguments", [(), ("--schema", "a.toml"), ("--schema", "--connect"), ("--connect",)]
)
def test_config_needs_a_file_or_a_request_for_the_schema(arguments: tuple[str, ...]) -> None:
    done = forked.run("config", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "ocsf-nft: give a FILE to check, with --connect or without, or only --schema\n"
    )
