"""``run --source replay:PATH``: text of another day and another machine."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tests.cli import forked
from tests.kernel import command


def _early(record: str) -> str:
    """Return a record with an early time after boot, which is in the past on this machine."""
    level, number, stamp_us, rest = record.split(",", 3)
    return f"{level},{number},{int(stamp_us) - 5_050_000_000},{rest}"


def test_replayed_text_gives_the_same_uids_each_time(tmp_path: Path) -> None:
    corpus = Path(__file__).parents[1] / "corpus" / "kernel_records.jsonl"
    lines = [
        _early(line)
        for case in map(orjson.loads, corpus.read_bytes().splitlines())
        for line in case["kmsg"]
    ]
    log = tmp_path / "kmsg.txt"
    log.write_text("\n".join(lines) + "\n")
    runs = [command.run("run", "--source", f"replay:{log}") for _ in range(2)]
    uids = [[event["metadata"]["uid"] for event in run.events] for run in runs]
    assert uids[0] == uids[1]
    assert not any("device" in event for event in runs[0].events)  # the text may be of another one
    assert len(set(uids[0])) == len(uids[0]) > 60


@pytest.mark.parametrize(
    ("options", "is_json", "shown"),
    [
        ((), True, ["line rejected", "ended"]),
        (("--quiet",), True, ["line rejected"]),
        (("--log-format", "text"), False, ["line rejected", "0 records, 0 events"]),
        (("--log-format", "text", "--quiet"), False, ["line rejected"]),
    ],
    ids=["default", "quiet", "text", "quiet text"],
)
def test_log_of_a_run_in_a_pipe_is_json_lines_unless_text_is_requested(
    tmp_path: Path, options: tuple[str, ...], is_json: bool, shown: list[str]
) -> None:
    log = tmp_path / "kmsg.txt"
    log.write_text("ocsf-nft:sb:egress:hello\n")
    done = forked.run(*options, "run", "--source", f"replay:{log}", check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == len(shown)
    if is_json:
        records = [orjson.loads(line) for line in lines]
        assert [record["event"] for record in records] == shown
        assert records[-1]["level"] == ("warning" if options else "info")
    else:
        assert all(words in line for words, line in zip(shown, lines, strict=True))


def test_environment_selects_the_form_of_the_log_unless_the_option_does(tmp_path: Path) -> None:
    log = tmp_path / "kmsg.txt"
    log.touch()
    command = ("run", "--source", f"replay:{log}")
    env = {"OCSF_NFT_LOG_FORMAT": "text"}
    assert forked.run(*command, env=env).stderr.startswith("0 records")
    assert forked.run("--log-format", "json", *command, env=env).stderr.startswith("{")
