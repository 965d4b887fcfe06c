"""``run --source replay:PATH``: text of another day and another machine."""

from __future__ import annotations

from pathlib import Path

import orjson

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
