"""Options for the policy of a sandbox."""

from __future__ import annotations

from typing import Any

import click

from ocsf_nft.cli import options
from ocsf_nft.cli.policy_options import Policy, with_policy, without_defaults


def test_policy_options_stand_where_the_decorator_is() -> None:
    got: dict[str, Any] = {}

    @click.command()
    @click.option("--first")
    @with_policy(options.service_netns)
    @click.option("--last", is_flag=True)
    def command(*, first: str, policy: Policy, last: bool) -> None:
        """Do it."""
        got.update(first=first, policy=policy, last=last)

    first, *ours, last = command.params
    assert (first.name, last.name, command.help) == ("first", "last", "Do it.")
    assert [each.name for each in ours][:4] == ["profile", "proxy", "netns", "pid"]
    netns = ours[2]
    assert isinstance(netns, click.Option)
    assert netns.help is not None
    assert "that of the service" in netns.help
    command.main(["--first=a", "--last", "--pid=5", "--proxy=b"], standalone_mode=False)
    policy = got.pop("policy")
    assert got == {"first": "a", "last": True}
    assert list(policy) == [each.name for each in ours]
    assert without_defaults(policy) == {"pid": 5, "proxy": ("b",)}


def test_options_with_their_defaults_are_left_out() -> None:
    usual: Policy = {
        "profile": "sandbox",
        "proxy": (),
        "netns": None,
        "strict": False,
        "permissive": False,
        "group": 4001,
    }
    assert without_defaults(usual) == {}
    # The service refuses it. Without it, the sandbox would be the namespace of the service.
    assert without_defaults(usual | {"pid": 0}) == {"pid": 0}
