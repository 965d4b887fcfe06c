"""Recorder of the campaign's real seeds: answers of the kernel and of nft in throw-away namespaces.

Run as root: ``python -m tests.fuzz.record``. It writes ``corpus/recorded.jsonl`` again. A line has
a kind and a content in hexadecimal.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft import lab as laboratory
from ocsf_nft import netlink, nfnetlink, rtnetlink
from ocsf_nft.attribution import sock_diag
from ocsf_nft.attribution.bpf_capture import Capture, cookie
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence import installer, rule_counters
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint, exception
from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, PROXY_PORT, Lab
from tests.fuzz.seeds import RECORDED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.netns import Namespace

#: Larger datagrams are left out: mutations of small ones are faster and find the same.
_MOST_BYTES: Final = 1500
_MOST_OF_A_KIND: Final = 12
#: A program with a path that all hosts have.
_PYTHON: Final = "/usr/bin/python3"
_RECEIVE_BYTES: Final = 1 << 16
_RTM_GETROUTE: Final = 26

Records = dict[str, list[bytes]]


def main() -> None:
    """Record all kinds and write the file."""
    found: Records = {}
    with laboratory.throwaway() as lab, tempfile.TemporaryDirectory() as folder:
        spec = FenceSpec(
            sandbox="lab",
            proxies=(endpoint(f"{GATEWAY4}:{PROXY_PORT}"), endpoint(f"[{GATEWAY6}]:{PROXY_PORT}")),
            exceptions=(exception("tcp:10.9.0.0/16:443"), exception("udp:[2001:db8:1::5]:53")),
        )
        with _notices(lab.sandbox_namespace, found):
            state = StateDirectory(Path(folder) / "state")
            installer.install(spec, lab.sandbox_namespace, state, "nflog")
            _nft(lab.sandbox_namespace, *["add", "rule", "inet", "ocsf_nft", "output", "accept"])
        _calls(lab, found)
        _queries(spec, lab, found)
        _links_and_routes(lab, found)
        _sockets(lab, found)
        for arguments in (("-j", "list", "ruleset"), ("-a", "list", "ruleset")):
            _add(found, f"nft {arguments[0]}", _nft(lab.sandbox_namespace, *arguments))
    _process_files(found)
    with RECORDED.open("w") as file:
        for kind, contents in sorted(found.items()):
            for content in contents:
                file.write(json.dumps({"kind": kind, "hex": content.hex()}) + "\n")


def _add(found: Records, kind: str, content: bytes) -> None:
    contents = found.setdefault(kind, [])
    pieces = _pieces(content) if kind.startswith("netlink") else [content]
    for piece in pieces:
        if piece not in contents and len(contents) < _MOST_OF_A_KIND:
            contents.append(piece)


def _pieces(datagram: bytes) -> list[bytes]:
    """Split a large datagram between its messages."""
    if len(datagram) <= _MOST_BYTES:
        return [datagram]
    pieces, start, at = [], 0, 0
    while at + 16 <= len(datagram):
        length = int.from_bytes(datagram[at : at + 4], sys.byteorder)
        end = at + length + -length % 4
        if end - start > _MOST_BYTES and at > start:
            pieces.append(datagram[start:at])
            start = at
        at = end
    pieces.append(datagram[start:])
    return [piece for piece in pieces if len(piece) <= _MOST_BYTES]


def _nft(namespace: Namespace, *arguments: str) -> bytes:
    command = ["nft", *arguments]
    done = namespace.call(lambda: subprocess.run(command, capture_output=True, check=True))
    return done.stdout


@contextlib.contextmanager
def _notices(namespace: Namespace, found: Records) -> Iterator[None]:
    """Record the kernel's notices about changes of nftables during the ``with`` body."""
    with namespace.call(nfnetlink.subscribe) as sock:
        yield
        with contextlib.suppress(BlockingIOError):
            while True:
                _add(found, "netlink nft notice", sock.recv(_RECEIVE_BYTES))


class _Recorder:
    """Netlink socket that records each received datagram."""

    def __init__(self, sock: socket.socket, kind: str, found: Records) -> None:
        self._sock = sock
        self._kind = kind
        self._found = found

    def recv(self, size: int) -> bytes:
        received = self._sock.recv(size)
        _add(self._found, self._kind, received)
        return received

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


