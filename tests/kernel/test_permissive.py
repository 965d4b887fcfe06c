"""A permissive fence: it allows every packet and reports once each that it would refuse."""

from __future__ import annotations

import copy
import dataclasses
import signal
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.spec import DEFAULT_GROUP
from ocsf_nft.flow import KINDS, Key, flow
from ocsf_nft.lab import (
    GATEWAY4,
    GATEWAY_MAC,
    INTERNET4,
    INTERNET6,
    SANDBOX4,
    SANDBOX6,
    ip,
    new_namespace,
)
from ocsf_nft.ocsf.versions import at_version
from ocsf_nft.sources.nflog import Nflog
from ocsf_nft.validation import EventValidator
from tests.kernel import accounts, attempts, command, conftest, far_side, means, packets, tap
from tests.kernel.escapes import ESCAPES
from tests.kernel.packets import ETH_IP, ETH_IP6
from tests.kernel.reading import rest, until_found
from tests.published_versions import PUBLISHED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel

_PORT = 443
#: Guards against waiting forever: a thread may be held up for seconds.
_SECONDS = 60


@pytest.fixture
def permissive(lab: Lab, spec: FenceSpec, state: StateDirectory) -> InstalledFence:
    """Install a permissive fence in the lab, without traffic of the kernel's own."""
    lab.sandbox_namespace.call(_disable_router_solicitations)
    requested = dataclasses.replace(spec, is_permissive=True)
    return installer.install(requested, lab.sandbox_namespace, state, "nflog")


@pytest.fixture
def internet(lab: Lab) -> Iterator[Callable[[int, int], socket.socket]]:
    """Yield a function that opens server sockets on the far side, at addresses of the internet."""
    for address, nodad in ((f"{INTERNET4}/32", ()), (f"{INTERNET6}/128", ("nodad",))):
        ip("-n", lab.gateway, "address", "add", address, "dev", "lo", *nodad)
    lab.gateway_namespace.call(lambda: tap.wait_until_local(INTERNET6))
    opened: list[socket.socket] = []

    def listening(family: int, kind: int) -> socket.socket:
        sock = lab.gateway_namespace.call(lambda: socket.socket(family, kind))
        opened.append(sock)
        sock.settimeout(_SECONDS)
        sock.bind((INTERNET4 if family == socket.AF_INET else INTERNET6, _PORT))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock

    yield listening
    for sock in opened:
        sock.close()


def _disable_router_solicitations() -> None:
    """Stop the kernel's own router solicitations, which would be reported too."""
    for name in ("router_solicitations", "autoconf"):
        with open(f"/proc/sys/net/ipv6/conf/sb0/{name}", "w") as sysctl:  # noqa: PTH123 - procfs
            sysctl.write("0")


def _allowed_by_rule(installed: InstalledFence) -> Counter[str]:
    """Return the kernel's totals of allowed packets by rule. Assert that nothing is refused."""
    totals = accounts.refused_by(installed)
    assert all(name.endswith(":permissive") for name in totals)
    return Counter({name.partition(":")[0]: packets for name, packets in totals.items()})


def _attempted_by_rule(installed: InstalledFence) -> Counter[str]:
    """Return allowed packets by rule, without the kernel's group reports, which come any time."""
    with Counters(installed) as counters:
        reading = counters.read()
    found: Counter[str] = Counter()
    for name, of_rule in reading.rules.items():
        for kind in KINDS:
            for element in accounts.elements_of(of_rule)[kind]:
                what = flow(Key(kind, element.data))
                if not (what.destination or "").startswith("ff02::"):
                    found[name.partition(":")[0]] += element.packets
    return found


