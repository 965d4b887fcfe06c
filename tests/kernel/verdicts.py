"""A bench for the rules of a fence: packets of any sender, and the verdict on each.

nftables makes the packets without an owner. In `output` it copies a packet of root (`dup`). On a
link it forwards a frame that arrives on another link (`fwd`). So tests can send any packet through
the rules for packets of the kernel.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft import lab as laboratory
from ocsf_nft.fence import installer
from ocsf_nft.lab import GATEWAY4, GATEWAY6, GATEWAY_MAC, ip
from tests.kernel import conftest, packets
from tests.kernel.outcomes import (
    SO_MARK,
    Counter,
    Outcomes,
    mac_of,
    of_mode,
    send_frame,
    take_any_source,
)
from tests.kernel.users import CAP_NET_RAW, as_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

UPLINK: Final = "sb0"
#: A link to a nested namespace.
NESTED: Final = "n0"
#: Link addresses of groups, which :meth:`Bench.unowned_frame` may send to.
GROUP_MAC, BROADCAST_MAC = b"\x03\0\0\0\xaa\0", b"\xff" * 6
NESTED4, NESTED6 = "10.201.0.2", "fd00:201::2"
HOST4, HOST6 = "10.201.0.1", "fd00:201::1"
#: The options in a packet's mark: no owner, bypass the chain `output`, and the IPv6 header length.
_UNOWNED, _PAST_OUTPUT, _SMALL_LENGTH, _LARGE_LENGTH = 1, 2, 4, 8
_DEVICES: Final = (UPLINK, NESTED)
_IPV6_HDRINCL: Final = 36
#: The counters that may count a packet, by the label of the verdict.
_COUNTED: Final[Mapping[str, Counter]] = {
    "egress": ("inet", "ocsf_nft", "refused_egress"),
    "forward": ("inet", "ocsf_nft", "refused_forward"),
    "ingress": ("inet", "ocsf_nft", "refused_ingress"),
    "link": ("netdev", "ocsf_nft", "refused_link"),
    "out": ("netdev", "observer", "got_out"),
    "in": ("inet", "observer", "came_in"),
    "loop": ("inet", "observer", "looped"),
    "reset": ("inet", "observer", "answered_rst"),
    "error": ("inet", "observer", "answered_icmp"),
}
#: The tables that count a packet after the fence has accepted it.
_OBSERVER: Final = """
table inet observer {
    counter came_in { }
    counter looped { }
    counter answered_rst { }
    counter answered_icmp { }
    chain input {
        type filter hook input priority 1000
        iif != lo counter name came_in drop
        ip dscp 4 counter name looped drop
        ip6 dscp 4 counter name looped drop
    }
    chain output {
        type filter hook output priority 1000
        meta skuid >= 0 accept
        tcp flags & rst == rst counter name answered_rst
        icmp type 3 icmp code 13 counter name answered_icmp
        icmpv6 type 1 icmpv6 code 1 counter name answered_icmp
    }
}
"""
#: The fence's chain has the last priority. Of two chains with it, the first one runs last.
_LINK_OBSERVER: Final = """
table netdev observer {
    counter got_out { }
    chain egress {
        type filter hook egress devices = { sb0, n0 } priority 2147483647
        counter name got_out
    }
}
"""


class Bench(Outcomes):
    """A fenced sandbox with a link out and a link to a nested namespace."""

    def __init__(self, lab: Lab, nested: Namespace, installed: InstalledFence) -> None:
        super().__init__(
            lab.sandbox_namespace, of_mode(_COUNTED, is_permissive=installed.spec.is_permissive)
        )
        self.lab = lab
        self.installed = installed
        self._nested = nested
        self._sandbox = lab.sandbox_namespace
        self._macs = {device: self._sandbox.call(partial(mac_of, device)) for device in _DEVICES}

    def owned(
        self,
        packet: bytes,
        device: str = UPLINK,
        *,
        past_output: bool = False,
        uid: int = 0,
        mark: int = 0,
    ) -> None:
        """Send an IP packet by a user's raw socket that is bound to a device."""
        mark |= _PAST_OUTPUT * past_output
        self._as_user(uid, lambda: send_raw(packet, device, mark))

    def unowned(
        self,
        packet: bytes,
        device: str = UPLINK,
        *,
        past_output: bool = False,
        is_length_too_small: bool = False,
        is_length_too_large: bool = False,
    ) -> None:
        """Send an IP packet without an owning socket."""
        mark = _UNOWNED | _PAST_OUTPUT * past_output
        mark |= _SMALL_LENGTH * is_length_too_small | _LARGE_LENGTH * is_length_too_large
        self._sandbox.call(lambda: send_raw(packet, device, mark))

    def frame(
        self, kind: int, payload: bytes, device: str = UPLINK, *, uid: int = 0, mark: int = 0
    ) -> None:
        """Send a frame by a user's packet socket."""
        frame = packets.frame(_gateway(), self._macs[device], kind, payload)
        self._as_user(uid, lambda: send_frame(frame, device, mark))

    def mac(self, device: str = UPLINK) -> bytes:
        """Return the link address of a device of the sandbox."""
        return self._macs[device]

    def looped(self, packet: bytes, *, uid: int = 0, mark: int = 0) -> None:
        """Send an IP packet on loopback, by a user's raw socket."""
        self._as_user(uid, lambda: send_raw(_seen_on_loopback(packet), "lo", mark))

    def unowned_frame(
        self,
        kind: int,
        payload: bytes,
        device: str = UPLINK,
        *,
        pad: bool = False,
        tag: bytes = b"",
        source: bytes | None = None,
        to: bytes | None = None,
    ) -> None:
        """Send a frame without an owner and without a route, by default from the device's address.

        The kernel moves a VLAN tag from the frame to its metadata (packet(7)). On the link out,
        ``to`` may be :data:`GROUP_MAC` or the broadcast address.
        """
        if to is None:
            to = bytes((2, 0, 0, 0, 0xAA, _DEVICES.index(device)))
        frame = to + (source or self.mac(device)) + tag + struct.pack("!H", kind) + payload
        frame = frame.ljust(60 if pad else 0, b"\0")
        self.lab.gateway_namespace.call(lambda: send_frame(frame, "x1"))

    def arrives(self, packet: bytes) -> None:
        """Deliver an IP packet to the sandbox on the link out."""
        frame = packets.frame(self._macs[UPLINK], _gateway(), _kind(packet), packet)
        self.lab.gateway_namespace.call(lambda: send_frame(frame, self.lab.gateway_device))

    def from_nested(self, packet: bytes) -> None:
        """Deliver an IP packet to the sandbox from the nested namespace."""
        frame = packets.frame(self._macs[NESTED], b"\x02\0\0\0\0\x09", _kind(packet), packet)
        self._nested.call(lambda: send_frame(frame, "n1"))

    def on_loopback(self, packet: bytes) -> None:
        """Deliver an IP packet on loopback, sent by a packet socket."""
        frame = packets.frame(bytes(6), bytes(6), _kind(packet), _seen_on_loopback(packet))
        self._sandbox.call(lambda: send_frame(frame, "lo"))

    def _as_user(self, uid: int, work: Callable[[], None]) -> None:
        self._sandbox.call(as_user(uid, work, capabilities=frozenset({CAP_NET_RAW})))


