"""Commands ``list`` and ``show``: the sandboxes of a running service."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from ocsf_nft.cli import options, output
from ocsf_nft.cli.documented_command import DocumentedCommand

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_HEADINGS: Final = ("sandbox", "state", "mode", "from", "added", "namespace", "labels")
_COUNTS: Final = (
    "refused", "allowed", "reported", "aggregated", "pending", "dropped", "counter_mismatch",
)  # fmt: skip


@click.command("list")
@options.control
@click.option(
    "--json", "as_json", is_flag=True, help="Write one JSON object a line to standard output."
)
@click.option(
    "--unfenced",
    is_flag=True,
    help="List the host's network namespaces that no fence encloses instead.",
)
@options.state_dir
@options.state_config
def list_all(
    *, control: Path, as_json: bool, unfenced: bool, state_dir: Path | None, config: Path | None
) -> None:
    """List the sandboxes of a running service.

    States: "active", "degraded" (refused packets can't be logged), "altered" (another process
    changed the fence), "absent" (the fence was removed), "waiting" (its namespace does not exist
    yet) and "failed". "From" is the configuration file, or "api" (`ocsf-nft add`).

    --unfenced finds network namespaces on its own, without a service: those of `ip netns` and of
    processes, with the processes and containers in them. "Unrecorded" is a fence that the state
    directory does not know: a process in the namespace may have made it. "Unknown" are namespaces
    that can't be checked. The host's own namespace is not listed.

    Exit 2: no service listens.

    Needs no capability, but permission to connect to the service's socket: root or its group.
    --unfenced needs CAP_NET_ADMIN and CAP_SYS_ADMIN over the namespaces, and CAP_SYS_PTRACE.

    Example: ocsf-nft list --json | jq 'select(.policy.labels.team == "search")'
    """
    from ocsf_nft.cli.table import write_table
    from ocsf_nft.control.http_call import call
    from ocsf_nft.errors import UsageError

    if unfenced:
        from ocsf_nft.cli.list_unfenced import list_unfenced

        list_unfenced(options.state_directory(state_dir, config), as_json=as_json)
        return
    if state_dir is not None or config is not None:
        raise UsageError("--state-dir and --config are for --unfenced: give --unfenced as well")
    found = call(control, "GET", "/v1/sandboxes")["sandboxes"]
    if as_json:
        for each in found:
            output.write_json_of_any_size(each)
    elif found:
        write_table(_HEADINGS, [_row(each) for each in found])
    else:
        output.show("the service has no sandbox: `ocsf-nft add` adds one")


@click.command("show", cls=DocumentedCommand)
@options.sandbox_name
@options.control
@options.answer_as_json
def show(*, name: str, control: Path, as_json: bool) -> None:
    """Show a sandbox: its state, its policy and its packet counts.

    `ocsf-nft status --help` explains the counts.

    Exit 1: the fence is not active. 2: there is no such sandbox, or no service listens.

    Needs no capability, but permission to connect to the service's socket: root or its group.

    Example: ocsf-nft show agent
    """
    from ocsf_nft.cli.table import write_table
    from ocsf_nft.control.http_call import call, sandbox_target
    from ocsf_nft.ocsf.safe_text import visible

    found = call(control, "GET", sandbox_target(name))
    if as_json:
        output.write_json_of_any_size(found)
    else:
        output.write("".join(f"{visible(line)}\n" for line in _lines(found)).encode())
        if found["counts"]:
            write_table(
                ("rule", *_COUNTS[:-1], "mismatch"), [_counts(each) for each in found["counts"]]
            )
    if found["state"] != "active":
        raise SystemExit(1)


def _row(view: Mapping[str, Any]) -> list[str]:
    policy = view["policy"]
    labels = " ".join(f"{key}={value}" for key, value in policy.get("labels", {}).items())
    return [
        view["name"], view["state"], view["mode"], view["origin"], view["since"],
        _namespace(policy), labels,
    ]  # fmt: skip


def _counts(row: Mapping[str, Any]) -> list[str]:
    return [row["rule"], *(f"{row[each]:,}" for each in _COUNTS)]


def _namespace(policy: Mapping[str, Any]) -> str:
    if "netns" in policy:
        return str(policy["netns"])
    return f"of process {policy['pid']}" if "pid" in policy else "of the service"


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"sandbox {found['name']}: {found['state']}, {found['mode']}, added {found['since']} "
        f"(from: {found['origin']})"
    )
    if found["fault"] is not None:
        yield f"  fault: {found['fault']}"
    if found["guard"] is not None:
        yield f"  guard on the host: {found['guard']}"
    for key, value in found["policy"].items():
        yield f"  {key}: {_text(value)}"
    for each in found["dropped_records"]:
        yield f"  dropped log records of {each['source']}: {each['records']} in {each['gaps']} gaps"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_text(each)}" for key, each in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)