def _counts_in_events(events: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """Return the sums of the events' counts by rule and disposition."""
    counts: Counter[tuple[str, str]] = Counter()
    for event in events:
        if event["class_uid"] == 4001:
            counts[event["firewall_rule"]["name"], event["disposition"]] += event["count"]
    return counts


async def test_permissive_fence_allows_logs_and_counts_each_escape_once(
    lab: Lab, permissive: InstalledFence
) -> None:
    wrong: dict[str, str] = {}
    records: list[Record] = []
    async with Nflog(lab.sandbox_namespace, DEFAULT_GROUP) as source:
        with Counters(permissive) as counters, far_side.watch(lab) as far:
            await rest(source)
            for escape in ESCAPES:

                def is_expected(record: Record, escape: Any = escape) -> bool:
                    protocol = record.ethertype if record.protocol is None else record.protocol
                    return (record.rule, protocol, record.uid is not None) == (
                        escape.rule,
                        escape.protocol,
                        escape.is_owned,
                    )

                far.strays()
                if not escape.is_owned:
                    conftest.fresh_budgets(lab.sandbox_namespace)
                lab.sandbox_namespace.call(escape.attempt)
                found = await until_found(source, is_expected)
                records += found
                if not any(map(is_expected, found)):
                    wrong[escape.name] = "not logged"
                if not _eventually(far, escape.protocol):
                    wrong[escape.name] = "held back"
            records += await rest(source)
            ended = counters.read()
    assert not wrong
    assert {record.verdict for record in records} == {"permit"}
    for name, reading in ended.rules.items():
        by_kind = accounts.elements_of(reading).values()
        elements = [element for found in by_kind for element in found]
        assert reading.overflow.packets == 0
        assert sum(element.packets for element in elements) == reading.refused.packets, name
    frames = sum(escape.rule == "link" for escape in ESCAPES)
    # The link's rule logs each frame, but no packet that `egress` has logged.
    assert ended.rules["link:permissive"].refused.packets == frames
    assert sum(record.rule == "link" for record in records) <= frames


def _eventually(far: far_side.FarSide, protocol: int) -> bool:
    end = time.monotonic() + 20
    while True:
        is_last = time.monotonic() > end  # look once more after the wait
        if any(protocol in far_side.protocols(stray) for stray in far.strays()):
            return True
        if is_last:
            return False
        time.sleep(0.002)


def test_permissive_fence_reports_each_escape_as_allowed_and_account_reconciles(
    lab: Lab, permissive: InstalledFence, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    found: list[command.Outcome] = []

    def is_balanced() -> bool:
        found.append(accounts.status(state))
        return found[-1].code == 0

    with command.running(*accounts.options(state, output)) as running:
        for escape in ESCAPES:
            lab.sandbox_namespace.call(escape.attempt)
        accounts.until(is_balanced)
        assert running.stop(signal.SIGTERM)[0] == 0
    assert accounts.status(state).code == 0
    shown = found[-1]
    assert {(each["mode"], each["fence"]) for each in shown.events} == {("permissive",) * 2}
    assert {each["refused"] for each in shown.events} == {0}
    events = accounts.events_of(output)
    counts = _counts_in_events(events)
    assert {disposition for _, disposition in counts} == {"Logged"}
    allowed = _allowed_by_rule(permissive)
    # The kernel's own reports to groups go on after the stop.
    assert allowed - Counter({rule: packets for (rule, _), packets in counts.items()}) <= Counter(
        egress=5
    )
    assert not Counter({rule: packets for (rule, _), packets in counts.items()}) - allowed
    for event in events:
        if event["class_uid"] in {4001, 2004}:
            assert (event["action"], event["disposition"]) == ("Observed", "Logged")
            assert event["message"].startswith("Allowed ")
            assert event["message"].endswith(", because the fence is permissive")
        for version in PUBLISHED:
            downgraded = at_version(copy.deepcopy(event), version)
            assert not [str(fault) for fault in EventValidator(version).faults(downgraded)]


async def _all(source: Nflog, rule: str) -> list[Record]:
    """Return the records up to one of the rule and the remaining ones.

    Those of the kernel's own reports to groups are left out.
    """

    def is_attempt(record: Record) -> bool:
        return not (record.destination or "").startswith("ff02::")

    found = await until_found(source, lambda each: is_attempt(each) and each.rule == rule)
    return list(filter(is_attempt, found + await rest(source)))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ip4", "ip6"])
async def test_allowed_connection_is_one_attempt_from_begin_to_end(
    lab: Lab,
    permissive: InstalledFence,
    internet: Callable[[int, int], socket.socket],
    family: socket.AddressFamily,
) -> None:
    """Its answers, its frames and the packets of its end make no further attempts."""
    server = internet(family, socket.SOCK_STREAM)

    def talk() -> None:
        with socket.create_connection((server.getsockname()[0], _PORT), _SECONDS) as sock:
            sock.sendall(b"question")
            assert sock.recv(100) == b"answer"

    def answer() -> None:
        sock, _ = server.accept()
        with sock:
            sock.settimeout(_SECONDS)
            assert sock.recv(100) == b"question"
            sock.sendall(b"answer")
            assert not sock.recv(100)

    async with Nflog(lab.sandbox_namespace, DEFAULT_GROUP) as source:
        await rest(source)
        before = _attempted_by_rule(permissive)
        far = threading.Thread(target=answer)
        far.start()
        lab.sandbox_namespace.call(talk)
        far.join(_SECONDS)
        assert not far.is_alive()
        found = await _all(source, "egress")
    assert {(each.rule, each.uid, each.protocol) for each in found} == {("egress", 0, 6)}
    assert {each.verdict for each in found} == {"permit"}
    assert set(_attempted_by_rule(permissive) - before) == {"egress"}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ip4", "ip6"])
async def test_udp_query_and_its_answer_are_one_attempt(
    lab: Lab,
    permissive: InstalledFence,
    internet: Callable[[int, int], socket.socket],
    family: socket.AddressFamily,
) -> None:
    server = internet(family, socket.SOCK_DGRAM)

    def ask() -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_SECONDS)
            sock.sendto(b"question", (server.getsockname()[0], _PORT))
            _, asker = server.recvfrom(100)
            server.sendto(b"answer", asker)
            assert sock.recv(100) == b"answer"

    before = _attempted_by_rule(permissive)
    lab.sandbox_namespace.call(ask)
    assert _attempted_by_rule(permissive) - before == Counter(egress=1)


def test_ping_and_its_answer_are_one_attempt(
    lab: Lab, permissive: InstalledFence, internet: Callable[[int, int], socket.socket]
) -> None:
    del internet  # needed only for its addresses: the far kernel answers
    before = _attempted_by_rule(permissive)
    for attempt in (
        means.ping(socket.AF_INET, 1, 8, INTERNET4),
        means.ping(socket.AF_INET6, 58, 128, INTERNET6),
        means.ping(socket.AF_INET, 1, 8, "10.200.0.77"),  # ARP finds no such neighbour
        means.ping(socket.AF_INET6, 58, 128, "fd00:200::77"),
    ):
        lab.sandbox_namespace.call(attempt)
        time.sleep(0.1)
    # The kernel reports the absent neighbour to the sender, through loopback.
    assert _attempted_by_rule(permissive) - before == Counter(egress=4)


@pytest.mark.usefixtures("permissive")
async def test_connection_from_outside_is_allowed_and_reported(lab: Lab) -> None:
    with lab.sandbox_namespace.call(socket.socket) as server:
        server.bind((SANDBOX4, 8080))
        server.listen()
        server.settimeout(_SECONDS)
        async with Nflog(lab.sandbox_namespace, DEFAULT_GROUP) as source:
            await rest(source)
            with lab.gateway_namespace.call(socket.socket) as client:
                client.settimeout(_SECONDS)
                client.connect((SANDBOX4, 8080))
                sock, _ = server.accept()
                sock.close()
                assert not client.recv(1)
            found = await _all(source, "egress")
    assert found[0].rule == "ingress"
    # Packets of the sandbox are reported separately: they could carry data out.
    assert {each.rule for each in found} == {"ingress", "egress"}
    assert {each.verdict for each in found} == {"permit"}


@pytest.fixture
def nested(lab: Lab) -> Iterator[Namespace]:
    """Create a namespace inside the sandbox whose only route goes through the sandbox."""
    name = f"{lab.sandbox}-nested"
    with new_namespace(name) as made:
        made.call(conftest.without_ipv6)
        ip("-n", lab.sandbox, "link", "add", "n0", "type", "veth", "peer", "name", "n1",
           "netns", name)  # fmt: skip
        for namespace, device, address in ((lab.sandbox, "n0", 1), (name, "n1", 2)):
            ip("-n", namespace, "address", "add", f"10.201.0.{address}/24", "dev", device)
            ip("-n", namespace, "link", "set", device, "up")
        ip("-n", name, "route", "add", "default", "via", "10.201.0.1")
        ip("-n", lab.gateway, "route", "add", "10.201.0.0/24", "via", SANDBOX4)
        lab.sandbox_namespace.call(_forward)
        yield made


def _forward() -> None:
    with open("/proc/sys/net/ipv4/ip_forward", "w") as sysctl:  # noqa: PTH123 - procfs
        sysctl.write("1")


def test_packet_from_nested_namespace_is_reported_once_and_answered(
    nested: Namespace,
    permissive: InstalledFence,
    internet: Callable[[int, int], socket.socket],
) -> None:
    server = internet(socket.AF_INET, socket.SOCK_DGRAM)

    def ask() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_SECONDS)
            sock.sendto(b"question", (INTERNET4, _PORT))
            _, asker = server.recvfrom(100)
            server.sendto(b"answer", asker)
            assert sock.recv(100) == b"answer"

    before = _attempted_by_rule(permissive)
    nested.call(ask)
    assert (_attempted_by_rule(permissive) - before)["forward"] == 1
    assert (_attempted_by_rule(permissive) - before).keys() <= {"forward", "egress"}


