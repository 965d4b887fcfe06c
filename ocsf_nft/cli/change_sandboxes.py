"""Commands ``add``, ``set`` and ``release``: change the sandboxes of a running service."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from ocsf_nft.cli import options, output
from ocsf_nft.cli.documented_command import DocumentedCommand
from ocsf_nft.cli.policy_options import Policy, with_policy, without_defaults
from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

_labels_option = click.option(
    "--label",
    multiple=True,
    metavar="KEY=VALUE",
    help="A label, by which its user finds the sandbox; repeatable.",
)
_tenant_uid_option = click.option(
    "--tenant-uid",
    metavar="ID",
    help="The tenant that the sandbox belongs to: metadata.tenant_uid.",
)


@click.command("add", cls=DocumentedCommand)
@options.sandbox_name
@with_policy(options.service_netns)
@_labels_option
@_tenant_uid_option
@options.control
@options.answer_as_json
def add(  # noqa: PLR0913 - each is an option
    *,
    name: str,
    policy: Policy,
    label: tuple[str, ...],
    tenant_uid: str | None,
    control: Path,
    as_json: bool,
) -> None:
    """Add a sandbox to a running service, which fences it.

    Returns when the fence is active and its log records are read: only then start the sandbox's
    programs. The service reports each bypass attempt, and restores the fence if another process
    changes it. The sandbox stays until `ocsf-nft release`, also over a restart of the service, or
    until its namespace ends.

    If the sandbox exists, its whole policy is replaced by the given one. `ocsf-nft set` changes a
    part of it.

    Exit 1: the fence is active, but the kernel can't log refused packets. 2: the sandbox is in the
    configuration file, a value is wrong, or no service listens. 3: there is no fence.

    Needs no capability, but permission to connect to the service's socket: root or its group.

    Example: ocsf-nft add agent --netns agent --proxy 10.0.0.1:3128 --label team=search
    """
    from ocsf_nft.control.http_call import call, sandbox_target

    given = without_defaults(policy | {"netns": _absolute(policy["netns"])})
    if labels := _labels(label):
        given["labels"] = labels
    if tenant_uid is not None:
        given["tenant_uid"] = tenant_uid
    _report(call(control, "PUT", sandbox_target(name), given), as_json=as_json)


@click.command("set", cls=DocumentedCommand)
@options.sandbox_name
@options.proxies
@options.exceptions
@click.option(
    "--permissive/--enforcing",
    default=None,
    help="Report packets that would be refused and allow them, or refuse them.",
)
@click.option(
    "--strict/--no-strict",
    default=None,
    help="Let a VM reach the gateway's port, the exceptions, and nothing else; or also the "
    "internet and the host's networks.",
)
@_labels_option
@_tenant_uid_option
@click.option(
    "--unset",
    multiple=True,
    metavar="KEY",
    help="Return a key to its default, such as allow or labels; repeatable.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print the difference of the policies and change nothing."
)
@options.control
@options.answer_as_json
def change(  # noqa: PLR0913 - each is an option
    *,
    name: str,
    proxy: tuple[str, ...],
    allow: tuple[str, ...],
    permissive: bool | None,
    strict: bool | None,
    label: tuple[str, ...],
    tenant_uid: str | None,
    unset: tuple[str, ...],
    dry_run: bool,
    control: Path,
    as_json: bool,
) -> None:
    """Change the policy of a sandbox that a running service watches.

    Only the given keys change. --proxy and --allow replace the whole list. --label adds a label, or
    changes its value. To change another key, release the sandbox and add it again.

    The fence is replaced in one transaction: no packet gets out that both policies refuse, and the
    packet counts continue.

    Exit 1: the fence is active, but the kernel can't log refused packets. 2: there is no such
    sandbox, it is in the configuration file, another call has changed it meanwhile, a value is
    wrong, or no service listens. 3: the system failed.

    Needs no capability, but permission to connect to the service's socket: root or its group.

    Example: ocsf-nft set agent --allow tcp:10.0.0.7:5432 --dry-run
    """
    from ocsf_nft.control.http_call import call, sandbox_target

    if dry_run and as_json:
        raise UsageError("--dry-run and --json can't be combined: give one of them")
    changed: dict[str, Any] = {"proxy": proxy, "allow": allow, "tenant_uid": tenant_uid}
    changed = {key: value for key, value in changed.items() if value}
    if permissive is not None:
        changed["permissive"] = permissive
    if strict is not None:
        changed["strict"] = strict
    labels = _labels(label)
    if not changed and not labels and not unset:
        raise UsageError("nothing would change: give --proxy, --allow, --label or another option")
    if unset:
        _require_known(unset)
    seen = call(control, "GET", sandbox_target(name))
    before = seen["policy"]
    after = {key: value for key, value in before.items() if key not in unset} | changed
    if labels:
        after["labels"] = after.get("labels", {}) | labels
    if dry_run:
        _show_difference(name, before, after)
        return
    answer = call(control, "PUT", sandbox_target(name), after, if_match=seen["etag"])
    _report(answer, as_json=as_json)


@click.command("release", cls=DocumentedCommand)
@options.sandbox_name
@options.control
@options.answer_as_json
def release(*, name: str, control: Path, as_json: bool) -> None:
    """Release a sandbox of a running service: remove its fence.

    Shows the final packet counts. The events stay stored. Only sandboxes that were added with
    `ocsf-nft add` can be released: the others are in the configuration file.

    Exit 2: there is no such sandbox, it is in the configuration file, or no service listens. 3: the
    fence can't be removed.

    Needs no capability, but permission to connect to the service's socket: root or its group.

    Example: ocsf-nft release agent
    """
    from ocsf_nft.control.http_call import call, sandbox_target

    answer = call(control, "DELETE", sandbox_target(name))
    if as_json:
        output.write_json_of_any_size(answer)
        return
    counted = sum(each["refused"] + each["allowed"] for each in answer["counts"])
    reported = sum(each["reported"] for each in answer["counts"])
    dropped = sum(each["records"] for each in answer["dropped_records"])
    output.show(
        f"sandbox {name} is released: {counted:,} packets counted, {reported:,} reported, "
        f"{dropped:,} log records dropped"
    )


def _absolute(netns: str | None) -> str | None:
    # The service has another working directory.
    return os.path.abspath(netns) if netns is not None and "/" in netns else netns  # noqa: PTH100 - a final slash or .. stays meaningful


def _labels(given: Iterable[str]) -> dict[str, str]:
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--label {quoted(text)} is no label: write it like team=search")
        found[key] = value
    return found


def _require_known(keys: Sequence[str]) -> None:
    import difflib

    from ocsf_nft.config import SandboxConfig

    known = [key for key in SandboxConfig.model_fields if key != "name"]
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.0)
            raise UsageError(f"--unset {quoted(key)}: there is no such key: try {near[0]}")


def _show_difference(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    from ocsf_nft.ocsf.safe_text import visible
    from ocsf_nft.service.policy_changes import change_of_policy

    present, future = (options.one_sandbox(name=name, **each) for each in (before, after))
    changes = change_of_policy(present, future).changes
    for each in changes:
        output.write(f"{visible(each)}\n".encode())
    if not changes:
        output.show(f"sandbox {name}: nothing would change")


def _report(answer: Mapping[str, Any], *, as_json: bool) -> None:
    """Show the result of adding or changing a sandbox; exit with 1 if it is not active."""
    sandbox = answer["sandbox"]
    if as_json:
        output.write_json_of_any_size(answer)
    else:
        fault = "" if sandbox["fault"] is None else f": {sandbox['fault']}"
        output.show(f"sandbox {sandbox['name']} is {sandbox['state']}, {sandbox['mode']}{fault}")
        for each in answer["changes"]:
            output.show(f"  {each}")
    if sandbox["state"] != "active":
        raise SystemExit(1)
