"""Options for the policy of a sandbox."""

from __future__ import annotations

import inspect
from typing import Any

from ocsf_nft.cli import options
from ocsf_nft.cli.policy_options import Policy, with_policy, without_defaults


def test_policy_options_stand_where_the_parameter_was() -> None:
    got: dict[str, Any] = {}

    def command(name: str, *, policy: Policy, last: bool = False) -> None:
        """Do it."""
        got.update(name=name, policy=policy, last=last)

    decorated = with_policy(options.ServiceNetns)(command)
    parameters = inspect.signature(decorated).parameters
    first, *names, last = parameters
    assert (first, last, decorated.__doc__) == ("name", "last", "Do it.")
    assert names[:4] == ["profile", "proxy", "netns", "pid"]
    assert parameters["netns"].annotation == options.ServiceNetns
    decorated(name="a", last=True, **dict.fromkeys(names, 1))
    assert got == {"name": "a", "policy": dict.fromkeys(names, 1), "last": True}


def test_options_with_their_defaults_are_left_out() -> None:
    usual: Policy = {
        "profile": "sandbox",
        "proxy": [],
        "netns": None,
        "strict": False,
        "permissive": False,
        "group": 4001,
    }
    assert without_defaults(usual) == {}
    # The service refuses it. Without it, the sandbox would be the namespace of the service.
    assert without_defaults(usual | {"pid": 0}) == {"pid": 0}
