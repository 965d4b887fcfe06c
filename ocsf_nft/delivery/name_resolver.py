"""Resolver of host names for the fences of a service, in the process that talks to the network.

A name in the hosts file wins. Other names are asked of the name servers in ``resolv.conf``, with
A and AAAA at the same time. Every name is absolute: search domains are not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.errors import UnsupportedError, reason_of

if TYPE_CHECKING:
    import dns.asyncresolver

#: Kinds of addresses, by the version of IP.
_TYPES: Final = {4: "A", 6: "AAAA"}
#: Time for an answer, and for that of one server while there are others.
_SECONDS: Final = 4.0
_SERVER_SECONDS: Final = 1.5
#: Time to live of a name in the hosts file, in seconds.
_HOSTS_TTL: Final = 60
#: Longest part of the hosts file that is read, and most addresses in an answer for one kind.
_HOSTS_BYTES: Final = 1 << 20
MAX_ADDRESSES: Final = 256
#: Names that are asked at the same time.
_MAX_LOOKUPS: Final = 64


@dataclass(frozen=True, slots=True)
class ResolverFiles:
    """Files that configure the resolver, as in resolver(5) and hosts(5)."""

    resolv_conf: Path = Path("/etc/resolv.conf")
    hosts: Path = Path("/etc/hosts")


def require_library() -> None:
    """Raise UnsupportedError if the library that asks name servers is missing."""
    if importlib.util.find_spec("dns") is None:
        raise UnsupportedError(
            "host names in proxy and allow need the extra ocsf-nft[names]: install it"
        )


class NameResolver:
    """Resolver that reads its files again whenever they have changed."""

    def __init__(self, files: ResolverFiles) -> None:
        self._files = files
        self._slots = asyncio.Semaphore(_MAX_LOOKUPS)
        self._resolver: dns.asyncresolver.Resolver | None = None
        #: Version of the file that ``_resolver`` was made of.
        self._version: tuple[int, ...] | None = None

    async def resolve(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the addresses of a name, or an error, for each version of IP, ready for JSON.

        An answer has ``addresses`` (texts, sorted), ``ttl`` in seconds, and ``is_absent`` if there
        is no such name. A failure has ``error``: a sentence.
        """
        async with self._slots:
            listed = self._listed(name)
            if listed:
                return {
                    str(version): _answer(
                        [each for each in listed if each.version == version], _HOSTS_TTL
                    )
                    for version in _TYPES
                }
            asked = [self._ask(name, kind) for kind in _TYPES.values()]
            found = await asyncio.gather(*asked)
            return dict(zip(map(str, _TYPES), found, strict=True))

    def _listed(self, name: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        """Return the addresses of a name in the hosts file."""
        try:
            with self._files.hosts.open("rb") as file:
                content = file.read(_HOSTS_BYTES)
        except OSError:
            return []
        found = []
        for line in content.decode("ascii", "replace").splitlines():
            address, *names = line.partition("#")[0].lower().split() or [""]
            if name in names:
                with contextlib.suppress(ValueError):
                    found.append(ipaddress.ip_address(address))
        return found

    async def _ask(self, name: str, kind: str) -> dict[str, Any]:
        import dns.exception  # noqa: PLC0415 - an extra

        try:
            return await self._addresses(name, kind)
        except dns.exception.Timeout:
            return {"error": f"no name server has answered within {_SECONDS:.0f} s"}
        except (dns.exception.DNSException, OSError) as error:
            return {"error": f"the name servers can't be asked: {reason_of(error)}"}
        except Exception as error:  # noqa: BLE001 - a server's answer must not end the deliveries
            return {"error": f"an answer can't be used: {type(error).__name__}"}

    async def _addresses(self, name: str, kind: str) -> dict[str, Any]:
        """Return the answer of the name servers; raises any error for an invalid answer."""
        import dns.resolver  # noqa: PLC0415 - an extra

        try:
            answer = await self._present().resolve(
                f"{name}.", kind, lifetime=_SECONDS, search=False, raise_on_no_answer=False
            )
        except dns.resolver.NXDOMAIN as error:
            chains = [each.resolve_chaining() for each in error.kwargs["responses"].values()]
            ttl = min((each.minimum_ttl for each in chains), default=0)
            return _answer([], ttl) | {"is_absent": True}
        addresses = [ipaddress.ip_address(each.address) for each in answer.rrset or ()]
        return _answer(addresses, answer.chaining_result.minimum_ttl)

    def _present(self) -> dns.asyncresolver.Resolver:
        """Return the resolver that the present ``resolv.conf`` configures."""
        import dns.asyncresolver  # noqa: PLC0415 - an extra

        found = self._files.resolv_conf.stat()
        version = (found.st_ino, found.st_mtime_ns, found.st_size)
        if self._resolver is None or version != self._version:
            resolver = dns.asyncresolver.Resolver(str(self._files.resolv_conf))
            resolver.timeout = min(resolver.timeout, _SERVER_SECONDS)
            self._resolver, self._version = resolver, version
        return self._resolver


def _answer(
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address], ttl: int
) -> dict[str, Any]:
    texts = list(map(str, sorted(set(addresses), key=int)))
    return {"addresses": texts[:MAX_ADDRESSES], "ttl": ttl}
