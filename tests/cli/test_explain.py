"""Explanation of a line, field by field."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_GOLDEN = Path(__file__).parents[1] / "golden" / "events"


def test_a_hostile_prefix_is_shown_as_it_is_and_is_no_markup() -> None:
    prefix = "[red]x[/red] :skull: "
    line = (
        f"[    1.500000] {prefix}IN= OUT=[b]e0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 TOS=0x00 "
        "PREC=0x00 TTL=64 ID=1 DF PROTO=UDP SPT=4000 DPT=53 LEN=28 "
    )
    done = subprocess.run(
        [sys.executable, "-m", "ocsf_nft", "explain", line],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "140", "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    shown = dict(_cells(row) for row in done.stderr.splitlines() if row.count("│") == 3)
    assert (shown["prefix"], shown["out_interface"]) == (prefix.strip(), "[b]e0")
    assert json.loads(done.stdout)["src_endpoint"]["interface_name"] == "[b]e0"


def test_a_foreign_record_is_explained_by_what_its_prefix_means() -> None:
    line = (
        "[    1.500000] openshell:bypass:pod-1:IN= OUT=e0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 "
        "TOS=0x00 PREC=0x00 TTL=64 ID=1 DF PROTO=UDP SPT=4000 DPT=53 LEN=28 "
    )
    done = subprocess.run(
        [sys.executable, "-m", "ocsf_nft", "explain", line],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "140", "PYTHONUTF8": "1"},
    )
    shown = dict(_cells(row) for row in done.stderr.splitlines() if row.count("│") == 3)
    fields = tuple(shown[name] for name in ("sandbox", "rule", "verdict"))
    assert fields == ("pod-1", "bypass", "reject")
    # Only data of the line is shown, and each detail has a row.
    assert shown.keys().isdisjoint({"uid", "details", "origin", "tcp_flags"})
    assert shown["details.ttl"] == "64"


def _explained(line: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ocsf_nft", "explain", line, *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200", "PYTHONUTF8": "1"},
    )


def _fields(stderr: str) -> dict[str, tuple[str, str]]:
    """Return each field of an event with its value and its source, as shown in the table."""
    _, _, table = stderr.partition("Fields of the event")
    rows = [row.split("│")[1:4] for row in table.splitlines() if row.count("│") == 4]
    return {field.strip(): (value.strip(), source.strip()) for field, value, source in rows}


def test_line_is_shown_as_its_event_with_the_source_of_each_value() -> None:
    line = (
        "[    1.500000] ocsf-nft:sb1:egress:IN= OUT=sb0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 "
        "TOS=0x00 PREC=0x00 TTL=64 ID=1 DF PROTO=UDP SPT=4000 DPT=53 LEN=28 UID=1000 GID=1000 "
    )
    done = _explained(line)
    assert done.returncode == 0
    event = json.loads(done.stdout)
    shown = _fields(done.stderr)
    heads = [row.split("┃")[1:-1] for row in done.stderr.splitlines() if row.startswith("┃")]
    assert [[head.strip() for head in each] for each in heads] == [
        ["field", "value"], ["field", "value", "source"],
    ]  # fmt: skip
    assert shown["dst_endpoint.ip"] == ("203.0.113.7", "the address in the packet")
    assert shown["actor.user.uid"] == ("1000", "the user's id in the host's user namespace")
    assert shown["class_uid"] == ("4001", "always so")
    assert shown["unmapped.packet.ttl"][0] == "64"
    assert shown["observables[0].value"][0] == event["observables"][0]["value"]


def test_event_is_explained_field_by_field_and_not_converted() -> None:
    event = json.loads((_GOLDEN / "ssh-again-and-again-1.1.0.json").read_text())
    done = _explained(json.dumps(event))
    assert (done.returncode, done.stdout) == (0, "")
    shown = _fields(done.stderr)
    assert shown["metadata.version"] == ("1.1.0", "the OCSF version of the event")
    assert shown["finding_info.uid"] == (
        event["finding_info"]["uid"], "identifier of the finding, in all its events",
    )  # fmt: skip
    assert "Fields of the record" not in done.stderr


def test_source_of_a_foreign_field_is_unknown() -> None:
    done = _explained('{"class_uid": 3002, "user": {"name": "[red]x[/red]\\u001b[2J"}}')
    assert done.returncode == 0
    assert _fields(done.stderr)["user.name"] == (
        "[red]x[/red]\\x1b[2J", "not known to ocsf-nft",
    )  # fmt: skip


@pytest.mark.parametrize("depth", [20, 900, 1000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"x":', "}")])
def test_deep_nesting_is_no_traceback(depth: int, begin: str, end: str) -> None:
    done = _explained(f'{{"class_uid": 4001, "unmapped": {begin * depth}1{end * depth}}}')
    assert "Traceback" not in done.stderr
    assert done.returncode in {0, 1}


def test_configuration_defines_the_meaning_of_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[[prefix]]\nbegins = "EDGE "\nverdict = "drop"\n')
    line = (
        "[    1.500000] EDGE IN= OUT=e0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 TOS=0x00 PREC=0x00 "
        "TTL=64 ID=1 DF PROTO=UDP SPT=4000 DPT=53 LEN=28 "
    )
    done = _explained(line, "--config", str(tmp_path / "c.toml"))
    assert json.loads(done.stdout)["disposition"] == "Dropped"


@pytest.mark.parametrize("line", ["hello", "{}", '{"MESSAGE": "hello"}', "[1]", '{"class_uid": '])
def test_other_text_is_one_sentence_and_exit_1(line: str) -> None:
    done = _explained(line)
    assert done.returncode == 1
    assert done.stderr == "this line is neither a record of a packet nor an event\n"


def _cells(row: str) -> tuple[str, str]:
    _, field, value, _ = row.split("│")
    return field.strip(), value.strip()
