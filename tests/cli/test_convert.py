"""Kernel log text on one side, events on the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

MESSAGE = (
    "ocsf-nft:sb:egress:IN= OUT=e0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 TOS=0x00 PREC=0x00 "
    "TTL=64 ID=1 DF PROTO=UDP SPT=4000 DPT=53 LEN=28 UID=0 GID=0 "
)


def convert(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ocsf_nft", "convert", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TZ": "Asia/Tokyo"},
    )


def test_a_line_without_a_stamp_is_as_old_as_its_file(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text(MESSAGE)
    os.utime(log, ns=(0, 1_600_000_000_123_000_000))
    done = convert(str(log))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["time"] == 1_600_000_000_123
    for command in (("convert",), ("run", "--source", "replay:-")):
        with log.open() as stdin:
            piped = subprocess.run(
                [sys.executable, "-m", "ocsf_nft", *command],
                stdin=stdin,
                capture_output=True,
                check=True,
            )
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


def test_of_two_prefixes_only_the_records_of_the_one_that_is_named_become_events() -> None:
    stamp, packet = "[    1.500000] ", MESSAGE.removeprefix("ocsf-nft:sb:egress:")
    log = f"{stamp}{MESSAGE}\n{stamp}[UFW BLOCK] {packet}\n"
    rules = {
        prefix: [
            json.loads(line)["firewall_rule"]["name"]
            for line in convert("--prefix", prefix, stdin=log).stdout.splitlines()
        ]
        for prefix in ("ocsf-nft:", "[UFW", "UFW", "")
    }
    ours, theirs = "egress", "[UFW BLOCK]"
    assert rules == {"ocsf-nft:": [ours], "[UFW": [theirs], "UFW": [], "": [ours, theirs]}


def test_an_input_is_not_emptied_to_take_its_own_rejects(tmp_path: Path) -> None:
    log, link, other = tmp_path / "a.log", tmp_path / "link", tmp_path / "other"
    log.write_text("ocsf-nft:sb:egress:IN= torn")
    link.symlink_to(log)
    for rejects in (log, link):
        done = convert("--rejects", str(rejects), str(log))
        assert done.returncode == 2
        assert "--rejects" in done.stderr
        with log.open() as stdin:
            piped = subprocess.run(
                [sys.executable, "-m", "ocsf_nft", "convert", "--rejects", str(rejects)],
                stdin=stdin,
                capture_output=True,
                check=False,
            )
        assert piped.returncode == 2
    assert log.read_text() == "ocsf-nft:sb:egress:IN= torn"
    assert convert("--rejects", str(other), str(log)).returncode == 0
    assert len(other.read_text().splitlines()) == 1


@pytest.mark.parametrize("boot", ["", "soon", "0001-01-01T00:00:00+23:59"])
def test_a_boot_that_is_no_time_is_bad_usage(boot: str) -> None:
    done = convert("--boot", boot)
    assert done.returncode == 2
    assert "--boot" in done.stderr
    assert "Traceback" not in done.stderr