@pytest.mark.usefixtures("permissive")
async def test_packet_from_macvlan_child_in_nested_namespace_is_reported_at_the_link(
    lab: Lab, nested: Namespace
) -> None:
    """It has a route, but passes no hook of the sandbox's IP stack."""
    ip("-n", lab.sandbox, "link", "add", "link", "sb0", "name", "child", "type", "macvlan")
    ip("-n", lab.sandbox, "link", "set", "child", "netns", f"{lab.sandbox}-nested")
    ip("-n", f"{lab.sandbox}-nested", "address", "add", "10.200.0.9/24", "dev", "child")
    ip("-n", f"{lab.sandbox}-nested", "link", "set", "child", "up")

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"bypass", (GATEWAY4, 53))

    def is_expected(record: Record) -> bool:
        return (record.rule, record.protocol, record.destination) == ("link", 17, GATEWAY4)

    async with Nflog(lab.sandbox_namespace, DEFAULT_GROUP) as source:
        nested.call(send)
        assert any(map(is_expected, await until_found(source, is_expected)))


async def test_raw_frame_with_the_fences_mark_is_reported(
    lab: Lab, permissive: InstalledFence
) -> None:
    packet = packets.ip6(SANDBOX6, INTERNET6, 17, packets.udp(53))

    def send() -> None:
        gateway = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("sb0", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x40000000)
            own = sock.getsockname()[4]
            sock.sendto(packets.frame(gateway, own, ETH_IP6, packet), ("sb0", ETH_IP6))

    before = _attempted_by_rule(permissive)
    lab.sandbox_namespace.call(send)
    assert (_attempted_by_rule(permissive) - before)["link"] == 1


