"""Policy of the last gate: its bytes have what the fence allows, and nothing else."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import replace

import pytest

from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence.gate_policy import SIZE, gate_policy
from ocsf_nft.fence.spec import FenceSpec, Surroundings
from ocsf_nft.fence.values import endpoint, exception

_SPEC = FenceSpec(
    sandbox="agent",
    proxies=(endpoint("192.0.2.1:3128"), endpoint("[2001:db8::1]:3128")),
    exceptions=(exception("udp:198.51.100.0/24:53-54"),),
)
_AROUND = Surroundings(
    links=("eth0",),
    uplinks=("eth0",),
    neighbours=(ipaddress.ip_address("192.0.2.1"),),
    addresses=(ipaddress.ip_address("192.0.2.9"), ipaddress.ip_address("2001:db8::9")),
    macs=("02:00:00:00:00:09",),
)
_MAPPED = bytes(10) + b"\xff\xff"


def _numbers(policy: bytes) -> tuple[int, ...]:
    return struct.unpack_from("=6I", policy)


def test_policy_has_the_addresses_and_destinations_of_the_fence() -> None:
    policy = gate_policy((_SPEC, _AROUND))
    assert len(policy) == SIZE
    assert _numbers(policy) == (0, 1, 2, 1, 3, 0)
    assert policy[24:32] == bytes.fromhex("020000000009") + bytes(2)
    own = {policy[56 + 16 * number :][:16] for number in range(2)}
    assert own == {_MAPPED + bytes([192, 0, 2, 9]), _AROUND.addresses[1].packed}
    first = 56 + 16 * 64
    found = {struct.unpack_from("=16s16sHHBB2x", policy, first + 40 * each) for each in range(3)}
    assert found == {
        (_MAPPED + bytes([192, 0, 2, 1]), b"\xff" * 16, 3128, 3128, 6, 0),
        (ipaddress.ip_address("2001:db8::1").packed, b"\xff" * 16, 3128, 3128, 6, 0),
        (_MAPPED + bytes([198, 51, 100, 0]), b"\xff" * 15 + b"\0", 53, 54, 17, 1),
    }
    assert not any(policy[first + 120 :])


def test_policy_of_two_versions_allows_what_either_allows() -> None:
    other = replace(_SPEC, proxies=(endpoint("192.0.2.2:3128"),), exceptions=())
    assert _numbers(gate_policy((_SPEC, _AROUND), (other, _AROUND))) == (0, 1, 2, 1, 4, 0)
    assert gate_policy((_SPEC, _AROUND), (_SPEC, _AROUND)) == gate_policy((_SPEC, _AROUND))


@pytest.mark.parametrize(
    ("known", "flags"), [("", 3), ("192.0.2.9", 2), ("2001:db8::9", 1), ("both", 0)]
)
def test_policy_has_a_flag_of_each_version_without_a_known_address(known: str, flags: int) -> None:
    addresses = [each for each in _AROUND.addresses if known in {str(each), "both"}]
    around = replace(_AROUND, addresses=tuple(addresses))
    assert _numbers(gate_policy((_SPEC, around)))[5] == flags
    assert _numbers(gate_policy((_SPEC, _AROUND), (_SPEC, around)))[5] == flags


def test_policy_has_no_flag_of_a_version_without_destinations() -> None:
    spec = replace(_SPEC, proxies=(endpoint("[2001:db8::1]:3128"),), exceptions=())
    around = replace(_AROUND, addresses=_AROUND.addresses[1:])
    assert _numbers(gate_policy((spec, around)))[5] == 0


def test_policy_of_a_permissive_fence_is_permissive() -> None:
    assert _numbers(gate_policy((replace(_SPEC, is_permissive=True), _AROUND)))[0] == 1


@pytest.mark.parametrize("number", [125, 126])
def test_policy_of_too_many_destinations_is_unsupported(number: int) -> None:
    many = tuple(endpoint(f"192.0.2.1:{port}") for port in range(1, number + 1))
    spec = replace(_SPEC, proxies=(*_SPEC.proxies, *many))
    if number == 125:
        assert len(gate_policy((spec, _AROUND))) == SIZE
        return
    with pytest.raises(UnsupportedError, match="the fence has 129 destinations, more than 128"):
        gate_policy((spec, _AROUND))
