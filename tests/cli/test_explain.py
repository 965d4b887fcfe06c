"""A line, field by field."""

from __future__ import annotations

import json
import os
import subprocess
import sys


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
    assert (shown["prefix"], shown["out_interface"]) == (repr(prefix), "'[b]e0'")
    assert json.loads(done.stdout)["src_endpoint"]["interface_name"] == "[b]e0"


def _cells(row: str) -> tuple[str, str]:
    _, field, value, _ = row.split("│")
    return field.strip(), value.strip()
