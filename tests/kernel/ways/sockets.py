"""Ways of a user without capabilities: sockets of every kind."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.kernel.ways import tools
from tests.kernel.ways.variant import (
    DEVICE,
    INTERNET4,
    INTERNET6,
    PROXY_PORT,
    WEB_PORT,
    Register,
    Seat,
)

if TYPE_CHECKING:
    from collections.abc import Callable

VARIANTS: Final = Register("sockets", "unprivileged")
_add = VARIANTS.add

_IPPROTO_MPTCP: Final = 262
_MSG_FASTOPEN, _MSG_ZEROCOPY = 0x20000000, 0x4000000
_TCP_FASTOPEN_CONNECT: Final = 30
_UDP_SEGMENT: Final = 103
_SO_ZEROCOPY: Final = 60
_IP_UNICAST_IF: Final = 50
_IPV6_FLOWLABEL_MGR: Final = 32
_MCAST_JOIN_SOURCE_GROUP: Final = 46


def _udp4() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _udp6() -> socket.socket:
    return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)


def _bound(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, DEVICE.encode())
    return sock


@_add("sends data in the SYN of TCP Fast Open.")
def tcp_fast_open(seat: Seat) -> None:
    with socket.socket() as sock, tools.refused():
        # A timeout of Python's would make the socket non-blocking, and leave the data behind.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("=qq", 1, 0))
        sock.sendto(seat.payload, _MSG_FASTOPEN, (INTERNET4, WEB_PORT))


@_add("connects lazily: the first write sends SYN and data (TCP_FASTOPEN_CONNECT).")
def tcp_fast_open_connect(seat: Seat) -> None:
    with socket.socket(socket.AF_INET6) as sock, tools.refused():
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 1)
        sock.settimeout(1)
        sock.connect((INTERNET6, WEB_PORT))
        sock.sendall(seat.payload)


@_add("opens a connection of Multipath TCP.")
def multipath_tcp(seat: Seat) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, _IPPROTO_MPTCP) as sock, tools.refused():
        sock.settimeout(1)
        sock.connect((INTERNET4, WEB_PORT))
        sock.sendall(seat.payload)


@_add("sends urgent data on a TCP connection.")
def tcp_urgent(seat: Seat) -> None:
    with socket.socket() as sock, tools.refused():
        sock.settimeout(1)
        sock.connect((INTERNET4, WEB_PORT))
        sock.send(seat.payload, socket.MSG_OOB)


@_add("sends a file on a TCP connection (sendfile).")
def sendfile(seat: Seat) -> None:
    with socket.socket() as sock, tempfile.TemporaryFile() as file, tools.refused():
        file.write(seat.payload)
        file.flush()
        sock.settimeout(1)
        sock.connect((INTERNET4, WEB_PORT))
        os.sendfile(sock.fileno(), file.fileno(), 0, len(seat.payload))


@_add("moves a pipe's pages into a UDP socket (splice).")
def splice(seat: Seat) -> None:
    reader, writer = os.pipe()
    os.write(writer, seat.payload)
    with _udp4() as sock, tools.refused():
        sock.connect((INTERNET4, 53))
        os.splice(reader, sock.fileno(), len(seat.payload))


@_add("sends without a copy (MSG_ZEROCOPY).")
def zerocopy(seat: Seat) -> None:
    with _udp4() as sock, tools.refused():
        sock.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
        sock.sendto(seat.payload, _MSG_ZEROCOPY, (INTERNET4, 53))


@_add("lets the kernel cut one write into many datagrams (UDP_SEGMENT).")
def udp_segmentation(seat: Seat) -> None:
    with _udp4() as sock, tools.refused():
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, len(seat.payload))
        sock.sendto(seat.payload * 20, (INTERNET4, WEB_PORT))


@_add("does the same over IPv6.")
def udp6_segmentation(seat: Seat) -> None:
    with _udp6() as sock, tools.refused():
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, len(seat.payload))
        sock.sendto(seat.payload * 20, (INTERNET6, WEB_PORT))


@_add("sends a datagram larger than the MTU over IPv6.")
def udp6_fragments(seat: Seat) -> None:
    with _udp6() as sock, tools.refused():
        sock.sendto(seat.payload * 200, (INTERNET6, 53))


@_add("connects the UDP socket and writes to it.")
def connected_udp(seat: Seat) -> None:
    with _udp4() as sock, tools.refused():
        sock.connect((INTERNET4, WEB_PORT))
        sock.send(seat.payload)


@_add("sends from an IPv6 socket to an IPv4 address (::ffff:0:0/96).")
def mapped_address(seat: Seat) -> None:
    tools.udp(seat, f"::ffff:{INTERNET4}")


@_add("binds the socket to the link (SO_BINDTODEVICE).")
def bound_to_the_link(seat: Seat) -> None:
    tools.udp(seat, sock=_bound(_udp4()))


@_add("chooses the link by IP_UNICAST_IF.")
def unicast_interface(seat: Seat) -> None:
    sock = _udp4()
    index = struct.pack("!I", socket.if_nametoindex(DEVICE))
    sock.setsockopt(socket.IPPROTO_IP, _IP_UNICAST_IF, index)
    tools.udp(seat, sock=sock)


@_add("chooses the link and the source by ancillary data (IP_PKTINFO).")
def packet_information(seat: Seat) -> None:
    index = socket.if_nametoindex(DEVICE)
    found = struct.pack("=i4s4s", index, socket.inet_aton(seat.own4), bytes(4))
    with _udp4() as sock, tools.refused():
        sock.sendmsg([seat.payload], [(socket.IPPROTO_IP, 8, found)], 0, (INTERNET4, 53))


def _loopback_on_the_link(seat: Seat, to: str) -> None:
    tools.udp(seat, to, sock=_bound(_udp6() if ":" in to else _udp4()))


VARIANTS.append(
    "sends to ::1 by a socket that is bound to the link.",
    partial(_loopback_on_the_link, to="::1"), "unprivileged", "loopback6 on the link",
)  # fmt: skip


@_add("sends a broadcast to everybody.")
def limited_broadcast(seat: Seat) -> None:
    sock = _udp4()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    tools.udp(seat, "255.255.255.255", sock=sock)


@_add("sends a broadcast of the subnet to the proxy's port.")
def subnet_broadcast(seat: Seat) -> None:
    sock = _udp4()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    tools.udp(seat, f"{seat.subnet4}.255", PROXY_PORT, sock=sock)


def _group(seat: Seat, to: str, port: int) -> None:
    if ":" in to:
        sock = _udp6()
        index = socket.if_nametoindex(DEVICE)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    else:
        sock = _udp4()
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(seat.own4))
    tools.udp(seat, to, port, sock=sock)


for _name, _to, _port in (
    ("all hosts", "224.0.0.1", 9),
    ("multicast dns", "224.0.0.251", 5353),
    ("service discovery", "239.255.255.250", 1900),
    ("all nodes", "ff02::1", 9),
    ("multicast dns over ip6", "ff02::fb", 5353),
    ("site multicast", "ff05::7", 9),
    ("an embedded group", "ff7e:140:2001:db8::7", 9),
):
    VARIANTS.append(
        f"sends a datagram to the group {_to}.",
        partial(_group, to=_to, port=_port), "unprivileged", f"group {_name}",
    )  # fmt: skip


@_add("reports membership of a group, with chosen sources (IGMPv3).", is_short=True)
def igmp_sources(seat: Seat) -> None:
    with _udp4() as sock:
        for source in (seat.address, "192.0.2.1"):
            option = b"".join(map(socket.inet_aton, ("232.1.2.3", seat.own4, source)))
            sock.setsockopt(socket.IPPROTO_IP, 39, option)  # IP_ADD_SOURCE_MEMBERSHIP
        time.sleep(0.3)


@_add("reports membership of a local group, with chosen sources (IGMP).", is_short=True)
def igmp_group(seat: Seat) -> None:
    with _udp4() as sock:
        option = b"".join(map(socket.inet_aton, ("239.3.2.1", seat.own4, seat.address)))
        sock.setsockopt(socket.IPPROTO_IP, 39, option)
        time.sleep(0.3)


@_add("reports membership of a group, with chosen sources (MLDv2).")
def mld_sources(seat: Seat) -> None:
    def address(text: str) -> bytes:
        packed = socket.inet_pton(socket.AF_INET6, text)
        return struct.pack("=HHI", socket.AF_INET6, 0, 0) + packed + bytes(104)

    index = struct.pack("=I4x", socket.if_nametoindex(DEVICE))
    with _udp6() as sock:
        option = index + address("ff35::7") + address(seat.address6)
        sock.setsockopt(socket.IPPROTO_IPV6, _MCAST_JOIN_SOURCE_GROUP, option)
        time.sleep(0.3)


@_add("joins a group whose address is the payload (MLD).")
def mld_group(seat: Seat) -> None:
    group = b"\xff\x05" + bytes(8) + seat.token
    with _udp6() as sock:
        index = struct.pack("=I", socket.if_nametoindex(DEVICE))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + index)
        time.sleep(0.3)


def _echo(seat: Seat, to: str) -> None:
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    protocol, kind = (58, 128) if ":" in to else (1, 8)
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock, tools.refused():
        sock.sendto(struct.pack("!BBHHH", kind, 0, 0, 0, 1) + seat.payload, (to, 0))


@_add("sends an echo request with data to the proxy's address.")
def ping_of_the_proxy(seat: Seat) -> None:
    _echo(seat, seat.gateway4)


@_add("sends an echo request with data to the proxy's IPv6 address.")
def ping6_of_the_proxy(seat: Seat) -> None:
    _echo(seat, seat.gateway6)


@_add("sends an echo request with data to all nodes of the link.")
def ping_of_all_nodes(seat: Seat) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, 58) as sock, tools.refused():
        index = struct.pack("=I", socket.if_nametoindex(DEVICE))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sock.sendto(struct.pack("!BBHHH", 128, 0, 0, 0, 1) + seat.payload, ("ff02::1", 0))


@_add("sends to an IPv6 address of the link that is the payload, so that the kernel asks for it.")
def solicited_address(seat: Seat) -> None:
    tools.udp(seat, f"{seat.subnet6}:{seat.token.hex(':', 2)}")
    time.sleep(0.05)


@_add("does the same with a link-local address.")
def solicited_link_local_address(seat: Seat) -> None:
    host = seat.token.hex(":", 2)
    with _udp6() as sock, tools.refused():
        sock.sendto(b"x", (f"fe80::{host}", 9, 0, socket.if_nametoindex(DEVICE)))
        time.sleep(0.05)


@_add("sends to an address that is the payload.", is_short=True)
def destination_is_the_payload(seat: Seat) -> None:
    tools.udp(seat, seat.address)


@_add("connects to an IPv6 address that is the payload.")
def destination6_is_the_payload(seat: Seat) -> None:
    with socket.socket(socket.AF_INET6) as sock, tools.refused():
        sock.settimeout(0.1)
        sock.connect((seat.address6, WEB_PORT))


@_add("connects to the proxy from a foreign IPv6 address that is the payload (IPV6_FREEBIND).")
def source6_is_the_payload(seat: Seat) -> None:
    with socket.socket(socket.AF_INET6) as sock, tools.refused():
        sock.setsockopt(socket.IPPROTO_IPV6, tools.IPV6_FREEBIND, 1)
        sock.bind((seat.address6, 0))
        sock.settimeout(0.1)
        sock.connect((seat.gateway6, PROXY_PORT))


@_add("sends itself a datagram from a foreign address: the kernel's error quotes it there.")
def error_that_quotes(seat: Seat) -> None:
    with _udp6() as sock, tools.refused():
        sock.setsockopt(socket.IPPROTO_IPV6, tools.IPV6_FREEBIND, 1)
        sock.bind((INTERNET6, 0))
        sock.sendto(seat.payload, (seat.own6, 9))


@_add("connects to itself from an address that is the payload: the reset goes there.")
def reset_to_the_payload(seat: Seat) -> None:
    with socket.socket(socket.AF_INET6) as sock, tools.refused():
        sock.setsockopt(socket.IPPROTO_IPV6, tools.IPV6_FREEBIND, 1)
        sock.bind((seat.address6, 0))
        sock.settimeout(0.1)
        sock.connect((seat.own6, 9))


@_add("puts the payload into IPv4 options of a packet to the proxy (record route).", is_short=True)
def ip_options(seat: Seat) -> None:
    with socket.socket() as sock, tools.refused():
        route = b"\x44\x0c\x0d\x03" + seat.short + bytes(4)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
        sock.settimeout(0.1)
        sock.connect((seat.gateway4, PROXY_PORT))


@_add("puts the payload into a segment routing header of a packet to the proxy.")
def segment_routing_header(seat: Seat) -> None:
    addresses = [socket.inet_pton(socket.AF_INET6, each) for each in (seat.gateway6, seat.address6)]
    header = struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + addresses[1] + addresses[0]
    with socket.socket(socket.AF_INET6) as sock, tools.refused():
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, header)
        sock.settimeout(0.1)
        sock.connect((seat.address6, PROXY_PORT))


@_add("sends a datagram to the proxy's port over IPv6.")
def udp6_to_the_proxy(seat: Seat) -> None:
    tools.udp(seat, seat.gateway6, PROXY_PORT)


@_add("connects to another port of the proxy's host over IPv6.")
def tcp6_to_another_port(seat: Seat) -> None:
    tools.tcp(seat, seat.gateway6, WEB_PORT)


@_add("connects to the link-local address of the proxy's host.")
def link_local_address_of_the_proxy(seat: Seat) -> None:
    with socket.socket(socket.AF_INET6) as sock, tools.refused():
        sock.settimeout(1)
        address = "fe80::aa:ff:fe00:1"
        sock.connect((address, PROXY_PORT, 0, socket.if_nametoindex(DEVICE)))
        sock.sendall(seat.payload)


@_add("sends from a socket that another process has made (SCM_RIGHTS).")
def passed_descriptor(seat: Seat) -> None:
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        with _udp4() as sock:
            socket.send_fds(theirs, [b"x"], [sock.fileno()])
        os._exit(0)
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.wait()
    tools.udp(seat, sock=socket.socket(fileno=descriptors[0]))


@_add("sends from a process whose parent has exited.")
def orphan(seat: Seat) -> None:
    if os.fork() == 0:
        if os.fork() == 0:
            tools.udp(seat, port=123)
        os._exit(0)
    os.wait()
    time.sleep(0.1)


@_add("sends with the smallest time to live, so that a router's error returns.")
def small_ttl(seat: Seat) -> None:
    sock = _udp4()
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
    tools.udp(seat, sock=sock)


@_add("uses a type of service and a priority of its own.")
def type_of_service(seat: Seat) -> None:
    sock = _udp4()
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 6)
    tools.udp(seat, sock=sock)


@_add("asks for a cloud's metadata.")
def metadata(seat: Seat) -> None:
    with socket.socket() as sock, tools.refused():
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 0)
        sock.settimeout(0.2)
        sock.connect(("169.254.169.254", 80))
    tools.udp(seat, "169.254.169.254", 80)


@_add("sends the payload to the proxy, as the policy allows.")
def payload_to_the_proxy(seat: Seat) -> None:
    tools.to_proxy(seat)


def _variants_of_port() -> tuple[tuple[str, Callable[[Seat], None]], ...]:
    return (
        ("port 0", lambda seat: tools.udp(seat, port=1)),
        ("quic", lambda seat: tools.udp(seat, INTERNET6, 443)),
        ("ntp", lambda seat: tools.udp(seat, INTERNET6, 123)),
        ("class e", lambda seat: tools.udp(seat, "240.0.0.1")),
        ("6to4 relay", lambda seat: tools.udp(seat, "2002:cb00:7107::1")),
        ("nat64", lambda seat: tools.udp(seat, "64:ff9b::cb00:7107")),
    )


for _name, _run in _variants_of_port():
    VARIANTS.append(f"sends a datagram: {_name}.", _run, "unprivileged", f"udp {_name}")
