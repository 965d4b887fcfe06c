"""The remedy that `check` names for a rule that stops traffic, by the owner of the rule."""

from __future__ import annotations

from ocsf_nft.check import chain_owner
from ocsf_nft.check.diagnosis import Question, _remedy, _text, judge
from ocsf_nft.check.ruleset import Key, Rule, from_json
from ocsf_nft.fence.values import subnet
from ocsf_nft.netns import Namespace


def test_remedy_for_a_stopping_rule_fits_the_owner_of_the_rule() -> None:
    lasting = "are kept"
    for owner, parts in (
        (chain_owner.OURS, ("install it anew",)),
        (chain_owner.FIREWALLD, ("let firewalld pass it, by a zone and a policy", lasting)),
        (chain_owner.UFW, ("let ufw pass it", lasting)),
        (chain_owner.DOCKER, ("gone after a restart", "Docker may put its own before it again")),
        (chain_owner.NFTABLES, ("gone after a restart",)),
    ):
        remedy = _remedy(owner, has_commands=True)
        assert all(part in remedy for part in parts), (owner, remedy)
        assert (lasting in remedy) == (lasting in parts), (owner, remedy)
        assert ("again" in remedy) == (owner == chain_owner.DOCKER), (owner, remedy)
    unwritable = _remedy(chain_owner.FIREWALLD, has_commands=False)
    assert "have firewalld accept this traffic" in unwritable
    assert "no command is shown" in unwritable


def test_rule_is_shown_up_to_300_characters() -> None:
    key = Key("legacy", "ip", "filter", "FORWARD")
    for text, shown in (("a" * 300, "a" * 300), ("a" * 301, "a" * 300 + "\u2026")):
        assert _text(Rule(chain=key, statements=(), text=text), Namespace()) == shown


def test_check_names_32_of_the_rules_that_may_drop_and_counts_the_others() -> None:
    question = Question(
        namespace=Namespace(), device="vmtap-1", subnets=(subnet("172.16.0.1/30"),), port=3128
    )
    place = {"family": "inet", "table": "site"}
    unknown = {"match": {"op": "==", "left": {"numgen": {"mode": "random", "mod": 2}}, "right": 0}}
    for count, more in ((32, []), (33, ["1 more rules drop"]), (35, ["3 more rules drop"])):
        listed = [
            {"chain": {**place, "name": "c", "type": "filter", "hook": "forward", "prio": 0,
                       "policy": "accept"}},
            *({"rule": {**place, "chain": "c", "handle": handle, "expr": [unknown, {"drop": None}]}}
              for handle in range(1, count + 1)),
        ]  # fmt: skip
        found = list(judge(from_json({"nftables": listed}), question))
        assert {each.name for each in found} == {"may-drop"}
        assert [each.meaning[:17] for each in found if each.place is None] == more
        named = [each.place.handle for each in found if each.place is not None]
        assert named == list(range(1, 33)), count


def test_check_judges_ipv6_of_a_machine_where_a_subnet_or_an_uplink_has_it() -> None:
    one4, one6 = subnet("172.16.0.1/30"), subnet("fd00:16::1/64")
    for subnets, uplinks, versions in (
        ((), {}, {4}),
        ((), {4: "eth0"}, {4}),
        ((), {6: "eth0"}, {4, 6}),
        ((one4,), {}, {4}),
        ((one6,), {}, {6}),
        ((one4, one6), {}, {4, 6}),
    ):
        question = Question(
            namespace=Namespace(), device="vmtap-1", subnets=subnets, port=3128, uplinks=uplinks
        )
        assert {flow.packet.version for flow in question.flows()} == versions, (subnets, uplinks)
