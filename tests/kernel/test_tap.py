"""The fence of a VM on its host: the packets that it allows, and its complete removal."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import AbsentError, FenceError, UnsupportedError
from ocsf_nft.fence import installer, nft, verification
from ocsf_nft.fence.spec import DEFAULT_GROUP
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import INTERNET4, INTERNET6, ip
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import conftest, packets, tap
from tests.kernel.reading import until_found
from tests.kernel.vm_escapes import THROUGH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel

_NAME = "vm-7"
_SIZE = 100_000
#: Guards against waiting forever for what must arrive: a thread may be held up for seconds.
_SECONDS = 60
_METADATA, _METADATA6 = "169.254.169.254", "fd00:ec2::254"
_FORWARDING = [
    Path("/proc/sys/net") / name for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
]
#: A VM next to the first one, on the same host.
_NEXT = "vmtap-1"
_NEXT_GATEWAYS = ("172.16.8.1/29", "fd00:8::1/64")
_NEXT_ADDRESSES = ("172.16.8.2/29", "fd00:8::2/64")


@pytest.fixture
def neighbour(site: tap.Site) -> Iterator[tap.Machine]:
    with tap.machine(site, _NEXT, _NEXT_GATEWAYS, _NEXT_ADDRESSES) as plugged:
        yield plugged


def _spec_of_neighbour(sandbox: str = "vm-8") -> FenceSpec:
    return tap.spec(sandbox, _NEXT, *_NEXT_GATEWAYS)


def _conversation(client: Namespace, server: Namespace, address: str, port: int) -> str:
    """Exchange data over TCP in both directions; return the address that the server sees."""
    with tap.listening(server, address, port) as listener:
        ours = client.call(lambda: socket.create_connection((address, port), _SECONDS))
        theirs, seen = listener.accept()
        with ours, theirs:
            ours.settimeout(_SECONDS)
            theirs.settimeout(_SECONDS)
            for one, other in ((ours, theirs), (theirs, ours)):
                sender = threading.Thread(target=one.sendall, args=(b"x" * _SIZE,))
                sender.start()
                received = 0
                while received < _SIZE:
                    piece = other.recv(_SIZE)
                    assert piece
                    received += len(piece)
                sender.join()
    return str(seen[0])


def _refused(client: Namespace, address: str, port: int) -> None:
    with pytest.raises(TimeoutError):
        client.call(lambda: socket.create_connection((address, port), 0.3)).close()


def _datagrams(
    client: Namespace, server: Namespace, address: str, port: int, size: int
) -> tuple[bytes, str]:
    """Send a datagram and answer it; return the answer and the address that the server saw."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    there = server.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
    here = client.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
    with there, here:
        for sock in (there, here):
            sock.settimeout(_SECONDS)
        there.bind((address, port))
        here.sendto(b"x" * size, (address, port))
        question, seen = there.recvfrom(65535)
        there.sendto(question, seen)
        return here.recv(65535), str(seen[0])


def test_vm_reaches_the_gateways_port_and_the_internet_with_the_hosts_address(
    site: tap.Site, machine: tap.Machine, state: StateDirectory
) -> None:
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    for gateway, own, internet, seen in (
        (tap.GATEWAY4, tap.VM4, INTERNET4, tap.UPLINK4),
        (tap.GATEWAY6, tap.VM6, INTERNET6, tap.UPLINK6),
    ):
        assert _conversation(machine.guest, site.host, gateway, tap.PORT) == own
        assert _conversation(machine.guest, site.internet, internet, 443) == seen
        # Larger than the link's MTU, so in fragments.
        assert _datagrams(machine.guest, site.internet, internet, 53, 4000) == (b"x" * 4000, seen)
        _refused(machine.guest, gateway, 22)
        ping = ["ping", "-c1", f"-W{_SECONDS}", internet]
        machine.guest.call(partial(subprocess.run, ping, capture_output=True, check=True))
    assert verification.verify(_NAME, state).verdict == "as installed"


