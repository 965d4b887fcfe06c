"""Conversion of kernel log text to events."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli import forked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MESSAGE = (
    "ocsf-nft:sb:egress:IN= OUT=e0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 TOS=0x00 PREC=0x00 "
    "TTL=64 ID=1 DF PROTO=UDP SPT=4000 DPT=53 LEN=28 UID=0 GID=0 "
)


#: Modules that cost a short command more time than its work, and that a conversion does not need.
SLOW_MODULES = (
    "asyncio", "email", "importlib.metadata", "logging", "multiprocessing", "pydantic", "rich",
    "ssl", "structlog", "tempfile", "traceback",
)  # fmt: skip


def convert(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return forked.run("convert", *arguments, input=stdin, env=os.environ | {"TZ": "Asia/Tokyo"})


def test_a_line_without_a_stamp_is_as_old_as_its_file(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text(MESSAGE)
    os.utime(log, ns=(0, 1_600_000_000_123_000_000))
    done = convert(str(log))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["time"] == 1_600_000_000_123
    for command in (("convert",), ("run", "--source", "replay:-")):
        with log.open() as stdin:
            piped = forked.run(*command, stdin=stdin, check=True)
        assert json.loads(piped.stdout)["time"] == 1_600_000_000_123


@pytest.mark.parametrize(
    ("boot", "time"),
    [
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14T22:13:20.25+00:00", 1_700_000_000_250),
        ("2023-11-15T07:13:20", 1_700_000_000_000),
    ],
)
def test_stamps_count_from_the_boot_that_is_named(boot: str, time: int) -> None:
    line = f"[4000000000.000000] {MESSAGE}"
    assert convert(stdin=line).stdout == ""
    done = convert("--boot", boot, stdin=line)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["time"] == time + 4_000_000_000_000


def test_only_records_of_the_given_prefix_become_events() -> None:
    stamp, packet = "[    1.500000] ", MESSAGE.removeprefix("ocsf-nft:sb:egress:")
    log = f"{stamp}{MESSAGE}\n{stamp}[UFW BLOCK] {packet}\n"
    rules = {
        prefix: [
            json.loads(line)["firewall_rule"]["name"]
            for line in convert("--prefix", prefix, stdin=log).stdout.splitlines()
        ]
        for prefix in ("ocsf-nft:", "[UFW", "UFW", "")
    }
    ours, theirs = "egress", "UFW BLOCK"
    assert rules == {"ocsf-nft:": [ours], "[UFW": [theirs], "UFW": [], "": [ours, theirs]}


def test_foreign_prefix_has_its_built_in_or_configured_meaning(
    tmp_path: Path,
) -> None:
    config = tmp_path / "ocsf-nft.toml"
    config.write_text(
        '[[prefix]]\nbegins = "MYFW"\nrule = "mine"\nsandbox = "vm-1"\nverdict = "accept"\n'
    )
    packet = MESSAGE.removeprefix("ocsf-nft:sb:egress:")
    prefixes = ("[UFW BLOCK] ", "rpfilter_DROP: ", "openshell:bypass:pod-1:", "MYFW: ", "huh ")
    log = "".join(f"[    1.500000] {prefix}{packet}\n" for prefix in prefixes)
    built_in, configured = (
        [
            (
                event["firewall_rule"]["name"],
                event["src_endpoint"].get("name"),
                event["disposition"],
            )
            for event in map(json.loads, convert(*options, stdin=log).stdout.splitlines())
        ]
        for options in ((), ("--config", str(config)))
    )
    assert built_in == [
        ("UFW BLOCK", None, "Blocked"),
        ("rpfilter_DROP", None, "Dropped"),
        ("bypass", "pod-1", "Blocked"),
        ("MYFW:", None, "Logged"),
        ("huh", None, "Logged"),
    ]
    assert configured == [*built_in[:3], ("mine", "vm-1", "Allowed"), built_in[4]]


def test_invalid_or_missing_configuration_is_one_sentence(tmp_path: Path) -> None:
    config = tmp_path / "ocsf-nft.toml"
    absent = convert("--config", str(config))
    config.write_text('[[prefix]]\nbegins = "ocsf-nft:"\nverdict = "drop"\n')
    for done in (absent, convert("--config", str(config))):
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert str(config) in done.stderr


def test_input_is_not_truncated_for_its_own_unparsed_lines(tmp_path: Path) -> None:
    log, link, other = tmp_path / "a.log", tmp_path / "link", tmp_path / "other"
    log.write_text("ocsf-nft:sb:egress:IN= torn")
    link.symlink_to(log)
    for unparsed in (log, link):
        done = convert("--rejects", str(unparsed), str(log))
        assert done.returncode == 2
        assert "--rejects" in done.stderr
        with log.open() as stdin:
            piped = forked.run("convert", "--rejects", str(unparsed), stdin=stdin)
        assert piped.returncode == 2
    assert log.read_text() == "ocsf-nft:sb:egress:IN= torn"
    other.write_text("of an earlier run\n")
    for taken in (str(other), os.devnull):
        done = convert("--rejects", taken, str(log), os.devnull)
        assert done.returncode == 0, done.stderr
    assert "of an earlier run" not in other.read_text()
    assert len(other.read_text().splitlines()) == 1


@pytest.mark.parametrize("boot", ["", "soon", "0001-01-01T00:00:00+23:59"])
def test_a_boot_that_is_no_time_is_bad_usage(boot: str) -> None:
    done = convert("--boot", boot)
    assert done.returncode == 2
    assert "--boot" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("named", "version"), [("1.1", "1.1.0"), ("1.8.0", "1.8.0")])
@pytest.mark.parametrize("form", ["jsonl", "syslog"])
def test_events_have_the_requested_version(
    judge: Callable[..., list[str]], form: str, named: str, version: str
) -> None:
    done = convert("--format", form, "--ocsf-version", named, stdin=f"{MESSAGE}\n{MESSAGE}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        event = json.loads(line[line.index("{") :])
        assert event["metadata"]["version"] == version
        assert judge(event, version) == []


def test_an_event_is_shown_as_a_line_to_read(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text(MESSAGE)
    os.utime(log, ns=(0, 1_600_000_000_123_000_000))
    assert convert("--format", "shorthand", str(log)).stdout == (
        "2020-09-13T12:26:40.123Z  LOW     sb  uid 0  UDP 203.0.113.7:53 domain  blocked  "
        "[egress]  The sandbox may connect only to its proxy: use the proxy.\n"
    )


def test_shorthand_is_in_colour_on_a_terminal(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text(MESSAGE)
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "ocsf_nft", "convert", "--format", "shorthand", str(log)],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        check=True,
        env={key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        | {"TERM": "xterm"},
    )
    shown = os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)
    assert b"\x1b[36mLOW   \x1b[0m" in shown


def test_an_event_is_a_syslog_message(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text(MESSAGE)
    os.utime(log, ns=(0, 1_600_000_000_123_000_000))
    head, _, event = convert("--format", "syslog", str(log)).stdout.partition(" - {")
    assert head == "<133>1 2020-09-13T12:26:40.123Z - ocsf-nft - 400105"
    assert json.loads("{" + event)["dst_endpoint"]["ip"] == "203.0.113.7"


def test_hostile_text_is_one_line_in_each_form() -> None:
    names = "\x1b]0;x\x07", "\u202e\u2028\x85\x9b\x7f", "\udcff\udc80", 'a"  [egress]  b'
    stamp, (_, packet) = "[    1.500000] ", MESSAGE.split("IN= OUT=e0", 1)
    log = "".join(f"{stamp}{name} IN= OUT={name.replace(' ', '_')}{packet}\n" for name in names)
    for form in ("jsonl", "shorthand", "syslog"):
        done = subprocess.run(
            [sys.executable, "-m", "ocsf_nft", "convert", "--format", form],
            input=log.encode("utf-8", "surrogateescape"),
            capture_output=True,
            check=True,
        )
        lines = done.stdout.decode().split("\n")
        assert len(lines) == len(names) + 1, done.stderr
        if form != "jsonl":
            assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("--format", "xml", "jsonl, shorthand, syslog"),
        ("--format", "", "jsonl, shorthand, syslog"),
        ("--ocsf-version", "1.2", "1.1.0, 1.3.0"),
    ],
)
def test_unknown_form_or_version_is_answered_with_the_known_ones(
    option: str, value: str, known: str
) -> None:
    done = convert(option, value)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("ocsf-nft: ")
    assert f'"{value}"' in sentence
    assert known in sentence


def test_secrets_of_a_line_are_redacted_unless_that_is_off(tmp_path: Path) -> None:
    packet = MESSAGE.removeprefix("ocsf-nft:sb:egress:")
    log = (
        f"[    1.500000] proxy token=s3cr3t-Value {packet}Authorization: Bearer s3cr3t-Value\n"
        f"[    1.500000] ocsf-nft:sb: IN= token=s3cr3t-Value\n"
    )
    config = tmp_path / "ocsf-nft.toml"
    config.write_text('[redaction]\nenabled = false\npatterns = ["agent-[0-9]+"]\n')
    rejects = tmp_path / "rejects.jsonl"
    done = convert("--rejects", str(rejects), stdin=log)
    assert done.returncode == 0, done.stderr
    event = json.loads(done.stdout)
    assert "s3cr3t" not in done.stdout + rejects.read_text() + done.stderr
    assert event["raw_data"].count("[redacted:") == 2
    assert event["raw_data_size"] == len(log.splitlines()[0])
    for options in (("--no-redact",), ("--config", str(config))):
        plain = convert("--rejects", str(rejects), *options, stdin=log).stdout
        assert json.loads(plain)["raw_data"] == log.splitlines()[0]
        assert "s3cr3t" in rejects.read_text()
    config.write_text('[redaction]\npatterns = ["agent-[0-9]+"]\n')
    mine = f"[    1.500000] agent-42 {packet}\n"
    assert "agent-42" in convert(stdin=mine).stdout
    assert "agent-42" not in convert("--config", str(config), stdin=mine).stdout


def test_lean_events_are_converted_on_request() -> None:
    full, small = (
        json.loads(convert("--detail", detail, "--ocsf-version", "1.3", stdin=MESSAGE).stdout)
        for detail in ("full", "lean")
    )
    assert "raw_data" in full
    assert "raw_data" not in small
    assert small["metadata"]["version"] == "1.3.0"
    assert small["dst_endpoint"]["ip"] == full["dst_endpoint"]["ip"]
    done = convert("--detail", "small", stdin=MESSAGE)
    assert done.returncode == 2
    assert "give full or lean" in done.stderr


def test_convert_of_one_line_imports_no_slow_modules() -> None:
    program = (
        "import sys\n"
        "from ocsf_nft.cli import main\n"
        "sys.argv = ['ocsf-nft', 'convert', '--jobs', '2']\n"
        "main()\n"
        f"print(*sorted(set({SLOW_MODULES}) & sys.modules.keys()), file=sys.stderr)\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", program), input=MESSAGE, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["class_uid"] == 4001
    assert done.stderr.splitlines() == ["1 line: 1 record, 0 others", ""]
