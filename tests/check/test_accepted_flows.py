"""Tests of the traffic that `check` judges: addresses, ports, hooks and descriptions."""

from __future__ import annotations

import ipaddress
from typing import Any

from ocsf_nft.check.accepted_flows import AcceptedFlow, CheckScope, FlowDirection
from ocsf_nft.check.packet import InterfaceName, Span
from ocsf_nft.fence.values import endpoint, subnet
from ocsf_nft.netns import Namespace


def _flows(*subnets: str, **more: Any) -> list[AcceptedFlow]:
    given: dict[str, Any] = {"device": "vmtap-1", "subnets": tuple(map(subnet, subnets))}
    return list(CheckScope(namespace=Namespace(), port=3128, **given | more).flows())


def _span(low: str, high: str) -> Span:
    return Span(int(ipaddress.ip_address(low)), int(ipaddress.ip_address(high)))


def test_flow_of_a_vm_has_the_subnets_free_addresses() -> None:
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
        sent = {flow.packet.source for flow in flows if flow.direction is FlowDirection.OUT}
        assert sent == {_span(low, high)}, text
        (answered,) = (flow for flow in flows if flow.direction is FlowDirection.GATEWAY_ANSWER)
        assert answered.packet.destination == _span(low, high), text
        gateway = int(ipaddress.ip_interface(text).ip)
        assert answered.packet.source == Span(gateway, gateway)


def test_flow_of_a_vm_without_a_subnet_may_have_any_address() -> None:
    ends = {4: ("0.0.0.0", "255.255.255.255"), 6: ("::", "f" * 4 + ":ffff" * 7)}
    for uplinks, versions in (({}, [4]), ({4: "up0"}, [4]), ({6: "up0"}, [4, 6])):
        flows = [
            each for each in _flows(uplinks=uplinks) if each.direction is FlowDirection.GATEWAY
        ]
        assert [each.packet.version for each in flows if each.packet.is_first] == versions
        for each in flows:
            assert (
                each.packet.source == each.packet.destination == _span(*ends[each.packet.version])
            )
    versions_of_both = {flow.packet.version for flow in _flows("172.16.0.1/30", "fd00::1/64")}
    assert versions_of_both == {4, 6}
    assert {flow.packet.version for flow in _flows("fd00::1/64")} == {6}


def test_flow_has_direction_protocol_and_port_for_messages() -> None:
    out, reply = "traffic from the VM to the internet", "replies from the internet to the VM"
    gateway = "traffic from the VM to the gateway's port"
    answer = "the gateway's answers to the VM"
    proxy, proxy_answer = (
        "traffic from the sandbox to its proxy", "the proxy's answers to the sandbox",
    )  # fmt: skip
    expected = [
        each
        for label in ("tcp 443", "tcp other ports", "udp 53", "udp other ports")
        for each in ((out, label), (out, f"{label}, once open"), (reply, label))
    ]
    expected += [(gateway, "tcp 3128"), (gateway, "tcp 3128, once open"), (answer, "tcp 3128")]
    expected += [
        (proxy, "tcp 8080"), (proxy, "tcp 8080, once open"), (proxy_answer, "tcp 8080"),
    ]  # fmt: skip
    flows = _flows("172.16.0.1/30", proxies=(endpoint("[2001:db8::1]:8080"),))
    assert [(flow.direction.value, flow.label) for flow in flows] == expected
    first_sent = flows[0].packet
    assert first_sent.source_port == Span(32768, 60999)
    # Both are public addresses that many hosts use.
    assert ipaddress.IPv4Address(first_sent.destination.low).is_global
    (out6, *_) = _flows("fd00::1/64")
    assert ipaddress.IPv6Address(out6.packet.destination.low).is_global


def test_flow_uses_the_known_output_interface_or_any_other_one() -> None:
    def output_interfaces(hook: str, flows: list[AcceptedFlow]) -> set[InterfaceName]:
        steps = (step for flow in flows for step in flow.steps if step.hook == hook)
        return {step.changes["output_interface"] for step in steps}

    vm = InterfaceName("vmtap-1")
    other = InterfaceName("", is_prefix=True, excluded_prefixes=("vmtap-1", "lo"))
    assert output_interfaces("forward", _flows("172.16.0.1/30")) == {other, vm}
    named = _flows("172.16.0.1/30", uplinks={4: "up4", 6: "up6"})
    assert output_interfaces("forward", named) == {InterfaceName("up4"), vm}
    many = _flows("172.16.0.1/30", device="vmtap-*")
    vms = InterfaceName("vmtap-", is_prefix=True)
    not_vm = InterfaceName("", is_prefix=True, excluded_prefixes=("vmtap-", "lo"))
    assert output_interfaces("forward", many) == {not_vm, vms}
    proxy = endpoint("192.0.2.1:3128")
    for links, link in (
        ({}, InterfaceName("", is_prefix=True, excluded_prefixes=("lo",))),
        ({proxy: "e0"}, InterfaceName("e0")),
    ):
        sandbox = _flows(device=None, proxies=(proxy,), links=links)
        assert output_interfaces("output", sandbox) == {link}
        (answer,) = (flow for flow in sandbox if flow.direction is FlowDirection.PROXY_ANSWER)
        assert answer.steps[0].device == link
