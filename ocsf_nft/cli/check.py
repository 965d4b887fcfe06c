"""``check``."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

from typing import Annotated

import typer

from ocsf_nft.cli import output


def check(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a finding, on standard output.")
    ] = False,
) -> None:
    """Try what this host can do, and tell what to do about what it can't.

    Exit 0: a fence stands here and its records are read. 1: it stands, but can't report. 3: none
    stands. Changes nothing; what can't be tried for want of a privilege counts as missing.

    Example: ocsf-nft check
    """
    import dataclasses

    import orjson
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ocsf_nft.check import findings, verdict

    found = list(findings())
    if as_json:
        for finding in found:
            output.write(orjson.dumps(dataclasses.asdict(finding)) + b"\n")
    else:
        table = Table("", "what", "meaning", "what to do")
        styles = {"ok": "green", "degraded": "yellow", "fatal": "red"}
        for finding in found:
            table.add_row(
                Text(finding.severity, styles[finding.severity]),
                finding.name,
                Text(finding.meaning),
                Text(finding.remedy or ""),
            )
        Console(stderr=True).print(table)
    raise typer.Exit(verdict(found))
