"""A throw-away sandbox for the demo, the tests and the benchmarks.

Two network namespaces joined by a veth pair: the sandbox's, and a gateway's that stands for the
rest of the world. Traffic never leaves the two, and both are gone when the context ends, however
it ends. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft import netns
from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROXY_PORT: Final = 3128
GATEWAY4: Final = "10.200.0.1"
GATEWAY6: Final = "fd00:200::1"
GATEWAY_MAC: Final = "02:00:00:00:00:01"
SANDBOX4: Final = "10.200.0.2"
SANDBOX6: Final = "fd00:200::2"
#: Documentation addresses (RFC 5737, RFC 3849) that stand for the internet.
INTERNET4: Final = "203.0.113.7"
INTERNET6: Final = "2001:db8::7"


@dataclass(frozen=True, slots=True)
class Lab:
    """The names of what was made.

    ``sandbox`` and ``gateway`` are ``ip netns`` names; ``sandbox_device`` and ``gateway_device``
    are the two ends of the veth pair.
    """

    sandbox: str
    gateway: str
    sandbox_device: str
    gateway_device: str

    @property
    def sandbox_namespace(self) -> netns.Namespace:
        """The namespace that gets fenced."""
        return netns.named(self.sandbox)

    @property
    def gateway_namespace(self) -> netns.Namespace:
        """The namespace on the far side of the veth pair."""
        return netns.named(self.gateway)


def ip(*arguments: str) -> None:
    """Run iproute2's ``ip``; raises UnsupportedError with its own words when it fails."""
    binary = shutil.which("ip", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if binary is None:
        raise UnsupportedError("the ip command is missing: install iproute2")
    done = subprocess.run(
        [binary, *arguments],
        capture_output=True,
        text=True,
        check=False,
        process_group=0,  # Ctrl-C must not cut the clearing up short
    )
    if done.returncode != 0:
        raise UnsupportedError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@contextlib.contextmanager
def throwaway() -> Iterator[Lab]:
    """Make the two namespaces, and remove them at the end.

    Raises UnsupportedError when the system doesn't let us.
    """
    token = secrets.token_hex(3)
    lab = Lab(f"ocsf-nft-{token}-sb", f"ocsf-nft-{token}-gw", "sb0", "gw0")
    with contextlib.ExitStack() as cleanup:
        for name in (lab.sandbox, lab.gateway):
            ip("netns", "add", name)
            cleanup.callback(ip, "netns", "del", name)
        # No duplicate address detection: an address must be usable at once.
        for namespace in (lab.sandbox_namespace, lab.gateway_namespace):
            namespace.call(_without_dad)
        ip("-n", lab.sandbox, "link", "add", lab.sandbox_device, "type", "veth", "peer",
           "name", lab.gateway_device, "address", GATEWAY_MAC, "netns", lab.gateway)  # fmt: skip
        _configure(lab.gateway, lab.gateway_device, f"{GATEWAY4}/24", f"{GATEWAY6}/64")
        _configure(lab.sandbox, lab.sandbox_device, f"{SANDBOX4}/24", f"{SANDBOX6}/64")
        ip("-n", lab.sandbox, "route", "add", "default", "via", GATEWAY4)
        ip("-n", lab.sandbox, "-6", "route", "add", "default", "via", GATEWAY6)
        yield lab


def _configure(namespace: str, device: str, *addresses: str) -> None:
    ip("-n", namespace, "link", "set", "lo", "up")
    for address in addresses:
        ip("-n", namespace, "address", "add", address, "dev", device)
    ip("-n", namespace, "link", "set", device, "up")


def _without_dad() -> None:
    for scope in ("all", "default"):
        with open(f"/proc/sys/net/ipv6/conf/{scope}/accept_dad", "w") as sysctl:  # noqa: PTH123 - procfs
            sysctl.write("0")
