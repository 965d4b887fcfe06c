"""Validation of events: faults and exit codes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli import forked
from tests.conformance.spoiling import GOOD
from tests.validation.events import good
from tests.validation.test_schema_file import EVENT
from tests.validation.test_schema_file import write as write_schema

if TYPE_CHECKING:
    from pathlib import Path

BAD = good(dst_endpoint={"ip": "203.0.113.7", "port": 70000}, observables=[])


def validate(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return forked.run("validate", *arguments, input=stdin)


def lines(*events: Any) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def test_events_that_conform_are_counted_and_exit_0(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(lines(*GOOD.values()))
    done = validate(path)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "8 events: 0 errors, 0 warnings\n"


def test_compressed_file_is_read_and_a_damaged_one_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(lines(good(), BAD).encode()))
    done = validate(path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "2 events: 1 error, 0 warnings"
    path.write_bytes(path.read_bytes()[:-9])
    done = validate(path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(f"ocsf-nft: {path} can't be decompressed after ")


def test_fault_is_a_line_with_path_and_message_and_exit_is_1(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(lines(good(), BAD, {"class_uid": 4001} | good(proxy={"ip": "10.0.0.1"})))
    done = validate(path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] == (
        f"{path}:2: error: dst_endpoint.port: 70000 is more than 65535"
    )
    assert done.stderr.splitlines()[1].startswith(f"{path}:3: warning: proxy: is deprecated: ")
    assert done.stderr.splitlines()[2:] == ["3 events: 1 error, 1 warning"]


def test_warnings_alone_do_not_count_against_an_event() -> None:
    done = validate(stdin=lines(good(proxy={"ip": "10.0.0.1"})))
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "1 event: 0 errors, 1 warning"


def test_standard_input_is_read_where_no_file_is_named_and_for_a_dash(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(lines(good()))
    for arguments, number in (((), "1 event"), (("-",), "1 event"), ((other, "-"), "2 events")):
        done = validate(*arguments, stdin=lines(BAD))
        assert done.stderr.splitlines() == [
            "-:1: error: dst_endpoint.port: 70000 is more than 65535",
            f"{number}: 1 error, 0 warnings",
        ]


def test_json_output_has_one_object_per_fault(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    text = json.dumps([good(), BAD], indent=2)
    path.write_text(text)
    done = validate("--json", path)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "file": str(path),
        "line": text.count("\n", 0, text.rindex("\n  {")) + 2,
        "severity": "error",
        "path": "dst_endpoint.port",
        "message": "70000 is more than 65535",
    }
    assert done.stderr == "2 events: 1 error, 0 warnings\n"


def test_a_version_that_is_asked_for_may_be_short() -> None:
    event = GOOD[4001, "1.1.0"]
    assert validate("--ocsf-version", "1.1", stdin=lines(event)).returncode == 0
    done = validate("--ocsf-version", "1.8.0", stdin=lines(event))
    assert done.returncode == 1
    assert '-:1: error: metadata.version: "1.1.0" is not 1.8.0\n' in done.stderr


def test_a_version_that_is_not_known_is_bad_usage_and_the_known_ones_are_named() -> None:
    done = validate("--ocsf-version", "2.0", stdin=lines(good()))
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith('ocsf-nft: "2.0" is no version')
    assert "1.1.0, " in sentence


def test_missing_recommended_attributes_are_reported_on_request() -> None:
    assert "recommended" not in validate(stdin=lines(good())).stderr
    done = validate("--recommended", stdin=lines(good()))
    assert done.returncode == 0
    assert "-:1: warning: src_endpoint.hostname: is recommended and missing\n" in done.stderr


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_file_without_events_is_not_valid(tmp_path: Path, text: str) -> None:
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.write_text(lines(good()))
    empty.write_text(text)
    done = validate(full, empty)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"{empty}: no events", "1 event: 0 errors, 0 warnings"]


def test_a_file_that_can_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "x", "No such file")):
        done = validate(path)
        assert (done.returncode, done.stdout) == (2, "")
        (sentence,) = done.stderr.splitlines()
        assert sentence.startswith(f"ocsf-nft: {path} can't be read: {why}")


def test_events_and_names_can_not_forge_output(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\n\xff\x1b[2J")
    path.write_text(lines(good(**{"x\n-:1: error: y\x1b[2J\u202e": 1})))
    done = validate(path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert done.stderr.replace("\n", "").isprintable()
    as_json = json.loads(validate("--json", path).stdout)
    assert as_json["file"] == str(tmp_path / r"a\x0a\xff\x1b[2J")
    assert as_json["path"] == r'"x\n-:1: error: y\u001b[2J\u202e"'


def test_faults_are_shown_as_they_are_found() -> None:
    """While a pipe stays open, the first fault is shown before the last event is written."""
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "ocsf_nft", "validate", "--json"],
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as command:
        os.close(reading)
        os.write(writing, lines(BAD).encode())
        assert command.stdout is not None
        assert json.loads(command.stdout.readline())["path"] == "dst_endpoint.port"
        os.close(writing)
    assert command.returncode == 1


def test_missing_extra_is_one_sentence_with_the_remedy() -> None:
    program = (
        "import sys; sys.modules['ocsf_json_schema'] = None; sys.argv[1:] = ['validate'];"
        "from ocsf_nft.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input="", capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    (sentence,) = done.stderr.splitlines()
    assert "pip install 'ocsf-nft[validate]'" in sentence


def test_events_of_convert_are_valid() -> None:
    line = (
        "[1.5] ocsf-nft:sb:egress:IN= OUT=e0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 TOS=0x00 "
        "PREC=0x00 TTL=64 ID=1 DF PROTO=UDP SPT=4000 DPT=53 LEN=28 UID=0 GID=0 \n"
    )
    made = forked.run("convert", input=line, check=True)
    done = validate(stdin=made.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "1 event: 0 errors, 0 warnings\n"


def test_compiled_schema_replaces_the_published_ones(tmp_path: Path) -> None:
    path = write_schema(tmp_path / "schema.json")
    bad = EVENT | {"device": {"ip": "10.0.0.1", "port": 70000}}
    assert validate("--schema", path, stdin=lines(EVENT)).returncode == 0
    done = validate("--schema", path, stdin=lines(EVENT, bad))
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "-:2: error: device.port: 70000 is more than 65535"


def test_wrong_schema_is_bad_usage_and_one_sentence(tmp_path: Path) -> None:
    path = write_schema(tmp_path / "schema.json", {})
    with_version = ("--schema", path, "--ocsf-version", "1.8")
    for arguments, expected in (
        (("--schema", path), "is no compiled OCSF schema"),
        (with_version, "--schema has a version of its own: leave out --ocsf-version"),
    ):
        done = validate(*arguments, stdin=lines(EVENT))
        assert (done.returncode, done.stdout) == (2, "")
        (sentence,) = done.stderr.splitlines()
        assert sentence.startswith("ocsf-nft: ")
        assert expected in sentence
