"""The remedy that `check` names for a rule that stops traffic, by the owner of the rule."""

from __future__ import annotations

from ocsf_nft.check import owners
from ocsf_nft.check.diagnosis import _remedy, _text
from ocsf_nft.check.ruleset import Key, Rule
from ocsf_nft.netns import Namespace


def test_remedy_for_a_stopping_rule_fits_the_owner_of_the_rule() -> None:
    lasting = "are kept"
    for owner, parts in (
        (owners.OURS, ("install it anew",)),
        (owners.FIREWALLD, ("let firewalld pass it, by a zone and a policy", lasting)),
        (owners.UFW, ("let ufw pass it", lasting)),
        (owners.DOCKER, ("gone after a restart", "Docker may put its own before it again")),
        (owners.NFTABLES, ("gone after a restart",)),
    ):
        remedy = _remedy(owner, has_commands=True)
        assert all(part in remedy for part in parts), (owner, remedy)
        assert (lasting in remedy) == (lasting in parts), (owner, remedy)
        assert ("again" in remedy) == (owner == owners.DOCKER), (owner, remedy)
    unwritable = _remedy(owners.FIREWALLD, has_commands=False)
    assert "have firewalld accept this traffic" in unwritable
    assert "no command is shown" in unwritable


def test_rule_is_shown_up_to_300_characters() -> None:
    key = Key("legacy", "ip", "filter", "FORWARD")
    for text, shown in (("a" * 300, "a" * 300), ("a" * 301, "a" * 300 + "\u2026")):
        assert _text(Rule(chain=key, statements=(), text=text), Namespace()) == shown
