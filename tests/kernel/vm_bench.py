"""A bench for the rules of a VM's fence: frames of the VM, and the verdict on each."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import socket
from typing import TYPE_CHECKING, Final

from ocsf_nft.fence import installer
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import ip
from tests.kernel import conftest, outcomes, packets, tap
from tests.kernel.outcomes import Outcomes
from tests.kernel.tap import DEVICE, GATEWAY4, GATEWAY6, UPLINK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.fence.values import Destination
    from tests.kernel.outcomes import Counter

SANDBOX: Final = "vm"
TABLE: Final = f"ocsf_nft_{DEVICE}"
#: A port of the gateway that accepts datagrams.
DNS: Final = 53
#: Addresses of metadata services, and the only port of them that the operator allows.
METADATA4, METADATA6, METADATA_PORT = "169.254.169.254", "fd00:ec2::254", 8080
_PACKET_OUTGOING: Final = 4
#: The tables that count a packet at each hook after the fence has accepted it.
_OBSERVER: Final = f"""
table inet observer {{
    counter through {{ }}
    counter host {{ }}
    counter vm {{ }}
    counter uplink {{ }}
    counter other {{ }}
    chain forward {{
        type filter hook forward priority 1000
        iifname {DEVICE} counter name through
        oifname {DEVICE} counter name vm
        iifname {UPLINK} oifname {UPLINK} counter name other
    }}
    chain input {{
        type filter hook input priority 1000
        iifname {DEVICE} counter name host
        iifname {UPLINK} counter name uplink
    }}
}}
table netdev observer {{
    counter link {{ }}
    chain ingress {{
        type filter hook ingress device {DEVICE} priority 1000
        counter name link
    }}
}}
"""
COUNTED: Final[Mapping[str, Counter]] = {
    "link": ("netdev", "observer", "link"),
    **{
        rule: ("netdev" if rule == "vm-link" else "inet", TABLE, f"refused_{rule}")
        for rule in ("vm-link", "vm-forward", "vm-input", "vm-ingress")
    },
    "through": ("inet", "observer", "through"),
    "host": ("inet", "observer", "host"),
    "vm": ("inet", "observer", "vm"),
    "uplink": ("inet", "observer", "uplink"),
    "other": ("inet", "observer", "other"),
}


_EXCEPTIONS: Final = (
    exception(f"udp:{GATEWAY4}:{DNS}"),
    exception(f"udp:[{GATEWAY6}]:{DNS}"),
    exception(f"tcp:{METADATA4}:{METADATA_PORT}"),
    exception(f"tcp:[{METADATA6}]:{METADATA_PORT}"),
)


class VmBench(Outcomes):
    """A fenced VM without traffic of its own, on a host with an uplink."""

    def __init__(self, site: tap.Site, machine: tap.Machine, *, is_permissive: bool) -> None:
        super().__init__(site.host, outcomes.of_mode(COUNTED, is_permissive=is_permissive))
        self.site = site
        self.machine = machine
        self._uplink = site.internet.call(_capture_socket)

    def close(self) -> None:
        self._uplink.close()
        super().close()

    def sent(
        self,
        kind: int,
        payload: bytes,
        *,
        to: bytes = tap.HOST_MAC,
        source: bytes = tap.VM_MAC,
        tag: bytes = b"",
    ) -> str:
        """Send a frame as the VM and return the verdict on it."""
        frame = to + source + tag + kind.to_bytes(2, "big") + payload
        return self.outcome(lambda: self.machine.send(frame))

    def routed(self, packet: bytes) -> str:
        """Send an IP packet as the VM; return the verdict without that of the link."""
        kind = packets.ETH_IP if packet[0] >> 4 == 4 else packets.ETH_IP6
        found = self.sent(kind, packet)
        assert found.startswith("link"), found
        return found.removeprefix("link").strip()

    def arrives(self, packet: bytes) -> str:
        """Send an IP packet from the internet and return the verdict on it."""
        kind = packets.ETH_IP if packet[0] >> 4 == 4 else packets.ETH_IP6
        mac = self.site.host.call(lambda: outcomes.mac_of(UPLINK))
        frame = packets.frame(mac, b"\x02\0\0\0\0\xfe", kind, packet)
        send = outcomes.send_frame
        return self.outcome(lambda: self.site.internet.call(lambda: send(frame, "in0")))

    def left(self) -> list[bytes]:
        """Return the frames that have left by the uplink so far."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self._uplink.recvfrom(65535)
                if address[2] != _PACKET_OUTGOING:
                    found.append(frame)
        return found


@contextlib.contextmanager
def bench(
    state: StateDirectory,
    *,
    is_permissive: bool = False,
    is_strict: bool = False,
    exceptions: tuple[Destination, ...] = _EXCEPTIONS,
) -> Iterator[VmBench]:
    """Fence a VM on a host; nothing answers on its uplink."""
    spec = dataclasses.replace(
        tap.spec(SANDBOX, is_strict=is_strict),
        is_permissive=is_permissive,
        exceptions=exceptions,
    )
    with tap.site() as site, tap.silent_machine(site) as machine:
        conftest.load(
            site.internet,
            "table netdev sink { chain ingress { "
            "type filter hook ingress device in0 priority 0; policy drop; }; }\n",
        )
        for next_hop in tap.NEXT_HOPS:
            ip("-n", site.host_name, "neigh", "replace", next_hop, "lladdr", "02:00:00:00:00:fe",
               "dev", UPLINK)  # fmt: skip
        for address in (tap.VM4, tap.VM6):
            ip("-n", site.host_name, "neigh", "replace", address, "lladdr", tap.VM_MAC.hex(":"),
               "dev", DEVICE)  # fmt: skip
        site.host.call(outcomes.take_any_source)
        installer.install(spec, site.host, state, "nflog")
        conftest.load(site.host, _OBSERVER)
        made = VmBench(site, machine, is_permissive=is_permissive)
        try:
            made.quiet()
            yield made
        finally:
            made.close()


def _capture_socket() -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind(("in0", 3))
    sock.setblocking(False)
    return sock


def sources(frames: list[bytes], protocol: int) -> list[str]:
    """Return the sources of the packets of a protocol among frames."""
    found = []
    for packet in (frame[14:] for frame in frames):
        if packet[0] >> 4 == 4 and packet[9] == protocol:
            found.append(socket.inet_ntop(socket.AF_INET, packet[12:16]))
        elif packet[0] >> 4 == 6 and packet[6] == protocol:
            found.append(socket.inet_ntop(socket.AF_INET6, packet[8:24]))
    return found


def source_port(frame: bytes, source: str, protocol: int) -> int | None:
    """Return the source port of a frame that has this source and protocol."""
    packet = frame[14:]
    is_ip4 = packet[0] >> 4 == 4
    found = packet[9] if is_ip4 else packet[6]
    address = packet[12:16] if is_ip4 else packet[8:24]
    if found != protocol or address != ipaddress.ip_address(source).packed:
        return None
    start = 20 if is_ip4 else 40
    return int.from_bytes(packet[start : start + 2], "big")