@contextlib.contextmanager
def bench(spec: FenceSpec, state: StateDirectory) -> Iterator[Bench]:
    """Fence a temporary sandbox, with packet makers before the fence and observers after it."""
    with laboratory.throwaway() as lab, _nested(lab) as nested:
        lab.sandbox_namespace.call(_forward)
        lab.sandbox_namespace.call(take_any_source)
        conftest.load(lab.sandbox_namespace, _LINK_OBSERVER)
        installed = installer.install(spec, lab.sandbox_namespace, state, "nflog")
        _more_links(lab)
        conftest.load(lab.sandbox_namespace, _OBSERVER + _craft())
        conftest.load(lab.gateway_namespace, _sink(lab.gateway_device))
        conftest.load(nested, _sink("n1"))
        accept = f"insert rule inet ocsf_nft output meta mark & {_PAST_OUTPUT} != 0 accept"
        conftest.nft(lab.sandbox_namespace, accept)
        made = Bench(lab, nested, installed)
        try:
            made.quiet()
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def _nested(lab: Lab) -> Iterator[Namespace]:
    name = f"{lab.sandbox}-nested"
    with laboratory.new_namespace(name) as nested:
        ip("-n", lab.sandbox, "link", "add", NESTED, "type", "veth", "peer", "name", "n1",
           "netns", name)  # fmt: skip
        for namespace, device, own4, own6 in (
            (lab.sandbox, NESTED, HOST4, HOST6),
            (name, "n1", NESTED4, NESTED6),
        ):
            ip("-n", namespace, "address", "add", f"{own4}/24", "dev", device)
            ip("-n", namespace, "address", "add", f"{own6}/64", "dev", device, "nodad")
            ip("-n", namespace, "link", "set", device, "up")
        yield nested


def _forward() -> None:
    """Enable forwarding and unlimited ICMP errors in the calling thread's namespace."""
    for name, value in (
        ("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1"), ("ipv4/icmp_ratelimit", "0"),
        ("ipv4/icmp_msgs_per_sec", "100000"), ("ipv4/icmp_msgs_burst", "100000"),
        ("ipv6/icmp/ratelimit", "0"),
    ):  # fmt: skip
        Path("/proc/sys/net", name).write_text(value, encoding="ascii")