async def test_frame_with_the_fences_mark_forwarded_by_loopback_is_reported(
    lab: Lab, permissive: InstalledFence
) -> None:
    packet = packets.ip4("192.0.2.55", INTERNET4, 17, packets.udp(53))

    def send() -> None:
        _forward()
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("lo", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x40000000)
            sock.send(packets.frame(bytes(6), bytes(6), ETH_IP, packet))

    before = _attempted_by_rule(permissive)
    with far_side.watch(lab) as far:
        lab.sandbox_namespace.call(send)
        assert _eventually(far, 17)
    assert _attempted_by_rule(permissive) - before == {"forward": 1}


def test_change_of_mode_under_traffic_keeps_the_mode_of_each_packet(
    lab: Lab, spec: FenceSpec, state: StateDirectory, permissive: InstalledFence, tmp_path: Path
) -> None:
    """The sums of both modes equal the kernel's, and an enforcing fence lets no packet out."""
    lab.sandbox_namespace.call(conftest.without_ipv6)
    conftest.nft(lab.gateway_namespace, "add table netdev far; add counter netdev far out; "
                 "add chain netdev far ingress "
                 '{ type filter hook ingress device "gw0" priority 0; }; '
                 "add rule netdev far ingress udp dport 443 counter name out")  # fmt: skip
    output = tmp_path / "events.jsonl"
    requested = {False: spec, True: dataclasses.replace(spec, is_permissive=True)}
    with command.running(*accounts.options(state, output)) as running:
        flood = lab.sandbox_namespace.call(
            lambda: attempts.start_attempts(lab.sandbox_namespace, 1000, 1_000_000_000, "flood")
        )
        try:
            accounts.until(lambda: _out(lab) > 0)
            for turn in range(6):
                is_permissive = turn % 2 == 1
                installer.install(requested[is_permissive], lab.sandbox_namespace, state, "nflog")
                if is_permissive:
                    enough = _out(lab) + 5_000
                    accounts.until(lambda: _out(lab) > enough)  # noqa: B023 - called here only
                    continue
                _wait_for_refusals(permissive, 1)  # the sender is past its last allowed packet
                before = _settled(lab)
                _wait_for_refusals(permissive, 5_000)
                if turn == 0:
                    accounts.until(lambda: b'"Enabled"' in output.read_bytes())
                assert _out(lab) == before
        finally:
            flood.kill()
            flood.wait()
        time.sleep(1.5)
        code, errors = running.stop(signal.SIGTERM)
    assert code == 0, errors
    events = accounts.events_of(output)
    totals = accounts.refused_by(permissive)
    assert min(totals["egress"], totals["egress:permissive"]) > 10_000
    counts: Counter[str] = Counter()
    for (rule, disposition), number in _counts_in_events(events).items():
        counts[f"{rule}:permissive" if disposition == "Logged" else rule] += number
    assert counts == totals
    # The operator's change is no loss of records.
    assert not [e for e in events if e.get("activity_name") == "Records Dropped"]
    states = [event["state"] for event in events if event["class_uid"] == 5019]
    assert states[0] == "Permissive"
    assert set(states) == {"Permissive", "Enabled"}
    assert accounts.status(state).code == 0


