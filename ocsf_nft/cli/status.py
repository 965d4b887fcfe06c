"""Command ``status``: compare the number of refused packets with the number of reported ones."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from ocsf_nft.cli import options, output
from ocsf_nft.errors import AbsentError, OcsfNftError, UsageError
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ocsf_nft.cli.service_access import Access
    from ocsf_nft.flows.sandbox_account import Balance
    from ocsf_nft.service.status import Status

_HEADINGS: Final = {
    mode: ("rule", counted, "reported", "aggregated", "pending", "dropped", "mismatch")
    for mode, counted in (("enforcing", "refused"), ("permissive", "allowed"))
}


@click.command("status")
@click.option("--sandbox", metavar="NAME", help="One sandbox; default: all recorded ones.")
@options.service_or_files
@options.state_dir
@options.source_config
@click.option(
    "--json", "as_json", is_flag=True, help="Write one JSON object a rule to standard output."
)
@click.option(
    "--metrics",
    "as_metrics",
    is_flag=True,
    help="Write Prometheus' text format to standard output.",
)
def status(  # noqa: PLR0913 - each is an option
    *,
    sandbox: str | None,
    control: Path | None,
    state_dir: Path | None,
    config: Path | None,
    as_json: bool,
    as_metrics: bool,
) -> None:
    """Show whether every refused packet is accounted for.

    It works also while no `ocsf-nft run` watches the sandbox. If a service with a control socket
    runs, it reads the counters of its sandboxes for this command. For each rule, the kernel counts
    refused packets twice: in total, and by flow. The total must be the sum of reported and pending
    packets. If a fence is permissive, its rules allow packets in place of refusing them. Then the
    total of "allowed" packets must be this sum.

    "Reported" packets are in an event. "Pending" packets are only in the kernel's counters, and a
    later event will report them. "Aggregated" packets are in an event that does not name their
    flow. "Dropped" is the number of log records that no process has read. The kernel has
    counted the packets of these records too, so events report them.

    Exit 0: the counts match. 1: they don't. For example, another process writes log records that
    imitate the fence's, and events report these too. 2: no fence is on record, or a fence lacks
    counters. 3: the counters can't be read.

    Without a service, it needs CAP_NET_ADMIN over the sandboxes' namespaces, and CAP_SYS_ADMIN to
    enter one. With a service, it needs permission to connect to its socket: root or its group.

    Example: ocsf-nft status --sandbox agent
    """
    from ocsf_nft.cli.service_access import access

    if as_json and as_metrics:
        raise UsageError("--json and --metrics can't be combined: give one of them")
    if sandbox is not None:
        options.one_sandbox(name=sandbox)
    source = access(control, state_dir, config)
    found, faults = _statuses(source, sandbox)
    if as_metrics:
        from ocsf_nft.metrics import exposition

        output.write(exposition(found))
    elif as_json:
        _write_json(found)
    else:
        _show(found)
    for each in found:
        _explain(each)
    for fault in faults[1:]:
        output.show(f"ocsf-nft: {fault}")
    if faults:
        raise faults[0]
    if any(each.absent for each in found):
        raise SystemExit(2)
    if any(balance.counter_mismatch for each in found for balance in each.balances):
        raise SystemExit(1)


def _statuses(
    source: Access, sandbox: str | None
) -> tuple[Sequence[Status], Sequence[OcsfNftError]]:
    """Return the status of one sandbox, or of all, and an error for each unreadable one."""
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.service.status import statuses

    watched: dict[str, Status] = {}
    if source.service is not None:
        from ocsf_nft.cli.service_status import watched_by

        watched = watched_by(source.service.control, sandbox)
        if sandbox in watched:
            return tuple(watched.values()), ()
    directory = source.files.state_dir if source.service is None else source.service.state_dir
    # Also the fences that this service does not watch.
    try:
        with source.reading_files():
            found, faults = statuses(StateDirectory(directory), sandbox, known=watched)
    except (OcsfNftError, OSError) as error:
        if source.service is None or (sandbox is None and isinstance(error, AbsentError)):
            raise
        if not watched:
            name = "sandbox" if sandbox is None else f"sandbox {sandbox}"
            raise AbsentError(
                f"the service at {source.service.control} watches no {name}: see `ocsf-nft list`"
            ) from error
        found, faults = (), ()
    return sorted((*watched.values(), *found), key=lambda each: each.sandbox), faults


def _write_json(found: Sequence[Status]) -> None:
    for status in found:
        for row in status.rows():
            output.write_json_of_any_size(row)


def _show(found: Sequence[Status]) -> None:
    # Without a library, whose tables truncate names and numbers in a narrow terminal.
    rows = [_row(balance) for status in found for balance in status.balances]
    heads = _HEADINGS.values()
    widths = [max(map(len, column)) for column in zip(*heads, *rows, strict=True)]
    for status in found:
        watched = "a run watches it" if status.is_watched else "no run watches it now"
        permissive = "; its fence is permissive and refuses nothing"
        output.show(
            f"sandbox {status.sandbox}: {watched}"
            f"{permissive if status.mode == 'permissive' else ''}"
        )
        for mode, headings in _HEADINGS.items():
            balances = [balance for balance in status.balances if balance.mode == mode]
            if balances:
                output.show(_line(headings, widths))
            for balance in balances:
                output.show(_line(_row(balance), widths))


def _row(balance: Balance) -> tuple[str, ...]:
    numbers = (
        balance.refused + balance.allowed,
        balance.reported,
        balance.aggregated,
        balance.pending,
        balance.dropped,
        balance.counter_mismatch,
    )
    return balance.rule, *(f"{number:,}" for number in numbers)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    rule, *numbers = (
        cell.rjust(width) if index else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(("", rule, *numbers))


def _explain(status: Status) -> None:
    """Print each fault in the status of a sandbox, with its remedy."""
    name = status.sandbox
    if status.absent:
        output.show(
            f"sandbox {name}: the fence has no counters for "
            f"{', '.join(rule.partition(':')[0] for rule in status.absent)}, "
            "so it is removed, changed or of an older version: run `ocsf-nft verify`, then "
            "install it again"
        )
    if status.guard_note:
        output.show(f"sandbox {name}: {status.guard_note}")
    if status.verdict == "differs" and not status.absent:
        output.show(
            f"sandbox {name}: the fence is not as it was installed: `ocsf-nft verify` shows the "
            "difference"
        )
    for change in status.surroundings:
        output.show(
            f"sandbox {name}: its fence is weaker than at the installation: {visible(change)}; "
            "`ocsf-nft verify` shows all changes"
        )
    for balance in status.balances:
        if balance.counter_mismatch:
            missing = balance.counter_mismatch
            what = "are missing" if missing > 0 else "too many were reported"
            output.show(
                f"sandbox {name}, rule {balance.rule}: {abs(missing):,} packets {what}; if the "
                "number stays the same, another process counts or logs in the fence's name"
            )