@pytest.mark.parametrize("internet", [INTERNET4, INTERNET6])
def test_errors_about_a_vms_packets_reach_the_vm(
    site: tap.Site, machine: tap.Machine, state: StateDirectory, internet: str
) -> None:
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    family = socket.AF_INET6 if ":" in internet else socket.AF_INET
    # From the internet, because no socket listens there.
    with machine.guest.call(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(_SECONDS)
        sock.connect((internet, 9))
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)
    # From the host, because its uplink has a smaller MTU than the VM's link.
    # At both ends: the kernel drops packets larger than the MTU of the receiving end.
    for name, device in ((site.host_name, tap.UPLINK), (site.internet_name, tap.INTERNET_END)):
        ip("-n", name, "link", "set", device, "mtu", "1300")
    assert _conversation(machine.guest, site.internet, internet, 443)


@pytest.mark.parametrize(
    ("internet", "vm"), [(INTERNET4, tap.VM4), (INTERNET6, tap.VM6)], ids=["ip4", "ip6"]
)
def test_connection_from_outside_ends_with_the_installation_of_the_fence(
    site: tap.Site, machine: tap.Machine, state: StateDirectory, internet: str, vm: str
) -> None:
    tap.routes_back(site)
    site.host.call(lambda: [path.write_text("1") for path in _FORWARDING])
    # Another table enables conntrack, so that it knows which side opened the connection.
    conftest.load(
        site.host,
        "table inet tracked { chain forward { "
        "type filter hook forward priority 0; ct state established counter; }; }\n",
    )
    with tap.listening(machine.guest, vm, 22) as listener:
        theirs = site.internet.call(
            lambda: socket.create_connection((vm, 22), _SECONDS, source_address=(internet, 0))
        )
        ours, _ = listener.accept()
        with ours, theirs:
            theirs.settimeout(_SECONDS)
            ours.send(b"before")
            assert theirs.recv(9) == b"before"
            installer.install(tap.spec(_NAME), site.host, state, "nflog")
            for one, other in ((ours, theirs), (theirs, ours)):
                one.send(b"after")
                other.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    other.recv(9)