def _queries(spec: FenceSpec, lab: Lab, found: Records) -> None:
    """Record the answers to the queries of tables, counters and elements."""

    def inside() -> None:
        with nfnetlink.Nftables() as nftables:
            recorder = _Recorder(nftables._socket, "netlink nft answer", found)
            nftables._socket = recorder  # type: ignore[assignment] # the same methods
            for table in spec.tables:
                nftables.table(*table)
            nftables.generation()
            for rule in ("egress", "ingress"):
                rule_counters.RuleReader(nftables, "inet", "ocsf_nft", rule).read()

    lab.sandbox_namespace.call(inside)


def _links_and_routes(lab: Lab, found: Records) -> None:
    def dump(kind: int, payload: bytes, name: str) -> None:
        for reply in netlink.request(netlink.NETLINK_ROUTE, kind, payload, dump=True):
            _add(found, name, reply)

    def inside() -> None:
        dump(rtnetlink.RTM_GETLINK, rtnetlink.ALL_LINKS, "netlink link")
        for family in (socket.AF_INET, socket.AF_INET6):
            dump(_RTM_GETROUTE, bytes((family,)) + bytes(11), "netlink route")

    subprocess.run(
        [
            "ip",
            "-n",
            lab.sandbox,
            "route",
            "add",
            "10.77.0.0/16",
            "nexthop",
            "via",
            GATEWAY4,
            "nexthop",
            "via",
            "10.200.0.77",
        ],
        check=True,
    )
    lab.sandbox_namespace.call(inside)


def _sockets(lab: Lab, found: Records) -> None:
    """Record descriptions of sockets, notices of closed ones, and tables in /proc/net."""
    namespace = lab.sandbox_namespace
    with (
        namespace.call(sock_diag._subscribe) as notices,
        namespace.call(sock_diag._open_diag) as diag,
    ):
        for family in (socket.AF_INET, socket.AF_INET6):
            opened = [
                namespace.call(partial(socket.socket, family, kind))
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
            ]
            for sock, protocol in zip(
                opened, (socket.IPPROTO_UDP, socket.IPPROTO_TCP), strict=True
            ):
                sock.bind(("", 4242))
                if protocol == socket.IPPROTO_TCP:
                    sock.listen()
                identity = sock_diag._IDENTITY.pack(4242, 0, b"", b"")
                payload = sock_diag._request(family, protocol, 0xFFFFFFFF, identity, 0)
                flags = netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP
                diag.send(netlink.message(20, flags, payload, 1))
                datagram = diag.recv(_RECEIVE_BYTES)
                for kind, body in netlink.messages(memoryview(datagram)):
                    if kind == 20:
                        _add(found, "netlink socket", bytes(body))
                diag.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while diag.recv(_RECEIVE_BYTES):
                        pass
                diag.settimeout(1)
            for name in ("tcp", "tcp6", "udp", "udp6", "packet"):
                table = namespace.call(Path(f"/proc/thread-self/net/{name}").read_bytes)
                _add(found, "proc net", table)
            for sock in opened:
                sock.close()
        time.sleep(0.2)
        with contextlib.suppress(BlockingIOError):
            while True:
                _add(found, "netlink closed socket", notices.recv(_RECEIVE_BYTES))


def _calls(lab: Lab, found: Records) -> None:
    """Make attempts; record the samples of the BPF programs, if the kernel allows them."""
    namespace = lab.sandbox_namespace
    with contextlib.ExitStack() as stack:
        capture: Capture | None = None
        with contextlib.suppress(UnsupportedError):
            capture = stack.enter_context(Capture())
            capture.watch(cookie(namespace))
        program = (
            "import socket\n"
            f"both = (socket.AF_INET, '{INTERNET4}'), (socket.AF_INET6, '{INTERNET6}')\n"
            "for family, address in both:\n"
            "    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
            "        with socket.socket(family, kind) as sock:\n"
            "            sock.settimeout(1)\n"
            "            try:\n"
            "                sock.connect((address, 443)); sock.send(b'x')\n"
            "            except OSError: pass\n"
        )
        namespace.call(lambda: subprocess.run([_PYTHON, "-c", program], cwd="/", check=True))
        if capture is not None:
            for kind, ring in zip(("process", "call"), capture._rings, strict=False):
                for sample in ring.read(64):
                    # Other processes of this host are not recorded.
                    if kind == "call" or b"\0import socket" in sample:
                        _add(found, f"bpf {kind}", sample)


def _process_files(found: Records) -> None:
    """Record the files of a process in /proc."""
    with subprocess.Popen(["sleep", "60"], cwd="/", env={}) as child:
        time.sleep(0.1)
        folder = Path(f"/proc/{child.pid}")
        for name in ("stat", "status", "uid_map", "fdinfo/0"):
            _add(found, f"proc {name}", (folder / name).read_bytes())
        child.kill()


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("record as root: the kernel answers no other user")
    main()
