"""Name server for tests, over UDP and TCP on a loopback address of its own."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from ocsf_nft.delivery.name_resolver import ResolverFiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_SOA = "ns.test. admin.test. 1 3600 600 86400 {ttl}"


@dataclass
class NameServer:
    """Server whose answers a test changes at any time."""

    address: str
    #: Addresses of each name; a name without an entry does not exist.
    zone: dict[str, list[str]] = field(default_factory=dict)
    #: Names that are aliases of others.
    aliases: dict[str, str] = field(default_factory=dict)
    ttl: int = 1
    mode: Literal["answer", "fail", "silent", "garbage"] = "answer"
    #: Types of addresses to which the mode applies; None for all.
    only: str | None = None
    #: Numbers of questions, by name and type.
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)

    def answer(self, wire: bytes, *, most: int = 65535) -> bytes | None:
        query = dns.message.from_wire(wire)
        (question,) = query.question
        name, kind = question.name.to_text().rstrip("."), dns.rdatatype.to_text(question.rdtype)
        self.asked[name, kind] += 1
        if self.mode != "answer" and self.only in {None, kind}:
            if self.mode == "silent":
                return None
            if self.mode == "garbage":
                return wire[:2] + random.randbytes(40)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if self.mode == "fail" and self.only in {None, kind}:
            response.set_rcode(dns.rcode.SERVFAIL)
            return response.to_wire()
        owner = name
        while owner in self.aliases:
            alias = self.aliases[owner]
            response.answer.append(
                dns.rrset.from_text(f"{owner}.", 3600, "IN", "CNAME", f"{alias}.")
            )
            owner = alias
        found = [each for each in self.zone.get(owner, []) if (":" in each) == (kind == "AAAA")]
        if found:
            response.answer.append(dns.rrset.from_text(f"{owner}.", self.ttl, "IN", kind, *found))
        else:
            if owner not in self.zone:
                response.set_rcode(dns.rcode.NXDOMAIN)
            soa = _SOA.format(ttl=self.ttl)
            response.authority.append(dns.rrset.from_text("test.", 3600, "IN", "SOA", soa))
        with contextlib.suppress(dns.exception.TooBig):
            return response.to_wire(max_size=most)
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response.to_wire()


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if (found := self._server.answer(data, most=512)) is not None:
            self._transport.sendto(found, addr)


@contextlib.asynccontextmanager
async def name_server(zone: dict[str, list[str]] | None = None) -> AsyncIterator[NameServer]:
    """Run a server in the test's event loop, at port 53 of a random loopback address."""
    address = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(2, 254)}"
    server = NameServer(address, zone or {})

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError), contextlib.closing(writer):
            (size,) = struct.unpack("!H", await reader.readexactly(2))
            if (found := server.answer(await reader.readexactly(size))) is not None:
                writer.write(struct.pack("!H", len(found)) + found)
                await writer.drain()

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Protocol(server), local_addr=(address, 53)
    )
    try:
        async with await asyncio.start_server(serve, address, 53):
            yield server
    finally:
        transport.close()


def resolver_files(folder: Path, *servers: NameServer, hosts: str = "") -> ResolverFiles:
    """Write the files of a resolver that asks ``servers``, and return their paths."""
    files = ResolverFiles(folder / "resolv.conf", folder / "hosts")
    text = "".join(f"nameserver {each.address}\n" for each in servers)
    files.resolv_conf.write_text(text, "ascii")
    files.hosts.write_text(hosts, "utf-8")
    return files
