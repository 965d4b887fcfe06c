"""Commands ``install``, ``verify`` and ``remove``: manage the fence of a sandbox."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import shlex
from functools import partial
from typing import TYPE_CHECKING

import click

from ocsf_nft.cli import options, output
from ocsf_nft.cli.policy_options import Policy, with_policy
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.ocsf.event_base import Event


@click.command("install")
@options.sandbox
@with_policy()
@options.state_dir
@options.state_config
@click.option("--dry-run", is_flag=True, help="Print the ruleset and change nothing.")
@options.event_as_json
def install(  # noqa: PLR0913 - each is an option
    *,
    sandbox: str,
    policy: Policy,
    state_dir: Path | None,
    config: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fence a sandbox, or replace its fence, in one transaction.

    A permissive fence refuses nothing, and reports the packets that it would refuse. With
    --exclusive, an `ocsf-nft run` that watches the fence owns the fence's tables. Until that run
    ends, no other process can change the tables, not even `remove` or `nft flush ruleset`. This
    needs Linux 6.9 or later.

    Without --strict, the fence of a VM lets it reach the internet and the host's networks, also
    without the proxy. The fence in the guest is the boundary then. With --strict, the VM reaches
    the gateway's port, the exceptions, and nothing else.

    The present routes decide which interfaces lead to the proxies, also if the sandbox has a fence
    already. Shows what was installed, and what to do next. Exit 1: the fence is active, but the
    kernel can't log refused packets.

    Needs CAP_NET_ADMIN over the fence's network namespace, and CAP_SYS_ADMIN to enter it from
    another namespace.

    Example: ocsf-nft install --sandbox agent --netns agent --proxy 10.0.0.1:3128
    """
    from ocsf_nft.errors import UsageError
    from ocsf_nft.fence import installer
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.netns import Namespace
    from ocsf_nft.ocsf.context import this_host
    from ocsf_nft.service import fences

    if dry_run and as_json:
        raise UsageError("--dry-run and --json can't be combined: give one of them")
    requested = options.one_sandbox(name=sandbox, **policy, install=True)
    spec = requested.spec()  # without host names: nothing would follow their addresses
    if dry_run:
        log_transport = fences.requested_transport(requested) or "nflog"
        plan = installer.plan(spec, requested.namespace or Namespace(), log_transport)
        output.write(plan.encode())
        return
    directory = options.state_directory(state_dir, config)
    fence = fences.activate(requested, StateDirectory(directory), keeps_uplinks=False)
    if as_json:
        _print(fences.first_event(fence, this_host()))
    _show_blocking_rules(fence.installed)
    if fence.reason is not None:
        refuses = " and permissive, so it refuses nothing" if requested.permissive else ""
        output.show(f"ocsf-nft: the fence is active{refuses}, but does not log: {fence.reason}")
        raise SystemExit(1)
    if as_json:
        output.show(_sentence(fence.installed))
        return
    # The next commands may run without this file and this environment.
    is_default = directory == options.DEFAULT_STATE_DIR
    named = [] if is_default else ["--state-dir", str(directory)]
    output.show("\n".join(_summary(fence.installed, named)))


def _sentence(installed: InstalledFence) -> str:
    sandbox, transport = installed.spec.sandbox, installed.transport
    record = "counted, and not logged" if transport == "none" else f"logged to {transport}"
    if installed.spec.is_permissive:
        return (
            f"sandbox {sandbox} has a permissive fence: it refuses nothing; the packets that it "
            f"would refuse are {record}"
        )
    return f"sandbox {sandbox} is fenced; refused packets are {record}"


def _summary(installed: InstalledFence, options: Sequence[str]) -> Iterator[str]:
    """Yield lines for people about a fence, and commands to run next with the ``options``."""
    from ocsf_nft.fence import pinned_survey
    from ocsf_nft.service.fence_facts import guard_text

    yield _sentence(installed)
    spec = installed.spec
    yield f"  namespace: {visible(str(installed.namespace))}"
    yield f"  tables: {', '.join(map(visible, installed.listings))}"
    if guard := guard_text(installed):
        yield f"  guard on the host: {visible(guard)}"
    if spec.tap is not None:
        yield f"  VM behind: {spec.tap.device}"
        if spec.tap.is_strict:
            yield "  strict: the VM reaches the proxy, the exceptions, and nothing else"
        else:
            yield (
                "  not strict: the VM also reaches the internet and the host's networks, without "
                "the proxy; --strict closes them"
            )
    if spec.proxies:
        yield f"  proxy: {', '.join(map(str, spec.proxies))}"
    if uplinks := pinned_survey.uplinks_text(installed):
        yield f"  uplinks: {visible(uplinks)}"
    if spec.proxy_uids:
        yield f"  users of the proxy: {', '.join(map(str, spec.proxy_uids))}"
    if spec.exceptions:
        yield f"  also allowed: {', '.join(map(str, spec.exceptions))}"
    named = shlex.join(["--sandbox", spec.sandbox, *options])
    packet = "packet that it would refuse" if spec.is_permissive else "refused packet"
    yield f"  next: ocsf-nft run {named}     reports each {packet}"
    yield f"        ocsf-nft remove {named}  removes the fence"