@pytest.mark.parametrize(("gateway", "vm"), [(tap.GATEWAY4, tap.VM4), (tap.GATEWAY6, tap.VM6)])
def test_host_accepts_errors_only_about_its_replies(
    site: tap.Site, machine: tap.Machine, state: StateDirectory, gateway: str, vm: str
) -> None:
    end = f"[{gateway}]" if ":" in gateway else gateway
    spec = dataclasses.replace(tap.spec(_NAME), exceptions=(exception(f"udp:{end}:53"),))
    installer.install(spec, site.host, state, "nflog")
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    server = site.host.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
    client = machine.guest.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
    with server, client:
        server.settimeout(_SECONDS)
        server.bind((gateway, 53))
        client.sendto(b"x", (gateway, 53))
        _, seen = server.recvfrom(1)
        client.close()
        server.connect(seen)
        server.send(b"reply to a closed socket")
        with pytest.raises(ConnectionRefusedError):
            server.recv(1)
    with site.host.call(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(0.3)
        sock.connect((vm, 9))
        sock.send(b"begun by the host")
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_vm_with_one_ip_version_sends_nothing_of_the_other(
    site: tap.Site, machine: tap.Machine, state: StateDirectory
) -> None:
    before = tap.settings(site.host)
    installer.install(tap.spec(_NAME, tap.DEVICE, tap.SUBNETS[0]), site.host, state, "nflog")
    changed = {path for path, value in tap.settings(site.host).items() if before[path] != value}
    assert changed
    assert not any(path.startswith("/proc/sys/net/ipv6/") for path in changed)
    assert _conversation(machine.guest, site.internet, INTERNET4, 443) == tap.UPLINK4
    _refused(machine.guest, tap.GATEWAY6, tap.PORT)
    installer.remove(_NAME, state)
    installer.install(tap.spec(_NAME, tap.DEVICE, tap.SUBNETS[1]), site.host, state, "nflog")
    assert _conversation(machine.guest, site.internet, INTERNET6, 443) == tap.UPLINK6
    _refused(machine.guest, tap.GATEWAY4, tap.PORT)


def test_vm_reaches_the_operators_exceptions(
    site: tap.Site, machine: tap.Machine, state: StateDirectory
) -> None:
    for address in (f"{_METADATA}/32", f"{_METADATA6}/128"):
        ip("-n", site.internet_name, "address", "add", address, "dev", "lo")
    spec = dataclasses.replace(
        tap.spec(_NAME),
        exceptions=tuple(
            map(
                exception,
                (f"udp:{tap.GATEWAY4}:53", f"tcp:{_METADATA}:80", f"tcp:[{_METADATA6}]:80"),
            )
        ),
    )
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    _refused(machine.guest, _METADATA, 80)
    installer.install(spec, site.host, state, "nflog")
    assert _conversation(machine.guest, site.internet, _METADATA, 80) == tap.UPLINK4
    assert _conversation(machine.guest, site.internet, _METADATA6, 80) == tap.UPLINK6
    assert _datagrams(machine.guest, site.host, tap.GATEWAY4, 53, 4000)[1] == tap.VM4
    _refused(machine.guest, _METADATA, 81)


@pytest.mark.parametrize(
    ("family", "gateway", "container"),
    [("ip", tap.GATEWAY4, INTERNET4), ("ip6", tap.GATEWAY6, INTERNET6)],
)
def test_gateways_port_may_be_forwarded_to_a_container(
    site: tap.Site,
    machine: tap.Machine,
    state: StateDirectory,
    family: str,
    gateway: str,
    container: str,
) -> None:
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    conftest.load(
        site.host,
        f"table {family} published {{ chain prerouting {{ "
        f"type nat hook prerouting priority dstnat; {family} daddr {gateway} "
        f"tcp dport {{ {tap.PORT}, 8080 }} dnat to {container}; }}; }}\n",
    )
    with tap.listening(site.internet, container, tap.PORT) as listener:
        end = (gateway, tap.PORT)
        machine.guest.call(lambda: socket.create_connection(end, _SECONDS)).close()
        listener.accept()[0].close()
    with tap.listening(site.internet, container, 8080):
        _refused(machine.guest, gateway, 8080)


def test_removal_restores_the_host_byte_for_byte(
    site: tap.Site, machine: tap.Machine, state: StateDirectory
) -> None:
    conftest.load(
        site.host,
        "table ip others { chain forward { type filter hook forward priority 0; policy drop; "
        'iifname "vmtap-*" accept; oifname "vmtap-*" accept; }; }\n',
    )
    ruleset = conftest.nft(site.host, "-a", "list", "ruleset")
    before = tap.settings(site.host)
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    assert tap.settings(site.host) != before
    assert _conversation(machine.guest, site.internet, INTERNET4, 443) == tap.UPLINK4
    assert _conversation(machine.guest, site.internet, INTERNET6, 443) == tap.UPLINK6
    installer.remove(_NAME, state)
    assert conftest.nft(site.host, "-a", "list", "ruleset") == ruleset
    assert tap.settings(site.host) == before
    assert [path.name for path in state.path.iterdir()] == [".install.lock"]


def test_two_vms_on_a_host_do_not_affect_each_other(
    site: tap.Site, machine: tap.Machine, neighbour: tap.Machine, state: StateDirectory
) -> None:
    before = tap.settings(site.host)
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    assert _conversation(machine.guest, site.internet, INTERNET4, 443) == tap.UPLINK4
    first_tables = _tables(site.host)
    with _changes(site.host) as changes:
        installer.install(_spec_of_neighbour(), site.host, state, "nflog")
        assert _conversation(neighbour.guest, site.internet, INTERNET4, 443) == tap.UPLINK4
        both = _tables(site.host)
        installer.install(
            dataclasses.replace(_spec_of_neighbour(), group=77), site.host, state, "nflog"
        )
        installer.remove("vm-8", state)
        assert set(changes()) == {f"ocsf_nft_{_NEXT}", ""}
    assert {name: both[name] for name in first_tables} == first_tables == _tables(site.host)
    # The first VM still needs the settings that both needed.
    assert _conversation(machine.guest, site.internet, INTERNET6, 443) == tap.UPLINK6
    installer.remove(_NAME, state)
    assert tap.settings(site.host) == before


def _tables(namespace: Namespace) -> dict[str, str]:
    """Return the listing of each table, with handles, without counts and set elements."""
    names = conftest.nft(namespace, "list", "tables").splitlines()
    return {
        name: conftest.nft(namespace, "-a", "-s", "-t", "list", *name.split()) for name in names
    }


_NFNLGRP_NFTABLES = 7  # include/uapi/linux/netfilter/nfnetlink.h
_NFT_SUBSYSTEM, _NEWGEN = 10, 15


@contextlib.contextmanager
def _changes(namespace: Namespace) -> Iterator[Callable[[], list[str]]]:
    """Record nftables' notifications: the table of each change, and "" for each transaction.

    `nft monitor` 1.1.3 crashes on chains without a name.
    """
    sock = namespace.call(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        sock.bind((0, 1 << _NFNLGRP_NFTABLES - 1))
        sock.setblocking(False)

        def notified() -> list[str]:
            found: list[str] = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    found += _tables_of(sock.recv(1 << 20))
            return found

        yield notified


def _tables_of(datagram: bytes) -> Iterator[str]:
    while datagram:
        length, kind = struct.unpack_from("=IH", datagram)
        assert kind >> 8 == _NFT_SUBSYSTEM
        if kind & 0xFF == _NEWGEN:
            yield ""
        else:  # the table's name is the first attribute of every message
            size, attribute = struct.unpack_from("=HH", datagram, 20)
            assert attribute == 1
            yield datagram[24 : 20 + size].rstrip(b"\0").decode()
        datagram = datagram[(length + 3) & ~3 :]


async def test_vm_does_not_reach_another_vm(
    site: tap.Site, machine: tap.Machine, neighbour: tap.Machine, state: StateDirectory
) -> None:
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    installer.install(_spec_of_neighbour(), site.host, state, "nflog")
    async with Nflog(site.host, DEFAULT_GROUP) as source:
        for address, sandbox, rule in (
            ("172.16.8.2", "vm-8", "vm-ingress"),
            ("fd00:8::2", "vm-8", "vm-ingress"),
            ("172.16.8.1", _NAME, "vm-input"),
            ("fd00:8::1", _NAME, "vm-input"),
        ):
            neighbour.received.clear()

            def is_expected(record: Record, address: str = address) -> bool:
                return record.destination == address

            with pytest.raises(TimeoutError):
                machine.guest.call(
                    partial(socket.create_connection, (address, tap.PORT), 0.1)
                ).close()
            (record, *_) = filter(is_expected, await until_found(source, is_expected))
            assert (record.sandbox, record.rule, record.uid) == (sandbox, rule, None)
            assert not any(_is_tcp(frame) for frame in neighbour.received)


def _is_tcp(frame: bytes) -> bool:
    return 6 in {frame[23], frame[20]}


def test_replaced_fence_keeps_its_counts_and_learns_the_link_address_again(
    site: tap.Site, state: StateDirectory
) -> None:
    other_mac = b"\2\0\0\0\7\x88"
    with tap.silent_machine(site) as machine:
        installer.install(tap.spec(_NAME), site.host, state, "nflog")
        packet = THROUGH["a datagram"][14:]
        machine.send_ip(packet)
        machine.send_ip(packet, other_mac)
        assert _refused_frames(site.host) == 1
        installer.install(dataclasses.replace(tap.spec(_NAME), group=77), site.host, state, "nflog")
        machine.send_ip(packet, other_mac)
        assert _refused_frames(site.host) == 1
        machine.send_ip(packet)
        assert _refused_frames(site.host) == 2
        # With a configured address only that address is accepted, and it is part of the policy.
        installer.install(tap.spec(_NAME, mac=tap.VM_MAC.hex(":")), site.host, state, "nflog")
        machine.send_ip(packet, other_mac)
        assert _refused_frames(site.host) == 3
        machine.send_ip(packet)
        assert _refused_frames(site.host) == 3
        assert verification.verify(_NAME, state).verdict == "as installed"
        table = ("netdev", f"ocsf_nft_{tap.DEVICE}", "macs")
        conftest.nft(site.host, "flush", "set", *table)
        assert verification.verify(_NAME, state).verdict == "differs"


def test_fence_learns_no_link_address_from_a_refused_frame(
    site: tap.Site, state: StateDirectory
) -> None:
    """Otherwise the sender of the first such frame could lock the VM out."""
    other = b"\2\0\0\0\7\x88"
    datagram = THROUGH["a datagram"][14:]
    with tap.silent_machine(site) as machine:
        installer.install(tap.spec(_NAME), site.host, state, "nflog")
        tagged = struct.pack("!HH", 5, packets.ETH_IP) + datagram
        machine.send(packets.frame(tap.HOST_MAC, other, 0x8100, tagged))
        machine.send(packets.frame(other, other, packets.ETH_IP, datagram))
        machine.send_ip(datagram, b"\3\0\0\0\7\x88")
        assert _refused_frames(site.host) == 3
        machine.send_ip(datagram)
        assert _refused_frames(site.host) == 3


def _refused_frames(namespace: Namespace) -> int:
    listed = conftest.nft(
        namespace, "list", "counter", "netdev", f"ocsf_nft_{tap.DEVICE}", "refused_vm-link"
    )
    return int(listed.split("packets ")[1].split()[0])


def test_table_of_an_exited_vm_is_replaced_and_table_of_a_running_vm_is_not(
    site: tap.Site, state: StateDirectory
) -> None:
    before = tap.settings(site.host)
    with tap.silent_machine(site):
        installer.install(tap.spec(_NAME), site.host, state, "nflog")
        with pytest.raises(FenceError, match=_NAME):
            installer.install(tap.spec("vm-9"), site.host, state, "nflog")
        assert verification.verify(_NAME, state).verdict == "as installed"
    found = verification.verify(_NAME, state)
    assert (found.verdict, tap.DEVICE in found.difference) == ("differs", True)
    with tap.machine(site) as machine:
        found = verification.verify(_NAME, state)
        assert (found.verdict, "created again" in found.difference) == ("differs", True)
        with _changes(site.host) as changes:
            installer.install(tap.spec("vm-9"), site.host, state, "nflog")
            assert changes().count("") == 1
        assert state.read(_NAME) is None
        assert verification.verify("vm-9", state).verdict == "as installed"
        # As after a run that was killed before it stored a record.
        state.delete("vm-9")
        installer.install(tap.spec("vm-10"), site.host, state, "nflog")
        assert _conversation(machine.guest, site.internet, INTERNET4, 443) == tap.UPLINK4
    installer.remove("vm-10", state)
    assert conftest.nft(site.host, "list", "ruleset") == ""
    after = tap.settings(site.host)
    assert {path: before[path] for path in after} == after


@pytest.mark.usefixtures("machine")
def test_fence_without_record_is_removed_by_its_device(
    site: tap.Site, state: StateDirectory
) -> None:
    before = tap.settings(site.host)
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    state.delete(_NAME)
    with pytest.raises(AbsentError):
        installer.remove(_NAME, state, site.host)
    installer.remove(_NAME, state, site.host, tap.DEVICE)
    assert conftest.nft(site.host, "list", "ruleset") == ""
    assert tap.settings(site.host) == before


@pytest.mark.usefixtures("machine")
def test_vm_that_moves_to_another_device_leaves_no_table(
    site: tap.Site, neighbour: tap.Machine, state: StateDirectory
) -> None:
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    installer.install(_spec_of_neighbour(_NAME), site.host, state, "nflog")
    assert set(_tables(site.host)) == {
        f"table inet ocsf_nft_{_NEXT}",
        f"table netdev ocsf_nft_{_NEXT}",
    }
    assert _conversation(neighbour.guest, site.internet, INTERNET4, 443) == tap.UPLINK4


@pytest.mark.usefixtures("machine")
def test_bridged_device_is_not_fenced(site: tap.Site, state: StateDirectory) -> None:
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    ip("-n", site.host_name, "link", "add", "br0", "type", "bridge")
    ip("-n", site.host_name, "link", "set", tap.DEVICE, "master", "br0")
    found = verification.verify(_NAME, state)
    assert (found.verdict, "bridge" in found.difference) == ("differs", True)
    with pytest.raises(FenceError, match="nomaster"):
        installer.install(tap.spec(_NAME), site.host, state, "nflog")


@pytest.mark.kernel_log  # each log transport is tried
@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("without", "module"), [("ct", "nf_conntrack"), ("masq", "nft_masq"), ("nat", "nft_chain_nat")]
)
def test_missing_nat_module_is_reported_in_one_sentence(
    site: tap.Site,
    state: StateDirectory,
    shim: Path,
    monkeypatch: pytest.MonkeyPatch,
    without: str,
    module: str,
) -> None:
    before = tap.settings(site.host)
    environment = {**nft._ENVIRONMENT, "LD_PRELOAD": str(shim), "WITHOUT": without}
    monkeypatch.setattr(nft, "_ENVIRONMENT", environment)
    with pytest.raises(UnsupportedError, match=module) as refused:
        installer.install(tap.spec(_NAME), site.host, state)
    assert "\n" not in str(refused.value)
    assert conftest.nft(site.host, "list", "ruleset") == ""
    assert tap.settings(site.host) == before


def test_replacement_under_a_flood_lets_nothing_through(
    site: tap.Site, state: StateDirectory
) -> None:
    """Replace an existing policy, or install after a removal: neither lets a packet through."""
    conftest.load(
        site.internet,
        "table netdev far { counter out { }; chain ingress { "
        'type filter hook ingress device "in0" priority 0; '
        f"ip daddr {{ {INTERNET4}, {_METADATA} }} udp dport 9 counter name out; }}; }}\n",
    )
    datagram = struct.pack("!HHHH", 4000, 9, 8, 0)
    spoofed = packets.ip4("172.16.7.9", INTERNET4, 17, datagram)
    to_metadata = packets.ip4(tap.VM4, _METADATA, 17, datagram)
    sent = 0
    with tap.silent_machine(site) as machine:
        stop = threading.Event()

        def flood() -> None:
            nonlocal sent
            while not stop.is_set():
                for packet in (spoofed, to_metadata):
                    machine.send_ip(packet)
                    sent += 1

        flooder = threading.Thread(target=flood)
        flooder.start()
        try:
            for group in range(1, 11):
                spec = dataclasses.replace(tap.spec(_NAME), group=group)
                installer.install(spec, site.host, state, "nflog")
                if group % 3 == 0:
                    installer.remove(_NAME, state)
        finally:
            stop.set()
            flooder.join()
        assert sent > 1000
        assert "packets 0 " in conftest.nft(
            site.internet, "list", "counter", "netdev", "far", "out"
        )
        # The counter counts packets that arrive.
        site.host.call(lambda: _send_to(INTERNET4, 9))
        assert "packets 1 " in conftest.nft(
            site.internet, "list", "counter", "netdev", "far", "out"
        )


def _send_to(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", (address, port))
