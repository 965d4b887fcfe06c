"""Address and port at which `ocsf-nft run` serves its metrics and its health over HTTP."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from ocsf_nft.errors import UsageError
from ocsf_nft.fence.values import Address
from ocsf_nft.quoted import quoted


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Address and port at which `ocsf-nft run` listens for HTTP requests.

    The address ``0.0.0.0`` or ``::`` stands for all addresses of this host.
    """

    address: Address
    port: int

    def __str__(self) -> str:
        """Return ``ADDR:PORT``, with an IPv6 address in brackets."""
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


def parse_listen_address(text: str) -> ListenAddress:
    """Parse ``ADDR:PORT``, with an IPv6 address in brackets.

    Raises UsageError if ``text`` has another form, or if the port is 0.
    """
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        found = ListenAddress(address, int(port) if port.isdecimal() and len(port) <= 5 else 0)
    except ValueError:
        found = None
    if found is None or str(found) != text or not 0 < found.port < 1 << 16:
        raise UsageError(
            f"{quoted(text)} is no address to listen at: write 127.0.0.1:9469, [::1]:9469 or "
            "0.0.0.0:9469"
        )
    return found