@click.command("verify")
@options.sandbox
@options.recorded_netns
@options.pid
@options.device
@options.state_dir
@options.state_config
def verify(  # noqa: PLR0913 - each is an option
    *,
    sandbox: str,
    netns: str | None,
    pid: int | None,
    device: str | None,
    state_dir: Path | None,
    config: Path | None,
) -> None:
    """Compare a sandbox's fence with what was installed.

    Exit 0: the fence is as installed. Exit 1: the fence differs, or other settings of its network
    namespace changed and weaken it; each difference is shown. Exit 2: there is no fence.

    Needs CAP_NET_ADMIN over the fence's network namespace, and CAP_SYS_ADMIN to enter it from
    another namespace.

    Example: ocsf-nft verify --sandbox agent
    """
    from ocsf_nft.fence import pinned_survey, verification
    from ocsf_nft.fence.state import StateDirectory

    requested = options.one_sandbox(name=sandbox, netns=netns, pid=pid, device=device)
    state = StateDirectory(options.state_directory(state_dir, config))
    found = verification.verify(requested.name, state, requested.namespace, requested.device)
    output.show(f"the fence of sandbox {sandbox}: {found.verdict}")
    if found.difference:
        output.show(found.difference)
    elif found.installed is not None and (uplinks := pinned_survey.uplinks_text(found.installed)):
        output.show(f"uplinks: {visible(uplinks)}")
    is_weaker = found.installed is not None and _show_surroundings(found.installed, state)
    code = {"as installed": 0, "differs": 1, "absent": 2}[found.verdict]
    raise SystemExit(code or int(is_weaker))


def _show_surroundings(installed: InstalledFence, state: StateDirectory) -> bool:
    """Show what weakens a fence; return True if it has changed since the installation."""
    from ocsf_nft.fence.surroundings import comparison

    compared = comparison.compare(installed, state)
    for change in compared.accepted:
        output.show(f"accepted at the installation: {visible(change.text)}")
    if compared.changes:
        output.show("the surroundings of the fence: differ")
    for change in compared.changes:
        output.show(visible(change.text))
    return bool(compared.changes)


@click.command("remove")
@options.sandbox
@options.recorded_netns
@options.pid
@options.device
@options.state_dir
@options.state_config
@options.event_as_json
def remove(  # noqa: PLR0913 - each is an option
    *,
    sandbox: str,
    netns: str | None,
    pid: int | None,
    device: str | None,
    state_dir: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Remove a sandbox's fence.

    Also removes the table that --host-guard created on the host, if any. Shows how many packets the
    fence has refused since the last run stopped: no event reports them. The next run of a sandbox
    with this name reports that too.

    Needs CAP_NET_ADMIN over the fence's network namespace, and CAP_SYS_ADMIN to enter it from
    another namespace.

    Example: ocsf-nft remove --sandbox agent
    """
    from ocsf_nft.fence import installer
    from ocsf_nft.fence.state import StateDirectory

    requested = options.one_sandbox(name=sandbox, netns=netns, pid=pid, device=device)
    state = StateDirectory(options.state_directory(state_dir, config))
    installed = state.read(requested.name)
    remove_fence = partial(
        installer.remove, requested.name, state, requested.namespace, requested.device
    )
    unreported = None
    if installed is not None and requested.namespace in {None, installed.namespace}:
        from ocsf_nft.service import unwatched_removal

        unreported = unwatched_removal.remove(installed, state, remove_fence)
    else:
        remove_fence()
    if as_json and installed is not None:
        from ocsf_nft.ocsf.context import this_host
        from ocsf_nft.ocsf.fence_state_events import FenceState
        from ocsf_nft.service import fence_facts

        before, after = fence_facts.state_of(installed), FenceState.ABSENT
        _print(fence_facts.state_event(installed, this_host(), before=before, after=after))
    missing = f"; no event reports its last {unreported:,} packets" if unreported else ""
    output.show(f"sandbox {sandbox} is no longer fenced{missing}")


def _show_blocking_rules(installed: InstalledFence) -> None:
    """Show the host's rules outside a VM's fence that drop traffic which the fence allows."""
    spec = installed.spec
    if spec.tap is None:
        return
    from ocsf_nft import check

    scope = check.check_scope(
        installed.namespace,
        device=spec.tap.device,
        subnets=spec.tap.subnets,
        port=spec.proxies[0].port,
        is_strict=spec.tap.is_strict,
    )
    for finding in check.blocking(scope):
        remedy = "" if finding.remedy is None else f" ({visible(finding.remedy)})"
        output.show(f"blocks the VM: {visible(finding.meaning)}{remedy}")
        for command in finding.commands:
            output.show(f"    {command}")


def _print(event: Event) -> None:
    output.write(event.to_json() + b"\n")
