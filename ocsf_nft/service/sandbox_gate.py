"""Last gate of one sandbox's fence, which follows the fence's policy."""

from __future__ import annotations

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
    import socket
    from collections.abc import Callable
    from concurrent.futures import Executor

    from ocsf_nft.fence.gate import Gate
    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import InstalledFence, StateDirectory

_log = structlog.get_logger()


class SandboxGate:
    """Last gate of the fence around one network namespace. No method raises an error of the gate.

    Without the gate, the fence stands all the same: then ``absence`` is the reason.
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
        self._uplinks: tuple[Uplink, ...] = ()
        self._policy = b""
        self._installed: InstalledFence | None = None
        #: Frames that the gate had stopped at the last call of :meth:`stopped`, and before it.
        self._stopped = self._reported = Count()
        self._is_widened = False

    async def open(self, installed: InstalledFence, beside: socket.socket) -> None:
        """Attach the gate to the uplinks of a fence, in the network namespace of ``beside``."""
        gate = self._gate
        if gate is None:
            self.absence = "BPF is not available"
        elif installed.spec.profile != "sandbox":
            self.absence = f"a fence of the profile {installed.spec.profile} has none"
        elif not installed.around.pins or not installed.around.macs:
            self.absence = "its uplinks are not known yet, or not Ethernet"
        else:
            self._installed = installed
            await self._try(partial(self._attach, gate, installed, beside))

    async def widen(self, spec: FenceSpec) -> None:
        """Allow also what ``spec`` allows, before the fence is replaced; then call :meth:`follow`.

        So no packet that the new fence allows is stopped.
        """
        now, self._is_widened = self._installed, True
        if now is not None:
            both = (now.spec, now.around), (spec, now.around)
            await self._try(lambda: self._set(gate_policy(*both)))

    async def follow(self, installed: InstalledFence) -> None:
        """Allow what the present fence allows, and nothing else."""
        if self._installed is not None:
            self._installed = installed
            await self._try(partial(self._follow, installed, is_widened=self._is_widened))
            self._is_widened = False

    async def close(self) -> None:
        """Detach the gate."""
        if self._installed is not None:
            self._installed, self.absence = None, "it was detached"
            await run_in_pool(self._pool, self._detach)

    def stopped(self) -> Count:
        """Return the frames that the gate had stopped at the last call, without those before.

        They are one call late: the gate stops what a fence allows that another process has just
        installed, and such frames do not count. Blocks shortly.
        """
        if self._gate is None or self._installed is None:
            return Count()
        last, before = self._stopped, self._reported
        self._stopped, self._reported = self._total(self._gate), last
        return Count(max(0, last.packets - before.packets), max(0, last.bytes - before.bytes))

    def _total(self, gate: Gate) -> Count:
        total = Count()
        for uplink in self._uplinks:
            found = gate.stopped(uplink)
            total = Count(total.packets + found.packets, total.bytes + found.bytes)
        return total

    def _follow(self, installed: InstalledFence, *, is_widened: bool) -> None:
        has_changed = self._set(gate_policy((installed.spec, installed.around)))
        if has_changed and not is_widened and self._gate is not None:
            self._stopped = self._reported = self._total(self._gate)

    async def _try(self, work: Callable[[], object]) -> None:
        """Run ``work``; after an error, detach the gate, because its policy may be an old one."""
        absence = await run_in_pool(self._pool, partial(_error_of, work))
        if absence is not None:
            await self.close()
            _log.warning("fence without a last gate", sandbox=self._sandbox, reason=absence)
        self.absence = absence

    def _attach(self, gate: Gate, installed: InstalledFence, beside: socket.socket) -> None:
        policy = gate_policy((installed.spec, installed.around))
        cookie = netlink.namespace_cookie(beside)
        self._uplinks = tuple(Uplink(cookie, each) for each in installed.around.uplink_indexes)
        # Before it is attached, so that no check takes it for another process's.
        self._state.store_gate(self._sandbox, gate.program)
        gate.attach(beside, self._uplinks, policy)
        self._policy = policy

    def _set(self, policy: bytes) -> bool:
        """Replace the policy; return False if it is the present one."""
        if self._gate is None or policy == self._policy:
            return False
        for uplink in self._uplinks:
            self._gate.set_policy(uplink, policy)
        self._policy = policy
        return True

    def _detach(self) -> None:
        if self._gate is not None:
            for uplink in self._uplinks:
                self._gate.detach(uplink)
        self._uplinks = ()


def _error_of(work: Callable[[], object]) -> str | None:
    """Run ``work``, and return its error, which would hide a cancellation if it were raised."""
    try:
        work()
    except (DeliveryError, UnsupportedError, OSError) as error:
        return str(error)
    return None
