"""The traffic that `check` judges: addresses, ports, hooks and words for people."""

from __future__ import annotations

import ipaddress
from typing import Any

from ocsf_nft.check.accepted_flows import Direction, Flow
from ocsf_nft.check.diagnosis import Question
from ocsf_nft.check.ternary import Name, Span
from ocsf_nft.fence.values import endpoint, subnet
from ocsf_nft.netns import Namespace


def _flows(*subnets: str, **more: Any) -> list[Flow]:
    given: dict[str, Any] = {"device": "vmtap-1", "subnets": tuple(map(subnet, subnets))}
    return list(Question(namespace=Namespace(), port=3128, **given | more).flows())


def _span(low: str, high: str) -> Span:
    return Span(int(ipaddress.ip_address(low)), int(ipaddress.ip_address(high)))


def test_flow_of_a_machine_comes_from_the_addresses_that_a_subnet_leaves_for_it() -> None:
    for text, low, high in (
        ("172.16.0.1/30", "172.16.0.2", "172.16.0.2"),
        ("172.16.0.2/30", "172.16.0.0", "172.16.0.2"),
        ("172.16.0.1/29", "172.16.0.2", "172.16.0.6"),
        ("172.16.0.0/31", "172.16.0.0", "172.16.0.1"),
        ("172.16.0.1/31", "172.16.0.0", "172.16.0.1"),
        ("fd00:16::1/126", "fd00:16::2", "fd00:16::3"),
        ("fd00:16::2/126", "fd00:16::", "fd00:16::3"),
        ("fd00:16::1/127", "fd00:16::", "fd00:16::1"),
    ):
        flows = _flows(text)
        sent = {flow.packet.source for flow in flows if flow.direction is Direction.OUT}
        assert sent == {_span(low, high)}, text
        (answered,) = (flow for flow in flows if flow.direction is Direction.ANSWER)
        assert answered.packet.destination == _span(low, high), text
        gateway = int(ipaddress.ip_interface(text).ip)
        assert answered.packet.source == Span(gateway, gateway)


def test_flow_of_a_machine_without_a_subnet_may_have_any_address() -> None:
    ends = {4: ("0.0.0.0", "255.255.255.255"), 6: ("::", "f" * 4 + ":ffff" * 7)}
    for uplinks, versions in (({}, [4]), ({4: "up0"}, [4]), ({6: "up0"}, [4, 6])):
        flows = [each for each in _flows(uplinks=uplinks) if each.direction is Direction.GATEWAY]
        assert [each.packet.version for each in flows if each.packet.is_first] == versions
        for each in flows:
            assert (
                each.packet.source == each.packet.destination == _span(*ends[each.packet.version])
            )
    versions_of_both = {flow.packet.version for flow in _flows("172.16.0.1/30", "fd00::1/64")}
    assert versions_of_both == {4, 6}
    assert {flow.packet.version for flow in _flows("fd00::1/64")} == {6}


def test_flow_says_protocol_port_and_place_to_a_person() -> None:
    out, reply = "what the VM sends to the internet", "the replies to it"
    gateway, answer = "what the VM sends to the gateway's port", "the gateway's answers"
    proxy = "what the sandbox sends to its proxy"
    expected = [
        each
        for label in ("tcp 443", "tcp other ports", "udp 53", "udp other ports")
        for each in ((out, label), (out, f"{label}, once open"), (reply, label))
    ]
    expected += [(gateway, "tcp 3128"), (gateway, "tcp 3128, once open"), (answer, "tcp 3128")]
    expected += [
        (proxy, "tcp 8080"), (proxy, "tcp 8080, once open"), ("the proxy's answers", "tcp 8080"),
    ]  # fmt: skip
    flows = _flows("172.16.0.1/30", proxies=(endpoint("[2001:db8::1]:8080"),))
    assert [(flow.direction.value, flow.label) for flow in flows] == expected
    first_sent = flows[0].packet
    assert first_sent.source_port == Span(32768, 60999)
    # Both are public addresses that many hosts use.
    assert ipaddress.IPv4Address(first_sent.destination.low).is_global
    (out6, *_) = _flows("fd00::1/64")
    assert ipaddress.IPv6Address(out6.packet.destination.low).is_global


def test_flow_leaves_by_the_link_that_is_known_or_by_another_one() -> None:
    def left_by(hook: str, flows: list[Flow]) -> set[Name]:
        steps = (step for flow in flows for step in flow.steps if step.hook == hook)
        return {step.changes["leaves_by"] for step in steps}

    machine = Name("vmtap-1")
    other = Name("", is_start=True, unlike=("vmtap-1", "lo"))
    assert left_by("forward", _flows("172.16.0.1/30")) == {other, machine}
    named = _flows("172.16.0.1/30", uplinks={4: "up4", 6: "up6"})
    assert left_by("forward", named) == {Name("up4"), machine}
    many = _flows("172.16.0.1/30", device="vmtap-*")
    machines = Name("vmtap-", is_start=True)
    unlike = Name("", is_start=True, unlike=("vmtap-", "lo"))
    assert left_by("forward", many) == {unlike, machines}
    proxy = endpoint("192.0.2.1:3128")
    for links, link in (({}, Name("", is_start=True, unlike=("lo",))), ({proxy: "e0"}, Name("e0"))):
        sandbox = _flows(device=None, proxies=(proxy,), links=links)
        assert left_by("output", sandbox) == {link}
        (answer,) = (flow for flow in sandbox if flow.direction is Direction.PROXY_ANSWER)
        assert answer.steps[0].device == link
