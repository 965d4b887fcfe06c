"""Variants of attacks, and the seats where they run."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from collections.abc import Callable

#: Attackers by capability, the weakest first: uid 1000 without capabilities; the same with
#: CAP_NET_RAW; root of a user namespace that owns the network namespace; root with CAP_NET_ADMIN
#: and CAP_NET_RAW of the initial user namespace, as of ``docker run --cap-add NET_ADMIN``.
Attacker: TypeAlias = Literal["unprivileged", "raw", "admin", "cap-add"]
#: Forms of a fence. ``open`` is a namespace without one: there each variant has to work.
Form: TypeAlias = Literal["open", "guarded", "unguarded", "sidecar", "tap"]

FENCED: Final[tuple[Form, ...]] = ("guarded", "unguarded", "sidecar", "tap")
FORMS: Final[tuple[Form, ...]] = get_args(Form)

INTERNET4: Final = "203.0.113.7"
INTERNET6: Final = "2001:db8::7"
PROXY_PORT: Final = 3128
WEB_PORT: Final = 443
DEVICE: Final = "eth0"
#: Interfaces of the host that are no seat's: its uplink, and a bridge with another machine.
HOST_UPLINK, HOST_BRIDGE = "up0", "lan0"
#: Link addresses of a seat, and of the host's end of its link.
MAC: Final = bytes.fromhex("02aa00000002")
GATEWAY_MAC: Final = bytes.fromhex("02aa00000001")


@dataclass(frozen=True, slots=True)
class Seat:
    """Network namespace where attacks run, and the payload that the running one is to bring out.

    ``number`` gives the seat's subnets. Subnets of different seats are disjoint. ``job`` is the
    number of the running attack.
    """

    form: Form
    number: int
    namespace: str
    host_device: str
    magic: bytes = bytes(4)
    job: int = 0

    @property
    def subnet4(self) -> str:
        return f"10.{200 + self.number // 250}.{self.number % 250}"

    @property
    def subnet6(self) -> str:
        return f"fd00:200:{self.number:x}:"

    @property
    def own4(self) -> str:
        return f"{self.subnet4}.2"

    @property
    def own6(self) -> str:
        return f"{self.subnet6}:2"

    @property
    def gateway4(self) -> str:
        return f"{self.subnet4}.1"

    @property
    def gateway6(self) -> str:
        return f"{self.subnet6}:1"

    @property
    def stranger4(self) -> str:
        """Return an address of the link that no machine has."""
        return f"{self.subnet4}.5"

    @property
    def stranger6(self) -> str:
        return f"{self.subnet6}:5"

    @property
    def token(self) -> bytes:
        """Return the chosen payload: six bytes, which are also a link address of one station."""
        return self.magic + self.job.to_bytes(2, "big")

    @property
    def short(self) -> bytes:
        """Return the last four bytes of the payload."""
        return self.token[2:]

    @property
    def address(self) -> str:
        """Return the short payload as an IPv4 address."""
        return str(ipaddress.IPv4Address(self.short))

    @property
    def address6(self) -> str:
        """Return the payload as the last bytes of an IPv6 address."""
        return str(ipaddress.IPv6Address(bytes.fromhex("20010db800000000ffff") + self.token))

    @property
    def payload(self) -> bytes:
        """Return the payload for a place with enough room."""
        return b"payload " + self.token * 2

    @property
    def mac_text(self) -> str:
        return self.token.hex(":")


@dataclass(frozen=True)
class Variant:
    """Attack of one attacker.

    ``summary`` is one sentence. ``run`` makes the attempt in the seat's namespace, with the
    attacker's capabilities. ``is_short``: the far side searches for the last four bytes of the
    payload. ``ends_link``: the seat loses its link for good. ``races``: it races the service's
    restoration of the fence, so bytes may arrive or not. ``spoils``: the service loads another
    fence because of it.
    """

    name: str
    family: str
    attacker: Attacker
    summary: str
    run: Callable[[Seat], None]
    is_short: bool = False
    ends_link: bool = False
    races: bool = False
    spoils: bool = False


class Register:
    """Variants of one module, in the order of their definition."""

    def __init__(self, family: str, attacker: Attacker) -> None:
        self._family = family
        self._attacker = attacker
        self.variants: list[Variant] = []

    def add(
        self,
        summary: str,
        *,
        attacker: Attacker | None = None,
        name: str = "",
        is_short: bool = False,
        ends_link: bool = False,
        races: bool = False,
        spoils: bool = False,
    ) -> Callable[[Callable[[Seat], None]], Callable[[Seat], None]]:
        """Return a decorator that adds a variant. Its name is the function's by default."""
        by = attacker or self._attacker

        def decorate(run: Callable[[Seat], None]) -> Callable[[Seat], None]:
            self.append(summary, run, by, name or run.__name__, is_short, ends_link, races, spoils)
            return run

        return decorate

    def append(
        self,
        summary: str,
        run: Callable[[Seat], None],
        attacker: Attacker,
        name: str,
        is_short: bool = False,
        ends_link: bool = False,
        races: bool = False,
        spoils: bool = False,
    ) -> None:
        self.variants.append(
            Variant(
                name=name.replace("_", " "),
                family=self._family,
                attacker=attacker,
                summary=summary,
                run=run,
                is_short=is_short,
                ends_link=ends_link,
                races=races,
                spoils=spoils,
            )
        )
