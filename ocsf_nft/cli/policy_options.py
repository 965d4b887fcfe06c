"""Options for the policy of a sandbox, which several commands have."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from ocsf_nft.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

#: Values of the options by their keys in a ``[[sandbox]]`` table.
Policy: TypeAlias = dict[str, Any]

#: Defaults of the options; the default of each other one is empty: None, False or ().
_DEFAULTS: Final = {
    "profile": "sandbox",
    "host_guard": "auto",
    "transport": "auto",
    "group": options.DEFAULT_GROUP,
}

_profile = click.option(
    "--profile",
    default=_DEFAULTS["profile"],
    metavar="sandbox|sidecar|tap",
    help="What to fence: a namespace; one that also has the proxy; a VM, on its host.",
)
_host_guard = click.option(
    "--host-guard",
    default=_DEFAULTS["host_guard"],
    metavar="auto|off|DEV",
    help="Also guard the host's end of the sandbox's veth pair: find it, or name it.",
)
_proxy_uids = click.option(
    "--proxy-uid",
    type=int,
    multiple=True,
    metavar="UID",
    help="sidecar: a user of the proxy; traffic of this user may leave; repeatable.",
)
_subnets = click.option(
    "--subnet",
    multiple=True,
    metavar="CIDR",
    help="tap: the gateway's address in the VM's subnet; repeatable, IPv4 and IPv6.",
)
_gateway_port = click.option(
    "--gateway-port",
    type=int,
    metavar="PORT",
    help="tap: the proxy's port on the gateway's address.",
)
_mac = click.option(
    "--mac",
    metavar="MAC",
    help="tap: the VM's link address. Default: the first one it sends from.",
)
_strict = click.option(
    "--strict",
    is_flag=True,
    help="tap: the VM reaches the gateway's port, the exceptions, and nothing else. Default: "
    "it also reaches the internet and the host's networks, without the proxy.",
)
_whole_machine = click.option(
    "--whole-machine",
    is_flag=True,
    help="Allow a fence around this whole machine, if no other network namespace is named. Its "
    "connections that the fence does not allow end, such as SSH.",
)
_permissive = click.option(
    "--permissive", is_flag=True, help="Report packets that would be refused, and allow them."
)
_exclusive = click.option(
    "--exclusive",
    is_flag=True,
    help="Let no other process change the tables while a run watches.",
)
_transport = click.option(
    "--transport",
    default=_DEFAULTS["transport"],
    metavar="auto|nflog|kmsg|none",
    help="Log transport of the fence; auto selects the best one that the kernel has.",
)
_group = click.option(
    "--group",
    type=int,
    default=_DEFAULTS["group"],
    metavar="N",
    help="The NFLOG group, 1 to 65535.",
)


def with_policy(
    netns: options.Decorator = options.netns,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds these options to a command, which gets them as ``policy``.

    ``netns`` is the option --netns. Its default has another meaning in a service.
    """
    # By their keys in a ``[[sandbox]]`` table, in the order of the help.
    ours: dict[str, options.Decorator] = {
        "profile": _profile,
        "proxy": options.proxies,
        "netns": netns,
        "pid": options.pid,
        "whole_machine": _whole_machine,
        "allow": options.exceptions,
        "host_guard": _host_guard,
        "proxy_uid": _proxy_uids,
        "device": options.device,
        "subnet": _subnets,
        "gateway_port": _gateway_port,
        "mac": _mac,
        "strict": _strict,
        "permissive": _permissive,
        "exclusive": _exclusive,
        "transport": _transport,
        "group": _group,
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*context: click.Context, **values: Any) -> None:
            policy = {key: values.pop(key) for key in ours}
            command(*context, policy=policy, **values)

        made: Callable[..., None] = run
        for add in reversed(ours.values()):  # click shows the option that is added last first
            made = add(made)
        return made

    return decorate


def without_defaults(policy: Policy) -> Policy:
    """Return the options of a policy that do not have their defaults."""
    return {key: value for key, value in policy.items() if not _is_default(key, value)}


def _is_default(key: str, value: Any) -> bool:
    # A pid of 0 is no default, although it equals False.
    return value is None or value is False or value in {(), _DEFAULTS.get(key)}
