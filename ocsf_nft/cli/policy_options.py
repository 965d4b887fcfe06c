"""Options for the policy of a sandbox, which several commands have."""

from __future__ import annotations

import functools
import inspect
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ocsf_nft.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

#: Values of the options by their keys in a ``[[sandbox]]`` table.
Policy: TypeAlias = dict[str, Any]
#: Type and default of each option, in the order of the help.
_OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "profile": (options.Profile, "sandbox"),
    "proxy": (options.Proxies, []),
    "netns": (options.Netns, None),
    "pid": (options.Pid, None),
    "allow": (options.Exceptions, []),
    "host_guard": (options.HostGuard, "auto"),
    "proxy_uid": (options.ProxyUids, []),
    "device": (options.Device, None),
    "subnet": (options.Subnets, []),
    "gateway_port": (options.GatewayPort, None),
    "mac": (options.Mac, None),
    "strict": (options.Strict, False),
    "permissive": (options.Permissive, False),
    "exclusive": (options.Exclusive, False),
    "transport": (options.Transport, "auto"),
    "group": (options.Group, options.DEFAULT_GROUP),
}


def with_policy(
    netns: object = options.Netns,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command these options in place of its parameter ``policy``.

    ``netns`` is the type of the option --netns. Its default has another meaning in a service.
    """
    types = {name: kind for name, (kind, _) in _OPTIONS.items()} | {"netns": netns}
    ours = [
        Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=_OPTIONS[name][1])
        for name, kind in types.items()
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters: list[Parameter] = []
        for each in inspect.signature(command, eval_str=True).parameters.values():
            own = [each.replace(kind=Parameter.KEYWORD_ONLY)]
            parameters += ours if each.name == "policy" else own

        @functools.wraps(command)
        def run(**values: Any) -> None:
            policy = {name: values.pop(name) for name in _OPTIONS}
            command(policy=policy, **values)

        # Typer reads both.
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        vars(run)["__signature__"] = inspect.Signature(parameters)
        return run

    return decorate


def without_defaults(policy: Policy) -> Policy:
    """Return the options of a policy that do not have their defaults."""
    return {name: value for name, value in policy.items() if value != _OPTIONS[name][1]}
