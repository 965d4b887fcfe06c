"""Last gate of a sandbox: it follows the uplinks and the policy of the present fence."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
from structlog.testing import capture_logs

from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence.gate_policy import gate_policy
from ocsf_nft.fence.spec import FenceSpec, HostEnd, HostLinks, Surroundings, Tap
from ocsf_nft.fence.spec import Uplink as Pin
from ocsf_nft.fence.values import endpoint, subnet
from ocsf_nft.flow import Count
from ocsf_nft.service.sandbox_gate import SandboxGate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.fence.gate import Uplink
    from ocsf_nft.fence.state import InstalledFence

_SPEC: Final = FenceSpec(sandbox="agent", proxies=(endpoint("192.0.2.1:3128"),))
_UNKNOWN: Final = Surroundings(links=("eth0",), uplinks=("eth0",), uplink_indexes=(2,))
_KNOWN: Final = replace(
    _UNKNOWN,
    neighbours=(ipaddress.ip_address("192.0.2.1"),),
    addresses=(ipaddress.ip_address("192.0.2.9"),),
    macs=("02:00:00:00:00:09",),
    pins=(Pin(name="eth0", ifindex=2, mac="02:00:00:00:00:09"),),
)
_OTHER: Final = replace(_KNOWN, uplink_indexes=(3, 5))


@dataclass
class _Gate:
    """Gate that notes its policies by the index of the uplink."""

    programs: frozenset[int] = frozenset({7, 8})
    policies: dict[int, bytes] = field(default_factory=dict)
    stops: dict[int, int] = field(default_factory=dict)
    fault: str | None = None
    ends: set[int] = field(default_factory=set)
    missing_end: int | None = None
    attachments: int = 0

    def attach(self, _beside: socket.socket, uplinks: Iterable[Uplink], policy: bytes) -> None:
        if self.fault is not None:
            raise UnsupportedError(self.fault)
        self.attachments += 1
        for each in uplinks:
            self.policies[each.ifindex] = policy

    def attach_to_end(self, end: Uplink, _beside: socket.socket) -> None:
        if end.ifindex == self.missing_end:
            raise UnsupportedError("no such device")
        self.ends.add(end.ifindex)

    def set_policy(self, uplink: Uplink, policy: bytes) -> None:
        assert uplink.ifindex in self.policies
        self.policies[uplink.ifindex] = policy

    def detach(self, uplink: Uplink) -> None:
        if uplink.ifindex in self.ends:
            self.ends.discard(uplink.ifindex)
            self.stops.pop(uplink.ifindex, None)
        else:
            del self.policies[uplink.ifindex]

    def stopped(self, uplink: Uplink) -> Count:
        frames = self.stops.get(uplink.ifindex, 0)
        return Count(frames, 100 * frames)


class _State:
    def __init__(self) -> None:
        self.programs: frozenset[int] = frozenset()

    def gate(self, _sandbox: str) -> frozenset[int]:
        return self.programs

    def store_gate(self, _sandbox: str, programs: frozenset[int]) -> None:
        self.programs = programs


@pytest.fixture
def beside() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        yield sock


@pytest.fixture
def fake() -> _Gate:
    return _Gate()


@pytest.fixture
def gate(fake: _Gate) -> SandboxGate:
    return SandboxGate("agent", cast("Any", fake), cast("Any", _State()))


def _fence(around: Surroundings, spec: FenceSpec = _SPEC) -> InstalledFence:
    return cast("InstalledFence", SimpleNamespace(spec=spec, around=around))


def _absence(gate: SandboxGate) -> str | None:
    return gate.absence


async def test_gate_is_attached_when_a_check_finds_the_uplinks(
    gate: SandboxGate, fake: _Gate, beside: socket.socket
) -> None:
    with capture_logs() as logged:
        await gate.open(_fence(_UNKNOWN), beside)
        await gate.follow(_fence(_UNKNOWN))
    reason = "its uplinks are not known yet, or not Ethernet"
    assert [each["reason"] for each in logged] == [reason]
    assert _absence(gate) == reason
    await gate.follow(_fence(_KNOWN))
    assert _absence(gate) is None
    assert fake.policies == {2: gate_policy((_SPEC, _KNOWN))}
    await gate.follow(_fence(_UNKNOWN))
    assert not fake.policies
    assert _absence(gate) == reason


async def test_gate_moves_to_the_uplinks_of_a_new_installation(
    gate: SandboxGate, fake: _Gate, beside: socket.socket
) -> None:
    await gate.open(_fence(_KNOWN), beside)
    await gate.follow(_fence(replace(_KNOWN, uplink_indexes=(2, 3))))
    assert [*fake.policies] == [2, 3]
    await gate.follow(_fence(_OTHER))
    assert fake.policies == dict.fromkeys((3, 5), gate_policy((_SPEC, _OTHER)))
    attachments = fake.attachments
    await gate.follow(_fence(_OTHER))
    assert fake.attachments == attachments
    fake.stops = {3: 4, 5: 1}
    assert gate.stopped() == Count()
    assert gate.stopped() == Count(5, 500)
    assert gate.stopped() == Count()


async def test_gate_that_is_closed_stays_detached(
    gate: SandboxGate, fake: _Gate, beside: socket.socket
) -> None:
    await gate.follow(_fence(_KNOWN))
    assert not fake.policies
    await gate.open(_fence(_KNOWN), beside)
    await gate.close()
    await gate.follow(_fence(_KNOWN))
    assert (gate.absence, fake.policies) == ("it was detached", {})


async def test_each_reason_for_an_absence_is_logged_once(
    gate: SandboxGate, fake: _Gate, beside: socket.socket
) -> None:
    fake.fault = "the kernel refuses"
    with capture_logs() as logged:
        await gate.open(_fence(_KNOWN), beside)
        await gate.follow(_fence(_KNOWN))
        await gate.follow(_fence(_KNOWN, replace(_SPEC, proxy_uids=(1,))))
        fake.fault = None
        await gate.follow(_fence(_KNOWN))
        fake.fault = "the kernel refuses"
        await gate.follow(_fence(_OTHER))
        await SandboxGate("agent", None, cast("Any", _State())).open(_fence(_KNOWN), beside)
    assert [each.get("reason") for each in logged] == [
        "the kernel refuses",
        "a fence of the profile sidecar has none",
        None,
        "the kernel refuses",
        "BPF is not available",
    ]


async def test_gate_stores_its_program_again_after_a_removal(
    fake: _Gate, beside: socket.socket
) -> None:
    state = _State()
    gate = SandboxGate("agent", cast("Any", fake), cast("Any", state))
    await gate.open(_fence(_KNOWN), beside)
    state.programs = frozenset()
    await gate.follow(_fence(_KNOWN))
    assert state.programs == {7, 8}


def _spec_of(count: int, first: int = 1) -> FenceSpec:
    """Return a specification with that many destinations."""
    ports = range(first, first + count)
    return replace(_SPEC, proxies=tuple(endpoint(f"192.0.2.1:{port}") for port in ports))


async def test_gate_stays_if_only_both_policies_together_are_too_large(
    gate: SandboxGate, fake: _Gate, beside: socket.socket
) -> None:
    before, after = _spec_of(128), _spec_of(128, first=1000)
    await gate.open(_fence(_KNOWN, before), beside)
    await gate.widen(after)
    assert fake.policies == {2: gate_policy((after, _KNOWN))}
    # Frames that the fence still allows, and the gate does not.
    fake.stops = {2: 9}
    assert gate.stopped() == gate.stopped() == gate.stopped() == Count()
    await gate.follow(_fence(_KNOWN, after))
    assert fake.policies == {2: gate_policy((after, _KNOWN))}
    fake.stops = {2: 10}
    assert gate.stopped() == Count()
    assert gate.stopped() == Count(1, 100)
    assert (gate.absence, fake.attachments) == (None, 1)


@pytest.mark.parametrize("is_loaded", [True, False])
async def test_gate_is_attached_again_when_the_policy_fits_again(
    gate: SandboxGate, fake: _Gate, beside: socket.socket, *, is_loaded: bool
) -> None:
    await gate.open(_fence(_KNOWN), beside)
    await gate.widen(_spec_of(129))
    assert not fake.policies
    assert gate.absence == "the fence has 129 destinations, more than 128"
    await gate.follow(_fence(_KNOWN, _spec_of(129) if is_loaded else _SPEC))
    if is_loaded:
        assert not fake.policies
        await gate.widen(_SPEC)
        await gate.follow(_fence(_KNOWN))
    assert fake.policies == {2: gate_policy((_SPEC, _KNOWN))}


def _guarded(*indexes: int) -> Surroundings:
    ends = tuple(HostEnd(name=f"h{index}", ifindex=index) for index in indexes)
    return replace(_KNOWN, host=HostLinks(ends=ends))


async def test_ends_of_a_guarded_fence_have_their_program(
    gate: SandboxGate, fake: _Gate, beside: socket.socket
) -> None:
    guarded = replace(_SPEC, guard_device="h30")
    await gate.open(_fence(_KNOWN, guarded), beside)
    assert not fake.ends
    await gate.follow(_fence(_guarded(30, 31), guarded))
    assert fake.ends == {30, 31}
    fake.stops = {2: 1, 30: 2, 31: 3}
    assert gate.stopped() == Count(5, 500)  # those at the uplinks are one call late
    fake.stops = {2: 1, 30: 4, 31: 3}
    await gate.follow(_fence(_guarded(31, 32), guarded))
    assert fake.ends == {31, 32}
    fake.stops[32] = 1
    assert gate.stopped() == Count(4, 400)
    assert gate.stopped() == Count()
    await gate.follow(_fence(_guarded(31), replace(guarded, is_permissive=True)))
    assert not fake.ends
    await gate.follow(_fence(_guarded(31), guarded))
    assert fake.ends == {31}
    await gate.close()
    assert not fake.ends


async def test_tap_device_of_a_vm_has_the_program_of_an_end(
    gate: SandboxGate, fake: _Gate, beside: socket.socket
) -> None:
    tap = Tap(device="tap0", subnets=(subnet("192.0.2.1/29"),))
    spec = replace(_SPEC, tap=tap)
    around = Surroundings(links=("tap0",), ifindex=7)
    await gate.open(_fence(around, spec), beside)
    assert (fake.ends, fake.policies) == ({7}, {})
    assert _absence(gate) == "a fence of the profile tap has none"
    fake.stops = {7: 2}
    assert gate.stopped() == Count(2, 200)
    await gate.follow(_fence(around, replace(spec, is_permissive=True)))
    assert not fake.ends


async def test_missing_end_does_not_keep_the_program_from_others(
    gate: SandboxGate, fake: _Gate, beside: socket.socket
) -> None:
    guarded = replace(_SPEC, guard_device="h30")
    fake.missing_end = 30
    with capture_logs() as logged:
        await gate.open(_fence(_guarded(30, 31), guarded), beside)
        await gate.follow(_fence(_guarded(30, 31), guarded))
    assert (fake.ends, _absence(gate)) == ({31}, None)
    reasons = [each["reason"] for each in logged if each["log_level"] == "warning"]
    assert reasons == ["no such device"]
    fake.missing_end = None
    await gate.follow(_fence(_guarded(30, 31), guarded))
    assert fake.ends == {30, 31}
