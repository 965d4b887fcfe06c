"""Last gate of fences: a BPF program at the egress of their uplinks (tcx).

The gate judges each frame after all hooks of nftables, as it leaves. So it stops what another chain
has rewritten, what tc redirects, and what an uplink sends that was moved to another namespace. Only
this process can detach it, and the kernel does so when the process ends.

A second program is at the ingress of the host's ends of guarded links. It stops frames whose sender
chose where a later device writes a checksum, which nftables can't match.
"""

from __future__ import annotations

import struct
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence import gate_policy
from ocsf_nft.flow import Count
from ocsf_nft.libbpf import LoadedPrograms
from ocsf_nft.netns import call_beside

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable


_KEY: Final = struct.Struct("=QI4x")  # cookie of the network namespace, index of the interface
_STOPS: Final = struct.Struct("=QQ")


class Uplink(NamedTuple):
    """Interface at which a program is: the cookie of its network namespace, and its index."""

    cookie: int
    ifindex: int


class Gate:
    """Last gate of all fences of a service.

    Needs libbpf, Linux 6.6, and CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN over the initial user
    namespace when it is created; later only CAP_NET_ADMIN and CAP_SYS_ADMIN. All methods block.
    Threads may call them for different uplinks at the same time.
    """

    def __init__(self) -> None:
        """Load the BPF program; raises UnsupportedError if that is not possible."""
        try:
            content = resources.files("ocsf_nft.fence.bpf").joinpath("gate.bpf.o").read_bytes()
        except OSError as error:
            raise UnsupportedError(
                "this installation has no BPF programs: it was built without clang"
            ) from error
        self._programs = LoadedPrograms(content)
        self._links: dict[Uplink, int] = {}

    @property
    def programs(self) -> frozenset[int]:
        """Return the kernel's ids of the BPF programs."""
        return frozenset(map(self._programs.program_id, ("gate", "guarded_end")))

    def close(self) -> None:
        """Detach the gate from all uplinks, and unload it."""
        for uplink in list(self._links):
            self.detach(uplink)
        self._programs.close()

    def attach(self, beside: socket.socket, uplinks: Iterable[Uplink], policy: bytes) -> None:
        """Attach the gate to uplinks in the namespace of ``beside``, with a :func:`gate_policy`.

        Raises UnsupportedError on failure; the gate is at none of them then.
        """
        done: list[Uplink] = []
        try:
            for uplink in uplinks:
                done.append(uplink)
                self.set_policy(uplink, policy)
                self._attach("gate", uplink, beside)
        except BaseException:
            for uplink in done:
                self.detach(uplink)
            raise

    def attach_to_end(self, end: Uplink, beside: socket.socket) -> None:
        """Attach the program for the host's ends to one, in the namespace of ``beside``.

        :meth:`detach` and :meth:`stopped` are for it too. Raises UnsupportedError on failure.
        """
        try:
            # First: a program of the host may send frames on.
            self._attach("guarded_end", end, beside, is_first=True)
        except BaseException:
            self.detach(end)
            raise

    def _attach(
        self, program: str, interface: Uplink, beside: socket.socket, *, is_first: bool = False
    ) -> None:
        self._programs.update_map("stopped", _key(interface), bytes(_STOPS.size))
        attach = self._programs.attach_to_interface
        work = partial(attach, program, interface.ifindex, is_first=is_first)
        self._links[interface] = call_beside(beside, work)

    def set_policy(self, uplink: Uplink, policy: bytes) -> None:
        """Replace the policy of an uplink at once; raises UnsupportedError on failure."""
        if len(policy) != gate_policy.SIZE:
            raise AssertionError("the policy must have the size of struct policy")
        self._programs.update_map("policies", _key(uplink), policy)

    def detach(self, uplink: Uplink) -> None:
        """Detach the program from an uplink or a host's end, if it is attached there."""
        link = self._links.pop(uplink, None)
        if link is not None:
            self._programs.detach(link)
        for name in ("policies", "stopped"):
            self._programs.delete_from_map(name, _key(uplink))

    def stopped(self, uplink: Uplink) -> Count:
        """Return the frames that were stopped at an uplink or a host's end since the attachment."""
        found = self._programs.read_map("stopped", _key(uplink), _STOPS.size)
        return Count() if found is None else Count(*_STOPS.unpack(found))


def _key(uplink: Uplink) -> bytes:
    return _KEY.pack(*uplink)
