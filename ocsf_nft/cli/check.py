"""Command ``check``: list what prevents a fence here, or drops traffic that a fence accepts."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from ocsf_nft.cli import options, output
from ocsf_nft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ocsf_nft.check import CheckScope, Finding
    from ocsf_nft.netns import Namespace

#: Usual names of the TAP devices of VMs.
_DEVICES: Final = "vmtap-*"
_STYLES: Final = {
    "ok": "green",
    "info": "cyan",
    "degraded": "yellow",
    "blocked": "red",
    "fatal": "bold red",
}


@click.command("check")
@click.option(
    "--json", "as_json", is_flag=True, help="Write one JSON object a finding to standard output."
)
@options.netns
@options.pid
@click.option(
    "--device",
    metavar="DEV",
    help="Check the rules for a VM on this TAP device, or on those of a pattern. "
    f"Default: {_DEVICES}, if no --proxy is given.",
)
@click.option(
    "--subnet",
    "subnets",
    multiple=True,
    metavar="CIDR",
    help="The gateway's address in the VM's subnet; repeatable, IPv4 and IPv6.",
)
@click.option(
    "--gateway-port",
    type=int,
    default=3128,
    metavar="PORT",
    help="The host's port that the VM uses.",
)
@click.option(
    "--strict", is_flag=True, help="Check the rules for a VM that reaches the gateway's port alone."
)
@click.option(
    "--proxy",
    "proxies",
    multiple=True,
    metavar="ADDR:PORT",
    help="Check the rules for a sandbox with this proxy; repeatable.",
)
@click.option(
    "--remove-leftovers",
    is_flag=True,
    help="Only remove the reported leftovers of an older iptables set-up.",
)
def check(  # noqa: PLR0913 - each is an option
    *,
    as_json: bool,
    netns: str | None,
    pid: int | None,
    device: str | None,
    subnets: tuple[str, ...],
    gateway_port: int,
    strict: bool,
    proxies: tuple[str, ...],
    remove_leftovers: bool,
) -> None:
    """Check whether a fence works here, and what would block it.

    Exit 3: no fence works here. Exit 1: a fence works, but its log records of blocked packets can't
    be read. Exit 1 also: a rule or a setting outside the fence may drop traffic that the fence
    accepts. Exit 0: a fence works without these problems.

    Changes nothing, unless --remove-leftovers is given. A feature counts as missing if the current
    user lacks the permission to test it.

    Example: ocsf-nft check --device vmtap-1 --subnet 172.16.0.1/30 --gateway-port 3128
    """
    from ocsf_nft.check import exit_code, findings

    scope = _scope(
        _namespace(netns, pid),
        device,
        subnets,
        port=gateway_port,
        is_strict=strict,
        proxies=proxies,
    )
    if remove_leftovers:
        raise SystemExit(_remove(scope, as_json=as_json))
    found = []
    for finding in findings(scope):
        found.append(finding)
        if as_json:
            output.write_json(finding)
    if not as_json:
        _show(found)
    raise SystemExit(exit_code(found))


def _namespace(netns: str | None, pid: int | None) -> Namespace:
    from ocsf_nft.netns import Namespace, named, of_process

    if netns is not None and pid is not None:
        raise UsageError("--netns and --pid both name the namespace: give one of them")
    if pid is not None:
        return of_process(pid)
    return Namespace() if netns is None else named(netns)


def _scope(  # noqa: PLR0913 - each is an option
    namespace: Namespace,
    device: str | None,
    subnets: Sequence[str],
    *,
    port: int,
    is_strict: bool,
    proxies: Sequence[str],
) -> CheckScope:
    from ocsf_nft import check
    from ocsf_nft.fence import values

    if not 1 <= port <= 65535:
        raise UsageError(f"port {port} is out of range: use 1 to 65535")
    if device is None and (subnets or not proxies):
        device = _DEVICES
    if device is not None:
        values.device_name(device.removesuffix("*"))
    return check.check_scope(
        namespace,
        device=device,
        subnets=tuple(map(values.subnet, subnets)),
        port=port,
        is_strict=is_strict,
        proxies=tuple(map(values.endpoint, proxies)),
    )


def _show(found: Iterable[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ocsf_nft.ocsf.safe_text import visible

    console = Console(stderr=True)
    table = Table("", "what")
    for heading in ("meaning", "what to do"):
        table.add_column(heading, overflow="fold")  # the end of a sysctl's name matters
    commands: list[str] = []
    for finding in found:
        remedy = finding.remedy or ""
        if finding.commands:
            remedy += " (commands below)"
            commands += [each for each in finding.commands if each not in commands]
        table.add_row(
            Text(finding.severity, _STYLES[finding.severity]),
            finding.name,
            Text(visible(finding.meaning)),
            Text(visible(remedy.strip())),
        )
    console.print(table)
    # Unchanged, and not in a table, so that they can be copied.
    for command in commands:
        output.show(f"    {command}")


def _remove(scope: CheckScope, *, as_json: bool) -> int:
    from ocsf_nft import check

    code, is_any = 0, False
    for leftover, reason in check.remove_leftovers(scope):
        is_any = True
        if reason is not None:
            code = 1
        if as_json:
            is_removed = reason is None
            output.write_json(
                {"leftover": leftover.text, "is_removed": is_removed, "reason": reason}
            )
        else:
            outcome = "removed" if reason is None else f"not removed ({reason})"
            output.show(f"{outcome}: {leftover.text}")
    if not is_any and not as_json:
        output.show("no leftover was found")
    return code
