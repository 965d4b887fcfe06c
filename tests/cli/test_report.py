"""Commands ``report`` and ``incident``: sources, selections, files and errors."""

from __future__ import annotations

import asyncio
import gzip
import os
import stat
import subprocess
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft.cli.report import write_file
from ocsf_nft.errors import UsageError
from ocsf_nft.state.state_db import FILE
from tests.cli import forked
from tests.delivery.stores import Store
from tests.report.day import events, uid

if TYPE_CHECKING:
    from pathlib import Path

_LINES = [orjson.dumps(each) for each in events()]
_INPUT = b"\n".join(_LINES)
_METADATA = uid("finding", "metadata")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    path.write_bytes(_INPUT)
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    async def fill() -> None:
        async with Store(tmp_path / FILE) as store:
            await store.register(["-"])
            await store.put(_LINES)

    asyncio.run(fill())
    return tmp_path


def _failed(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    return line


def test_report_is_the_same_from_a_file_a_pipe_and_a_store(
    file: Path, state: Path, tmp_path: Path
) -> None:
    pages = []
    folder = tmp_path / "pages"
    folder.mkdir()
    compressed = tmp_path / "events.jsonl.gz"
    compressed.write_bytes(gzip.compress(_INPUT))
    sources: dict[str, tuple[tuple[str | Path, ...], bytes]] = {
        "file": (("--input", file), b""),
        "pipe": (("--input", "-"), _INPUT),
        "store": (("--state-dir", state), b""),
        "compressed file": (("--input", compressed), b""),
        "compressed pipe": (("--input", "-"), compressed.read_bytes()),
    }
    for name, (options, data) in sources.items():
        target = folder / name
        done = forked.run("report", *options, "--output", target, input=data, text=False)
        assert (done.returncode, done.stdout) == (0, b"")
        assert done.stderr == f"{target}: {len(_LINES)} events, 4 findings\n".encode()
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        page = target.read_text()
        pages.append(page[: page.index("Report made")] + page[page.index("</header>") :])
    assert set(pages) == {pages[0]}
    assert pages[0].startswith("<!DOCTYPE html>")
    assert {path.name for path in folder.iterdir()} == sources.keys()  # no temporary file is left


def test_existing_file_is_replaced_only_with_force(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("mine")
    done = forked.run("report", "--input", file, "--output", target)
    assert _failed(done) == (
        f"ocsf-nft: {target} exists: give --force to replace it, or another --output"
    )
    assert target.read_text() == "mine"
    assert forked.run("report", "--input", file, "--output", target, "--force").returncode == 0
    assert target.read_text().startswith("<!DOCTYPE html>")


def test_force_replaces_no_input_and_no_special_file(file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "events.jsonl"
    mine.write_bytes(file.read_bytes())
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(mine)
    for target, fault in ((mine, "would replace an input"), (pipe, "no regular file"),
                          (link, "no regular file")):  # fmt: skip
        done = forked.run("report", "--input", mine, "--output", target, "--force")
        assert fault in _failed(done)
    assert mine.read_bytes() == file.read_bytes()
    assert pipe.is_fifo()
    assert link.is_symlink()


def test_file_that_appears_while_the_events_are_read_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("mine")
    with pytest.raises(UsageError, match="exists: give --force"):
        write_file(target, b"page", force=False)
    assert target.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


def test_file_that_cannot_be_written_is_one_sentence(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "absent" / "report.html"
    done = forked.run("report", "--input", file, "--output", target)
    assert _failed(done, 3) == (f"ocsf-nft: {target} can't be written: No such file or directory")


def test_page_is_not_written_to_a_terminal(file: Path) -> None:
    controller, terminal = os.openpty()
    done = forked.run("report", "--input", file, stdout=terminal, stderr=subprocess.PIPE)
    os.close(terminal)
    os.close(controller)
    assert done.returncode == 2
    assert "a terminal can't show a page: give --output FILE, or a pipe" in done.stderr


def test_report_of_an_incident_goes_to_standard_output(file: Path) -> None:
    done = forked.run("report", "--input", file, "--incident", _METADATA[:10])
    assert (done.returncode, done.stderr) == (0, "")
    title = f"Incident {_METADATA[:8]}: curl tried to read cloud credentials"
    assert f"<h1>{title}" in done.stdout
    assert "tun[4400]" not in done.stdout


def test_report_of_a_sandbox_and_a_time_span_has_only_their_events(file: Path) -> None:
    done = forked.run(
        "report", "--input", file, "--sandbox", "agent-7", "--since", "2026-11-24T09:15:00Z",
        "--until", "2026-11-24T09:24:00Z",
    )  # fmt: skip
    assert done.returncode == 0
    assert "<h1>Sandbox agent-7</h1>" in done.stdout
    assert "DNS tunnel" in done.stdout
    assert "169.254.169.254" not in done.stdout


def test_report_of_an_unknown_sandbox_has_a_warning(file: Path) -> None:
    warning = 'ocsf-nft: no event is about the sandbox "agent-8": check its name; the events are '
    done = forked.run("report", "--input", file, "--sandbox", "agent-8")
    assert (done.returncode, done.stderr.startswith(warning)) == (0, True)
    assert '"agent-7"' in done.stderr
    # A known sandbox without an event in the time span.
    done = forked.run("report", "--input", file, "--sandbox", "agent-7", "--until", "2001-01-01")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--incident", "x", "--since", "1h"), "--incident can't be combined with --sandbox"),
        (("--since", "yesterday"), '--since "yesterday" is no time'),
        (("--incident", "no-such"), 'no finding or correlation uid begins with "no-such"'),
        (("--incident", ""), "the ID is empty"),
        (("--state-dir", "/"), "--input can't be combined with --control, --state-dir or --config"),
        (("--input", "/no/such"), "/no/such can't be read: No such file or directory"),
    ],
)
def test_wrong_request_is_one_sentence(
    file: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in _failed(forked.run("report", "--input", file, *arguments))


def test_input_without_an_event_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_text("no event\n")
    assert "the input has no OCSF event: name a file" in _failed(
        forked.run("report", "--input", path)
    )


def test_damaged_compressed_input_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl.gz"
    file.write_bytes(gzip.compress(_INPUT)[:-9])
    sentence = _failed(forked.run("incident", "--input", file), code=3)
    assert sentence.startswith(f"ocsf-nft: {file} can't be decompressed after ")


def test_incident_without_an_id_lists_open_findings_the_latest_update_first(state: Path) -> None:
    done = forked.run("incident", "--state-dir", state)
    assert (done.returncode, done.stderr) == (0, "")
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["UPDATED", "SEVERITY", "SANDBOX", "COUNT", "TITLE", "ID"]
    assert [row.split()[1] for row in rows] == ["09:38:00", "09:25:06", "09:21:00", "09:14:00"]
    as_json = forked.run("incident", "--state-dir", state, "--json")
    found = [orjson.loads(line) for line in as_json.stdout.splitlines()]
    assert [each["uid"] for each in found] == [row.split()[-1] for row in rows]


def test_incident_shows_the_processes_and_what_to_do(file: Path) -> None:
    done = forked.run("incident", _METADATA[:6], "--input", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "└─ curl[4242]  /usr/bin/curl\n" in done.stdout
    assert "  Do        1. Rotate nothing: no packet left." in done.stdout
    assert "\x1b" not in done.stdout
    as_json = forked.run("incident", _METADATA[:6], "--input", file, "--json")
    found = orjson.loads(as_json.stdout)
    assert (found["totals"]["blocked"], found["findings"][0]["uid"]) == (18, _METADATA)


def test_incident_without_an_open_finding_shows_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(_LINES[0])
    done = forked.run("incident", "--input", path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no finding is open\n")
