"""Last gate of one sandbox's fence, which follows the fence's policy and its uplinks."""

from __future__ import annotations

import socket
import threading
from functools import partial
from typing import TYPE_CHECKING

import structlog

from ocsf_nft import netlink
from ocsf_nft.errors import DeliveryError, UnsupportedError
from ocsf_nft.fence.gate import Uplink
from ocsf_nft.fence.gate_policy import gate_policy
from ocsf_nft.flow import Count
from ocsf_nft.service.shielded import run_in_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from concurrent.futures import Executor

    from ocsf_nft.fence.gate import Gate
    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import InstalledFence, StateDirectory

_log = structlog.get_logger()


class SandboxGate:
    """Last gate of the fence around one network namespace. No method raises an error of the gate.

    Without the gate, the fence is active all the same: then ``absence`` is the reason, which is
    logged.
    """

    def __init__(
        self,
        sandbox: str,
        gate: Gate | None,
        state: StateDirectory,
        pool: Executor | None = None,
    ) -> None:
        """Create it; :meth:`open` attaches it. ``gate`` is None if the system has none."""
        self.absence: str | None = "it is not attached yet"
        self._sandbox = sandbox
        self._gate = gate
        self._state = state
        self._pool = pool
        #: Held while one of the values below is used: each method has a thread of its own.
        self._lock = threading.Lock()
        #: Socket in the network namespace; None before :meth:`open` and after :meth:`close`.
        self._beside: socket.socket | None = None
        #: Uplinks with the gate, their policy, and the fence whose policy it is.
        self._uplinks: tuple[Uplink, ...] = ()
        self._policy = b""
        self._installed: InstalledFence | None = None
        #: Frames that the gate had stopped at the last call of :meth:`stopped`, and before it.
        self._stopped = self._reported = Count()
        #: True between :meth:`widen` and :meth:`follow`: the present fence's policy is allowed too,
        #: or only the new one's.
        self._is_widened = self._is_narrowed = False
        #: Host's ends with the program for them, and the reason if it could not be attached.
        self._ends: tuple[Uplink, ...] = ()
        self._ends_fault: str | None = None
        #: Frames that were stopped at these ends until now, and those not returned yet.
        self._stopped_at_ends = self._pending = Count()

    async def open(self, installed: InstalledFence, beside: socket.socket) -> None:
        """Attach the gate to the uplinks of a fence, in the network namespace of ``beside``.

        With a guard, a program is attached to the host's ends too, and for a VM to its TAP device.
        What is not known yet gets its program by :meth:`follow`.
        """
        self._beside = beside
        await self.follow(installed)

    async def widen(self, spec: FenceSpec) -> None:
        """Allow also what ``spec`` allows, before the fence is replaced; then call :meth:`follow`.

        So no packet that the new fence allows is stopped. If both policies together are too large
        for the gate, it allows only what ``spec`` allows from now on.
        """
        await self._run(partial(self._widen, spec))

    async def follow(self, installed: InstalledFence) -> None:
        """Allow what the present fence allows, and nothing else, at the present uplinks.

        Do nothing before :meth:`open` and after :meth:`close`.
        """
        await self._run(partial(self._follow, installed))

    async def close(self) -> None:
        """Detach the gate."""
        await self._run(self._close)

    def stopped(self) -> Count:
        """Return the frames that the gate had stopped at the last call, without those before.

        Those at the uplinks are one call late: the gate stops what a fence allows that another
        process has just installed, and such frames do not count. Blocks shortly.
        """
        with self._lock:
            self._read_ends()
            found, self._pending = self._pending, Count()
            if self._is_narrowed:
                return found
            last, before = self._stopped, self._reported
            self._stopped, self._reported = self._total(self._uplinks), last
        return _sum(found, _difference(last, before))

    async def _run(self, work: Callable[[], None]) -> None:
        def run() -> None:
            with self._lock:
                work()

        await run_in_pool(self._pool, run)

    def _total(self, interfaces: Iterable[Uplink]) -> Count:
        total = Count()
        if self._gate is not None:
            for each in interfaces:
                total = _sum(total, self._gate.stopped(each))
        return total

    def _read_ends(self) -> None:
        total = self._total(self._ends)
        self._pending = _sum(self._pending, _difference(total, self._stopped_at_ends))
        self._stopped_at_ends = total

    def _widen(self, spec: FenceSpec) -> None:
        now = self._installed
        if now is None:
            return
        new = spec, now.around
        try:
            policy = gate_policy((now.spec, now.around), new)
        except UnsupportedError:
            self._is_narrowed = True
            self._try(lambda: self._set(gate_policy(new)))
        else:
            self._is_widened = True
            self._try(lambda: self._set(policy))

    def _follow(self, installed: InstalledFence) -> None:
        gate, beside = self._gate, self._beside
        if beside is None:
            return
        if gate is None:
            self._detach("BPF is not available")
        elif installed.spec.profile != "sandbox":
            self._detach(f"a fence of the profile {installed.spec.profile} has none")
        elif not installed.around.pins or not installed.around.macs:
            self._detach("its uplinks are not known yet, or not Ethernet")
        else:
            self._try(partial(self._attach, gate, installed, beside))
        self._is_widened = self._is_narrowed = False
        self._follow_ends(installed, beside)

    def _follow_ends(self, installed: InstalledFence, inside: socket.socket) -> None:
        """Attach the program to the host's ends of a guarded fence, and to no others.

        For a VM, that is its TAP device, in the namespace of ``inside``.
        """
        spec, around, gate = installed.spec, installed.around, self._gate
        is_guarded = spec.guard_device is not None or spec.tap is not None
        # A permissive fence stops nothing.
        if gate is None or not is_guarded or spec.is_permissive:
            self._detach_ends(self._ends)
            return
        try:
            if spec.tap is not None:
                indexes = [] if around.ifindex is None else [around.ifindex]
                fault = self._attach_ends(gate, indexes, inside)
            else:
                indexes = [each.ifindex for each in around.host.ends]
                with socket.socket(socket.AF_UNIX) as beside:
                    fault = self._attach_ends(gate, indexes, beside)
        except (DeliveryError, UnsupportedError, OSError) as error:
            fault = str(error)
        if fault is not None and fault != self._ends_fault:
            _log.warning(
                "the fence can't check where checksums are written",
                sandbox=self._sandbox, reason=fault,
            )  # fmt: skip
        self._ends_fault = fault

    def _attach_ends(self, gate: Gate, indexes: Iterable[int], beside: socket.socket) -> str | None:
        """Attach the program to all ends that it can be attached to; return an error, or None."""
        fault, cookie = None, netlink.namespace_cookie(beside)
        required = [Uplink(cookie, each) for each in indexes]
        self._detach_ends([each for each in self._ends if each not in required])
        for each in required:
            if each not in self._ends:
                self._store(gate)
                try:
                    gate.attach_to_end(each, beside)
                except UnsupportedError as error:
                    fault = str(error)
                else:
                    self._ends += (each,)
        return fault

    def _detach_ends(self, ends: Collection[Uplink]) -> None:
        if self._gate is None or not ends:
            return
        self._read_ends()
        for each in ends:
            self._gate.detach(each)
        self._ends = tuple(each for each in self._ends if each not in ends)
        self._stopped_at_ends = self._total(self._ends)

    def _store(self, gate: Gate) -> None:
        """Store the programs; call this before they are attached.

        Otherwise a check could take them for those of another process. Raises DeliveryError.
        """
        if self._state.gate(self._sandbox) != gate.programs:
            self._state.store_gate(self._sandbox, gate.programs)

    def _attach(self, gate: Gate, installed: InstalledFence, beside: socket.socket) -> None:
        """Attach the gate to the uplinks of a fence, and to no others, with the fence's policy."""
        policy = gate_policy((installed.spec, installed.around))
        cookie = netlink.namespace_cookie(beside)
        uplinks = tuple(Uplink(cookie, each) for each in installed.around.uplink_indexes)
        new = [each for each in uplinks if each not in self._uplinks]
        old = [each for each in self._uplinks if each not in uplinks]
        has_new_policy = self._set(policy)
        self._store(gate)
        if new:
            gate.attach(beside, new, policy)
        self._uplinks, self._installed = uplinks, installed
        for each in old:
            gate.detach(each)
        if new or old or self._is_narrowed or (has_new_policy and not self._is_widened):
            self._stopped = self._reported = self._total(self._uplinks)
        if self.absence is not None:
            self.absence = None
            _log.debug("the last gate is attached", sandbox=self._sandbox)

    def _set(self, policy: bytes) -> bool:
        """Replace the policy of the uplinks; return False if it is the present one."""
        if self._gate is None or policy == self._policy:
            return False
        for uplink in self._uplinks:
            self._gate.set_policy(uplink, policy)
        self._policy = policy
        return True

    def _try(self, work: Callable[[], object]) -> None:
        """Run ``work``; after an error, detach the gate, because its policy may be an old one.

        The error would hide a cancellation if it were raised.
        """
        try:
            work()
        except (DeliveryError, UnsupportedError, OSError) as error:
            self._detach(str(error), is_fault=True)

    def _close(self) -> None:
        self._beside = None
        self._detach("it was detached")
        self._detach_ends(self._ends)

    def _detach(self, absence: str, *, is_fault: bool = False) -> None:
        """Detach the gate, and log the reason unless it is the same as before."""
        uplinks, self._uplinks = self._uplinks, ()
        self._policy, self._installed = b"", None
        self._stopped = self._reported = Count()
        if self._gate is not None:
            for uplink in uplinks:
                self._gate.detach(uplink)
        is_new, self.absence = absence != self.absence, absence
        if is_new and self._beside is not None:
            log = _log.warning if is_fault else _log.info
            log("fence without a last gate", sandbox=self._sandbox, reason=absence)


def _sum(one: Count, other: Count) -> Count:
    return Count(one.packets + other.packets, one.bytes + other.bytes)


def _difference(one: Count, other: Count) -> Count:
    return Count(max(0, one.packets - other.packets), max(0, one.bytes - other.bytes))