def _more_links(lab: Lab) -> None:
    """Add a link that the fence doesn't know, and a route to an address behind each other link."""
    sandbox = ("-n", lab.sandbox)
    ip(*sandbox, "link", "add", "x0", "type", "veth", "peer", "name", "x1", "netns", lab.gateway)
    ip(*sandbox, "link", "set", "x0", "up")
    ip("-n", lab.gateway, "link", "set", "x1", "up")
    for number, device in enumerate(_DEVICES):
        for family, next_hop, target in (
            ("-4", f"192.0.2.{10 + number}", f"198.18.0.{number}"),
            ("-6", f"fe80::a{number}", f"2001:db8:d::{number}"),
        ):
            ip(*sandbox, family, "route", "add", target, "via", next_hop, "dev", device, "onlink")
            ip(*sandbox, "neigh", "add", next_hop, "lladdr", GATEWAY_MAC, "dev", device)
    # For sockets that are bound to the link:
    for family, next_hop in (("-4", "192.0.2.11"), ("-6", "fe80::a1")):
        way = ("via", next_hop, "dev", NESTED, "metric", "9999", "onlink")
        ip(*sandbox, family, "route", "add", "default", *way)
    for device, addresses in (
        (UPLINK, (GATEWAY4, GATEWAY6)),
        (NESTED, (NESTED4, NESTED6, GATEWAY4)),
    ):
        for address in addresses:
            ip(*sandbox, "neigh", "replace", address, "lladdr", GATEWAY_MAC, "dev", device)


def _craft() -> str:
    """Return tables that make packets without an owner."""
    dup = {
        family: "".join(
            f'oifname "{device}" dup to {target}{number} device "{device}" drop\n'
            for number, device in enumerate(_DEVICES)
        )
        for family, target in (("ip", "198.18.0."), ("ip6", "2001:db8:d::"))
    }
    forward = "".join(
        f'ether daddr 02:00:00:00:aa:{number:02x} fwd to "{device}"\n'
        for number, device in enumerate(_DEVICES)
    )
    forward += "".join(
        f'ether daddr {to.hex(":")} ether type != ip6 fwd to "{UPLINK}"\n'
        for to in (GROUP_MAC, BROADCAST_MAC)
    )
    chains = "".join(
        f"""
        table {family} craft {{
            chain output {{
                type filter hook output priority -1000
                meta mark & {_UNOWNED} == {_UNOWNED} meta skuid >= 0 jump unowned
            }}
            chain unowned {{
                {dup[family]}
            }}
        }}
        """
        for family in ("ip", "ip6")
    )
    return f"""
        {chains}
        table ip6 lies {{
            chain output {{
                type filter hook output priority -999
                meta mark & {_SMALL_LENGTH} != 0 ip6 length set 24
                meta mark & {_LARGE_LENGTH} != 0 ip6 length set 41
            }}
        }}
        table netdev craft {{
            chain ingress {{
                type filter hook ingress device x0 priority 0
                {forward}
            }}
        }}
        """


def _sink(device: str) -> str:
    """Return a table that drops incoming packets, so that a namespace answers nothing."""
    return (
        "table netdev sink { chain ingress { "
        f"type filter hook ingress device {device} priority 0; policy drop; }}; }}\n"
    )


def send_raw(packet: bytes, device: str, mark: int = 0) -> None:
    """Send an IP packet by a raw socket of the calling thread's namespace."""
    is_ip4 = packet[0] >> 4 == 4
    family = socket.AF_INET if is_ip4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        if device != "lo":  # a packet to the namespace itself reaches it anyway
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        if not is_ip4:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
        to = packet[16:20] if is_ip4 else packet[24:40]
        with contextlib.suppress(PermissionError):  # refused by the fence, or dropped by `craft`
            sock.sendto(packet, (socket.inet_ntop(family, to), 0))


def _seen_on_loopback(packet: bytes) -> bytes:
    """Return the packet with the traffic class that the observer on loopback counts."""
    if packet[0] >> 4 == 6:
        return b"\x61\0" + packet[2:]
    length = 4 * (packet[0] & 15)
    header = packet[:1] + b"\x10" + packet[2:10] + b"\0\0" + packet[12:length]
    total = struct.pack("!H", packets.checksum(header))
    return header[:10] + total + header[12:] + packet[length:]


def _gateway() -> bytes:
    return bytes.fromhex(GATEWAY_MAC.replace(":", ""))


def _kind(packet: bytes) -> int:
    return packets.ETH_IP if packet[0] >> 4 == 4 else packets.ETH_IP6
