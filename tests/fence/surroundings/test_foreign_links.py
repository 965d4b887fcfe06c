from __future__ import annotations

import pytest

from ocsf_nft.fence.surroundings import link_makers
from ocsf_nft.fence.surroundings.changes import weakening
from ocsf_nft.fence.surroundings.facts import LinkFact, Snapshot
from ocsf_nft.fence.surroundings.foreign_links import ForeignLinks
from ocsf_nft.fence.surroundings.notices import Move
from ocsf_nft.rtnetlink import Link

_HOST, _CHILD = 0, 3
_UPLINK = LinkFact(2, "eth0", "02:00:00:00:00:02", None, "veth", 7, _HOST)
_BEFORE = Snapshot(links=(_UPLINK,), uplinks=(2,))
_PAIR = LinkFact(5, "v0", "02:00:00:00:00:05", None, "veth", 9, _HOST)
_NOW = Snapshot(links=(_UPLINK, _PAIR), uplinks=(2,))
_AWAY = Link(6, "v1", is_loopback=False, peer_ifindex=5, kind="veth")
_MACVLAN = Link(8, "m0", is_loopback=False, peer_ifindex=9, peer_nsid=_HOST, kind="macvlan")


@pytest.fixture(params=[True, False, None])
def inside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool | None:
    """Return whether a process inside can have made the links; None if unknown."""
    answer: bool | None = request.param
    monkeypatch.setattr(link_makers.LinkMakers, "exist", lambda _: answer)
    return answer


def test_pair_of_the_host_is_a_change_only_if_a_process_inside_can_have_made_it(
    inside: bool | None,
) -> None:
    found = ForeignLinks("1:2").judged(weakening(_BEFORE, _NOW))
    assert [each.kind for each in found] == (["foreign pair"] if inside else [])
    # An engine may have attached it.
    assert not any(each.can_be_undone for each in found)


def test_pair_with_an_end_that_was_moved_from_here_can_be_undone(inside: bool | None) -> None:
    links = ForeignLinks("1:2")
    links.take([Move(_AWAY, _HOST)], _BEFORE)
    found = links.judged(weakening(_BEFORE, _NOW))
    assert [each.can_be_undone for each in found] == {True: [True], None: [False], False: []}[
        inside
    ]


@pytest.mark.parametrize(
    "move",
    [
        Move(_AWAY, _CHILD),  # a pair to a namespace nested in the sandbox
        Move(_MACVLAN, _HOST),  # an engine takes back what it had attached
        Move(_MACVLAN._replace(ifindex=2), _CHILD),  # the uplink, which is another change
        Move(_MACVLAN._replace(peer_nsid=_CHILD), 4),
    ],
)
def test_ordinary_moves_are_no_changes(inside: bool | None, move: Move) -> None:
    links = ForeignLinks("1:2")
    links.take([move], _BEFORE)
    assert links.judged(weakening(_BEFORE, _BEFORE)) == (), inside


def test_link_to_the_host_that_moved_on_stays_a_change(inside: bool | None) -> None:
    links = ForeignLinks("1:2")
    links.take([Move(_MACVLAN, _CHILD)], _BEFORE)
    for _ in range(2):
        (change,) = links.judged(weakening(_BEFORE, _BEFORE))
        assert "m0 (macvlan)" in change.text
        assert "was moved to the namespace with number 3" in change.text
        assert change.is_severe is (inside is not False)
        assert not change.can_be_undone
