"""Uplinks, addresses and next hops stay those that the first route has shown."""

from __future__ import annotations

import dataclasses
import subprocess
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netns
from ocsf_nft.fence import pinned_survey
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import InstalledFence
from ocsf_nft.fence.values import endpoint, exception
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.fence.spec import Surroundings

pytestmark = pytest.mark.kernel

_SPEC = FenceSpec(sandbox="lab", proxies=(endpoint("10.1.0.7:3128"),))
_MAC = "02:00:00:00:00:07"
_UPLINK = f"""
link set lo up
link add d0 address {_MAC} type veth peer name d1
address add 10.0.0.2/24 dev d0
address add 169.254.7.7/16 dev d0
address add 10.9.9.9/32 dev lo
link set d0 up
link set d1 up
"""
_ROUTE = "route add 10.1.0.0/24 via 10.0.0.1\n"


def _ip(text: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=text, text=True, check=True)


def _installed(around: Surroundings, spec: FenceSpec = _SPEC) -> InstalledFence:
    namespace = Namespace()
    return InstalledFence(
        spec=spec,
        around=around,
        namespace=namespace,
        identity=namespace.identity(),
        transport="nflog",
        policy="",
        listings={},
    )


def _again(before: Surroundings, spec: FenceSpec = _SPEC) -> Surroundings:
    return pinned_survey.survey_again(spec, _installed(before))


def _in_scratch(check: Callable[[], None], *batches: str) -> None:
    def run() -> None:
        for batch in batches:
            _ip(batch)
        check()

    netns.in_scratch(run)


def test_first_survey_with_a_route_has_the_identity_of_the_uplink() -> None:
    def check() -> None:
        found = pinned_survey.survey(_SPEC, Namespace())
        (pin,) = found.pins
        assert pin.peer_ifindex is not None
        assert (pin.name, pin.mac, pin.peer_nsid) == ("d0", _MAC, None)
        assert found.uplinks == ("d0",)
        assert found.uplink_indexes == found.outer_indexes == (pin.ifindex,)
        # Addresses on loopback may be sources too.
        assert [*map(str, found.addresses)] == ["10.0.0.2", "10.9.9.9", "169.254.7.7"]
        assert "fe80::ff:fe00:7" in [*map(str, found.link_locals)]
        assert found.macs == (_MAC,)

    _in_scratch(check, _UPLINK, _ROUTE)


def test_survey_without_a_route_pins_nothing_until_there_is_one() -> None:
    def check() -> None:
        before = pinned_survey.survey(_SPEC, Namespace())
        assert (before.pins, before.link_locals) == ((), ())
        assert set(before.uplinks) == {"d0", "d1"}
        assert pinned_survey.differences(before, _again(before)) == []
        _ip(_ROUTE)
        now = _again(before)
        assert now.uplinks == ("d0",)
        # The other link was there before the route.
        assert now.outer_indexes == tuple(sorted(before.uplink_indexes))
        (line,) = pinned_survey.differences(before, now)
        assert line == "a route has shown its uplinks: d0"
        assert _again(now) == now

    _in_scratch(check, _UPLINK)


def test_changed_routes_addresses_and_links_change_no_pin() -> None:
    def check() -> None:
        before = pinned_survey.survey(_SPEC, Namespace())
        _ip(f"""
link add v0 address {_MAC} type veth peer name v1
address add 10.66.0.1/24 dev v0
address add 10.0.0.66/24 dev d0
link set v0 up
link set v1 up
route replace 10.1.0.0/24 via 10.66.0.2
""")
        now = _again(before)
        assert set(now.links) == {"d0", "d1", "v0", "v1"}
        assert now == dataclasses.replace(before, links=now.links)
        (line,) = pinned_survey.differences(before, now)
        assert line == "not fenced at the link layer: v0, v1"
        # A route to the proxy that is removed has no effect either.
        _ip("route del 10.1.0.0/24\n")
        assert _again(before) == now
        # An installation by the operator begins again.
        _ip(_ROUTE.replace("10.0.0.1", "10.66.0.2"))
        assert pinned_survey.survey(_SPEC, Namespace()).uplinks == ("v0",)

    _in_scratch(check, _UPLINK, _ROUTE)


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        ("link set d0 down\nlink set d0 name x0\nlink set d1 name d0\n", None),
        ("link set d0 address 02:00:00:00:00:08\n", f"link set d0 address {_MAC}\n"),
        ("link del d0\n" + _UPLINK.replace("link set lo up\n", "").replace(
            "address add 10.9.9.9/32 dev lo\n", ""), None),
        ("link del d0\n", None),
    ],
    ids=["renamed", "another link address", "created again", "deleted"],
)  # fmt: skip
def test_uplink_is_known_by_its_index_and_link_address(change: str, undo: str | None) -> None:
    def check() -> None:
        before = pinned_survey.survey(_SPEC, Namespace())
        _ip(change)
        now = _again(before)
        assert now.uplink_indexes == before.uplink_indexes
        if "name x0" in change:
            assert now.missing == ()
            return
        assert now.missing == ("d0",)
        (line,) = pinned_survey.differences(before, now)
        assert line.startswith("the uplink that the fence was installed with is missing or was")
        assert pinned_survey.differences(now, _again(now)) == []
        if undo is not None:
            _ip(undo)
            back = _again(now)
            assert back == before
            assert pinned_survey.differences(now, back) == ["the uplink is there again: d0"]

    _in_scratch(check, _UPLINK, _ROUTE)


