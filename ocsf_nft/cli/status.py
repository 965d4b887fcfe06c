"""``status``."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ocsf_nft.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.service.status import Status


def status(
    sandbox: Annotated[
        str | None,
        typer.Option("--sandbox", help="One sandbox; default: all on record.", metavar="NAME"),
    ] = None,
    state_dir: options.StateDir = options.DEFAULT_STATE_DIR,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a rule, on standard output.")
    ] = False,
    as_metrics: Annotated[
        bool,
        typer.Option("--metrics", help="In Prometheus' text format, on standard output."),
    ] = False,
) -> None:
    """Show that every refused packet is accounted for, whether or not a run watches.

    refused = reported + in flight, for each rule: what the kernel counted is told in events, or
    waits in a counter for the next one. Of what is reported, "overflowed" was told without saying
    which flow it was of. "Lost" are log records that nobody has read; their packets are counted.

    Exit 0: the account closes. 1: it doesn't. 2: no fence is on record, or it doesn't stand.

    Needs CAP_NET_ADMIN over the namespaces; CAP_SYS_ADMIN to enter another one.

    Example: ocsf-nft status --sandbox agent
    """
    from ocsf_nft.errors import UsageError
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.service.status import statuses

    if as_json and as_metrics:
        raise UsageError("--json and --metrics are two forms of the same: give one")
    if sandbox is not None:
        options.one_sandbox(name=sandbox)
    found = tuple(statuses(StateDirectory(state_dir), sandbox))
    if as_metrics:
        from ocsf_nft.metrics import exposition

        output.write(exposition(found))
    elif as_json:
        _write_json(found)
    else:
        _show(found)
    balances = [balance for each in found for balance in each.balances]
    if not all(each.balances for each in found):
        raise typer.Exit(2)
    if any(balance.imbalance for balance in balances):
        raise typer.Exit(1)


def _write_json(found: Sequence[Status]) -> None:
    import dataclasses

    import orjson

    for status in found:
        for balance in status.balances:
            line = dataclasses.asdict(balance) | {
                "imbalance": balance.imbalance,
                "is_watched": status.is_watched,
            }
            output.write(orjson.dumps(line) + b"\n")


def _show(found: Sequence[Status]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("sandbox", "rule")
    for name in ("refused", "reported", "overflowed", "in flight", "lost", "imbalance"):
        table.add_column(name, justify="right")
    for status in found:
        for balance in status.balances:
            style = "red" if balance.imbalance else "green"
            table.add_row(
                balance.sandbox,
                balance.rule,
                *(
                    f"{number:,}"
                    for number in (
                        balance.refused,
                        balance.reported,
                        balance.overflowed,
                        balance.in_flight,
                        balance.lost,
                    )
                ),
                Text(f"{balance.imbalance:,}", style),
            )
    Console(stderr=True).print(table)
    for status in found:
        if not status.balances:
            output.say(f"sandbox {status.sandbox} has no fence: install it again")
        elif not status.is_watched:
            output.say(f"sandbox {status.sandbox}: no run watches it now, `ocsf-nft run` does")