def _out(lab: Lab) -> int:
    listed = conftest.nft(lab.gateway_namespace, "list", "counter", "netdev", "far", "out")
    return int(listed.partition("packets ")[2].split()[0])


def _settled(lab: Lab) -> int:
    """Return the packets that came out, after the last one has left the veth's queue."""
    found, since = _out(lab), time.monotonic()
    while time.monotonic() - since < 0.3:
        if (now := _out(lab)) != found:
            found, since = now, time.monotonic()
        time.sleep(0.02)
    return found


def _wait_for_refusals(installed: InstalledFence, more: int) -> None:
    """Wait until the kernel has refused so many further packets."""
    enough = accounts.refused_by(installed)["egress"] + more
    accounts.until(lambda: accounts.refused_by(installed)["egress"] >= enough)


def test_first_packet_after_change_of_mode_is_reported_with_its_record(
    lab: Lab, spec: FenceSpec, state: StateDirectory, permissive: InstalledFence, tmp_path: Path
) -> None:
    lab.sandbox_namespace.call(conftest.without_ipv6)
    output = tmp_path / "events.jsonl"
    with command.running(*accounts.options(state, output)) as running:
        installer.install(spec, permissive.namespace, state, "nflog")
        attempts.attempt(lab.sandbox_namespace, 1000, 1, "tcp4")
        accounts.until(lambda: b'"Blocked"' in output.read_bytes())
        assert running.stop(signal.SIGTERM)[0] == 0
    (event,) = (e for e in accounts.events_of(output) if "actor" in e)
    assert (event["count"], event["disposition"]) == (1, "Blocked")
    assert event["src_endpoint"]["port"] > 0
    assert event["status_code"] == "tcp-reset"