def test_another_policy_resolves_new_destinations_on_the_uplinks_alone() -> None:
    def check() -> None:
        before = pinned_survey.survey(_SPEC, Namespace())
        assert [*map(str, before.neighbours)] == ["10.0.0.1", "10.1.0.7"]
        _ip("""
link add v0 type veth peer name v1
address add 10.66.0.1/24 dev v0
link set v0 up
link set v1 up
route add 10.2.0.0/24 via 10.0.0.5
route add 10.3.0.0/24 via 10.66.0.2
route replace 10.1.0.0/24 via 10.0.0.6
""")
        more = dataclasses.replace(
            _SPEC,
            proxies=(endpoint("10.2.0.7:3128"), endpoint("10.3.0.7:3128")),
            exceptions=(exception("tcp:10.3.0.0/25:80"), exception("tcp:10.1.0.0/25:80")),
        )
        now = _again(before, more)
        assert [*map(str, now.neighbours)] == [
            "10.0.0.1", "10.0.0.5", "10.0.0.6", "10.2.0.7", "10.3.0.7",
        ]  # fmt: skip
        assert now.uplinks == ("d0",)

    _in_scratch(check, _UPLINK, _ROUTE)


def test_addresses_of_a_version_are_pinned_when_there_are_some() -> None:
    def check() -> None:
        both = dataclasses.replace(_SPEC, proxies=(*_SPEC.proxies, endpoint("[fd00::1]:3128")))
        before = pinned_survey.survey(both, Namespace())
        assert {each.version for each in before.addresses} == {4}
        assert pinned_survey.survey_again(both, _installed(before, both)) == before
        _ip("address add fd00::2/64 dev d0 nodad\naddress add 10.0.0.66/24 dev d0\n")
        now = pinned_survey.survey_again(both, _installed(before, both))
        assert [*map(str, now.addresses)] == [*map(str, before.addresses), "fd00::2"]
        assert pinned_survey.differences(before, now) == ["its addresses are known now"]
        _ip("address add fd00::3/64 dev d0 nodad\n")
        assert pinned_survey.survey_again(both, _installed(now, both)) == now
        # No destination of this policy needs the other version.
        assert _again(before) == before

    _in_scratch(check, _UPLINK, _ROUTE)


_OTHER = """
link add v0 type veth peer name v1
link set v0 up
link set v1 up
"""
_POD = FenceSpec(sandbox="lab", proxies=(endpoint("127.0.0.1:3128"),), proxy_uids=(7,))


def test_pod_pins_the_links_with_any_route_and_their_networks() -> None:
    def check() -> None:
        early = pinned_survey.survey(_POD, Namespace())
        # A link-local route alone shows no uplink.
        assert (early.pins, early.link_networks) == ((), ())
        _ip(_UPLINK.replace("link set lo up\n", ""))
        _ip("address add fd00::2/64 dev d0 nodad\n" + _ROUTE + "route add default via 10.0.0.3\n")
        before = pinned_survey.survey_again(_POD, _installed(early, _POD))
        assert sorted(pin.name for pin in before.pins) == ["d0", "d1", "v0", "v1"]
        assert [*map(str, before.neighbours)] == ["10.0.0.1", "10.0.0.3"]
        networks = ["10.0.0.0/24", "169.254.0.0/16", "fd00::/64"]
        assert [*map(str, before.link_networks)] == networks
        _ip("address add 10.66.0.1/16 dev d0\nroute add 10.3.0.0/24 via 10.0.0.66\n")
        assert pinned_survey.survey_again(_POD, _installed(before, _POD)) == before
        # The record of an earlier version has no networks.
        old = dataclasses.replace(before, link_networks=())
        again = pinned_survey.survey_again(_POD, _installed(old, _POD))
        assert "10.66.0.0/16" in [*map(str, again.link_networks)]

    _in_scratch(check, "link set lo up\n" + _OTHER)


def test_exceptions_of_a_pod_show_its_uplinks_and_other_routes_do_not() -> None:
    def check() -> None:
        _ip("address add 10.7.0.2/24 dev d1\nroute add default via 10.7.0.1\n")
        spec = dataclasses.replace(_POD, exceptions=(exception("tcp:10.1.0.7:80"),))
        found = pinned_survey.survey(spec, Namespace())
        assert found.uplinks == ("d0",)
        assert "10.7.0.1" not in [*map(str, found.neighbours)]
        assert "10.7.0.0/24" not in [*map(str, found.link_networks)]
        assert "10.0.0.0/24" in [*map(str, found.link_networks)]
        assert set(pinned_survey.survey(_POD, Namespace()).uplinks) == {"d0", "d1"}

    _in_scratch(check, _UPLINK, _ROUTE)
