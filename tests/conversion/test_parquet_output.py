"""Tests that a conversion writes Parquet files with each event once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pyarrow.parquet as pq
import pytest

from ocsf_nft.conversion import parallel, parquet_output
from tests.cli import forked
from tests.sources.replaying import MESSAGE

if TYPE_CHECKING:
    from pathlib import Path

_LINES: Final = 5_000


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a log file of several blocks, whose events make several files."""
    monkeypatch.setattr(parallel, "_BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(parquet_output, "_BATCH_BYTES", 3 << 20)
    path = tmp_path / "log"
    stamps = (f"Nov {1 + each % 3:2d} 12:00:{each % 60:02d} h kernel: " for each in range(_LINES))
    path.write_text("".join(f"{stamp}{MESSAGE}\n" for stamp in stamps))
    return path


def _uids(folder: Path) -> list[str]:
    metadata = (pq.read_table(path, columns=["metadata"]) for path in folder.rglob("*.parquet"))
    return sorted(row["metadata"]["uid"] for table in metadata for row in table.to_pylist())


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_files_have_each_event_once(tmp_path: Path, log: Path, jobs: str) -> None:
    folder = tmp_path / "lake"
    done = forked.run("convert", "--format", "parquet", "--output", folder, "--jobs", jobs, log)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    events = forked.run("convert", log).stdout.splitlines()
    assert _uids(folder) == sorted(json.loads(each)["metadata"]["uid"] for each in events)
    assert len(events) == _LINES
    days = {path.parent.name for path in folder.rglob("*.parquet")}
    assert days == {"eventDay=20261101", "eventDay=20261102", "eventDay=20261103"}
    assert len(list(folder.rglob("*.parquet"))) > 6
    assert not list(folder.rglob("*.part"))


def test_region_and_version_are_in_the_paths(tmp_path: Path, log: Path) -> None:
    folder = tmp_path / "lake"
    options = ("--region", "eu-central-1", "--ocsf-version", "1.1")
    forked.run("convert", "--format", "parquet", "--output", folder, *options, log, check=True)
    folder = folder / "ext/ocsf-nft-4001/1.1.0/region=eu-central-1/accountId=external"
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (
            ("--format", "parquet"),
            2,
            "--format parquet writes files: give their directory by --output",
        ),
        (("--output", "x"), 2, "--output is only for --format parquet: redirect standard output"),
        (
            ("--format", "parquet", "--output", "x", "--region", "../y"),
            2,
            '"../y" is no region: give one such as eu-central-1',
        ),
        (
            ("--format", "parquet", "--output", "x", "--detail", "lean"),
            2,
            "--format parquet has all columns of a class: leave --detail out",
        ),
        (
            ("--format", "parquet", "--output", "full"),
            2,
            "full has files: give a new or an empty directory to --output",
        ),
        (("--format", "parquet", "--output", "log"), 3, "log can't be used: File exists"),
        (
            ("--format", "parquet", "--output", "/proc/x"),
            3,
            "/proc/x can't be used: No such file or ",
        ),
    ],
)
def test_bad_option_is_reported(
    log: Path, options: tuple[str, ...], code: int, sentence: str
) -> None:
    (log.parent / "full").mkdir()
    (log.parent / "full/file").touch()
    done = forked.run("convert", *options, log, cwd=log.parent)
    assert done.returncode == code
    assert done.stderr.startswith(f"ocsf-nft: {sentence}")
    assert not (log.parent / "x").exists()


def test_missing_library_is_reported(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = forked.run("convert", "--format", "parquet", "--output", log.parent / "x", log)
    assert (done.returncode, done.stderr) == (
        3,
        "ocsf-nft: --format parquet needs pyarrow: install 'ocsf-nft[parquet]'\n",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_full_disk_is_reported(tmp_path: Path, log: Path, jobs: str) -> None:
    folder = tmp_path / "lake"
    folder.mkdir()
    script = (
        f"mount -t tmpfs -o size=100k none {folder} && exec {sys.executable} -m ocsf_nft convert "
    )
    arguments = ("--format", "parquet", "--output", folder, "--jobs", jobs, log)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script + " ".join(map(str, arguments))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "can't be written: No space left on device" in done.stderr
