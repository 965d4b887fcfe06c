"""Network around the guest: a namespace as its host, and a namespace as the internet.

The guest is on a TAP device of the host. A veth pair joins the two namespaces. The addresses are
those of the tests' lab; the guest has the addresses of the sandbox.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft import lab, netns
from ocsf_nft.lab import GATEWAY4, GATEWAY6, GATEWAY_MAC, INTERNET4, INTERNET6, Lab, ip

if TYPE_CHECKING:
    from collections.abc import Iterator

TAP: Final = "gw0"
UPLINK: Final = "up0"
UPLINK4: Final = "203.0.113.1"
UPLINK6: Final = "2001:db8::1"


@dataclass(frozen=True, slots=True)
class Network:
    """The names of the two namespaces."""

    host: str
    internet: str

    @property
    def host_namespace(self) -> netns.Namespace:
        return netns.named(self.host)

    @property
    def internet_namespace(self) -> netns.Namespace:
        return netns.named(self.internet)

    @property
    def lab(self) -> Lab:
        """Return the gateway's side of a lab, for captures; the sandbox is a machine."""
        return Lab(sandbox="", gateway=self.host, sandbox_device="sb0", gateway_device=TAP)


@contextlib.contextmanager
def throwaway() -> Iterator[Network]:
    """Create the two namespaces, and remove them at the end."""
    token = secrets.token_hex(3)
    network = Network(f"ocsf-nft-{token}-vmhost", f"ocsf-nft-{token}-inet")
    with lab.new_namespaces(network.host, network.internet):
        ip("-n", network.host, "tuntap", "add", "dev", TAP, "mode", "tap")
        ip("-n", network.host, "link", "set", TAP, "address", GATEWAY_MAC)
        ip("-n", network.host, "link", "add", UPLINK, "type", "veth", "peer",
           "name", "inet0", "netns", network.internet)  # fmt: skip
        lab.configure(network.host, TAP, f"{GATEWAY4}/24", f"{GATEWAY6}/64")
        lab.configure(network.host, UPLINK, f"{UPLINK4}/24", f"{UPLINK6}/64")
        # A route through the host is the only way from the internet back to the guest.
        lab.configure(
            network.internet, "inet0", f"{INTERNET4}/24", f"{INTERNET6}/64",
            gateways=(UPLINK4, UPLINK6),
        )  # fmt: skip
        yield network


@contextlib.contextmanager
def address_server(namespace: netns.Namespace, address: str, port: int) -> Iterator[None]:
    """Run a TCP server that sends each client the client's address as the server sees it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def serve() -> socket.socket:
        return socket.create_server((address, port), family=family)

    with namespace.call(serve) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, peer = server.accept()
                    with client, contextlib.suppress(OSError):
                        client.sendall(peer[0].encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(60)
