"""ARP and neighbour discovery without an owner, which each fence in a namespace judges alike."""

from __future__ import annotations

import ipaddress
from functools import partial
from typing import TYPE_CHECKING, Final

from ocsf_nft.lab import GATEWAY6, INTERNET6, SANDBOX4, SANDBOX6
from tests.kernel import headers, packets
from tests.kernel.outcomes import Case
from tests.kernel.packets import ETH_ARP
from tests.kernel.verdicts import BROADCAST_MAC, GROUP_MAC, HOST6, NESTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.verdicts import Bench

#: The solicited-node groups of the gateway's address and of the sandbox's.
_GATEWAYS_GROUP: Final = "ff02::1:ff00:1"
_OWN_GROUP: Final = "ff02::1:ff00:2"
#: Address in the network of the link, beside the gateway's and the sandbox's.
_NEIGHBOUR: Final = "fd00:200::77"


def arp(
    bench: Bench, refused: str, target: str = "10.200.0.77", *, is_strict: bool = True
) -> Iterator[Case]:
    """Yield the kernel's own ARP, which passes, and frames that differ from it in one property.

    A fence that is not strict accepts any sender.
    """
    own = bench.mac()
    request = packets.arp(SANDBOX4, target, own)
    answer = request[:7] + b"\2" + request[8:18] + b"\2\0\0\0\0\1" + request[24:]
    send = partial(bench.unowned_frame, ETH_ARP)
    for frame in (
        b"\0\6" + request[2:], request[:2] + b"\x86\xdd" + request[4:],
        request[:4] + b"\7" + request[5:], request[:5] + b"\5" + request[6:],
        request[:4] + b"\5" + request[5:], request[:5] + b"\3" + request[6:],
        request[:7] + b"\0" + request[8:], request[:7] + b"\3" + request[8:],
    ):  # fmt: skip
        yield Case(frame.hex(), partial(send, frame), refused)
    yield Case("request", partial(send, request), "out")
    yield Case("to all", partial(send, request, to=BROADCAST_MAC), "out")
    yield Case("answer", partial(send, answer), "out")
    yield Case("without an address", partial(send, packets.arp("0.0.0.0", target, own)), "out")
    yield Case("tagged", partial(send, request, tag=b"\x81\0\0\5"), refused)
    yield Case("of another type", partial(bench.unowned_frame, 0x88B5, request), refused)
    yield Case("a socket's", partial(bench.frame, ETH_ARP, request), refused)
    if is_strict:
        other = b"\2\0\0\0\xbb\1"
        yield Case("longer", partial(send, request + b"x"), refused)
        yield Case("from another machine", partial(send, request, source=other), refused)
        for name, frame in (
            ("about another machine", packets.arp(SANDBOX4, target, other)),
            ("about another address", packets.arp("10.200.0.78", target, own)),
            ("with a known target", request[:18] + b"\2\0\0\0\0\1" + request[24:]),
            ("answer to a group", answer[:18] + b"\3" + answer[19:]),
        ):
            yield Case(name, partial(send, frame), refused)
        for name, frame in (("request", request), ("answer", answer)):
            yield Case(f"{name} to a group", partial(send, frame, to=GROUP_MAC), refused)
        yield Case("answer to all", partial(send, answer, to=BROADCAST_MAC), refused)


def wrong_neighbours(
    bench: Bench, rule: str, *, past_output: bool, has_networks: bool = False
) -> dict[str, str]:
    """Return the wrong verdicts on neighbour discovery without an owner on the link out.

    ``rule`` refuses all but the kernel's own messages. Of these, messages about other neighbours on
    the link pass only with ``has_networks``, and about other addresses never.
    """
    mac = bench.mac()
    on_link = "out" if has_networks else rule
    send = partial(bench.unowned, past_output=past_output)
    cases = [
        *(Case(name, partial(send, packet), "out") for name, packet in _kernels_own(mac)),
        *(Case(name, partial(send, packet), on_link) for name, packet in _on_link()),
        *(Case(name, partial(send, packet), rule) for name, packet in _about_others()),
        *(Case(name, partial(send, packet), rule) for name, packet in _not_the_kernels(mac)),
    ]
    long = _solicitation(GATEWAY6, b"\1\1" + mac)
    for name, option in (
        ("longer than its length field", "is_length_too_small"),
        ("shorter than its length field", "is_length_too_large"),
    ):
        cases.append(Case(name, partial(send, long, **{option: True}), rule))
    found = {}
    for case in cases:
        # The fence answers with an error, if it can answer. It also refuses an answer to a forger.
        verdict = bench.outcome(case.send).removesuffix(" error").removesuffix(f" {rule}")
        if verdict != case.expected:
            found[case.name] = f"{verdict or 'nothing'}, not {case.expected}"
    return found


def wrong_nested_neighbours(bench: Bench, rule: str, *, past_output: bool) -> dict[str, str]:
    """Return the wrong verdicts on neighbour discovery without an owner to a nested namespace.

    The kernel may look up any address there. ``rule`` refuses messages of other kinds.
    """
    send = partial(bench.unowned, device=NESTED, past_output=past_output)
    about = partial(headers.neighbour, HOST6)
    passing = (
        *(about(to) for to in (GATEWAY6, "fe80::7", "fe80::8000:0:0:7", "ff02::1")),
        *(about(to) for to in ("ff02::1:ff00:7", "ff02::1:ff80:7")),
        about("fe80::7", 136),
        about("fe80::7", options=bytes(16)),
    )
    refused = (
        *(about(to) for to in (INTERNET6, "fe80:0:0:1::7", "ff02::2", "ff02::1:fe00:7")),
        *(about("fe80::7", kind) for kind in (133, 134, 137)),
        about("fe80::7", code=1),
        about("fe80::7", hop_limit=254),
        about("fe80::7", options=bytes(17)),
        headers.with_extension6(about("fe80::7")),
    )
    long = about("fe80::7", options=bytes(17))
    cases = [
        *(Case(packet.hex(), partial(send, packet), "out") for packet in passing),
        *(Case(packet.hex(), partial(send, packet), rule) for packet in refused),
        Case("longer than its length field", partial(send, long, is_length_too_small=True), rule),
    ]
    # The fence may answer, and may refuse its answer.
    return {
        case.name: verdict
        for case in cases
        if (verdict := bench.outcome(case.send)).split()[0] != case.expected
    }


def _solicitation(
    to: str, options: bytes = b"", *, target: str = GATEWAY6, source: str = SANDBOX6
) -> bytes:
    return headers.neighbour(source, to, target=target, options=options)


def _advertisement(
    to: str, options: bytes = b"", *, target: str = SANDBOX6, source: str = SANDBOX6
) -> bytes:
    return headers.neighbour(source, to, 136, target=target, options=options)


def _kernels_own(mac: bytes) -> Iterator[tuple[str, bytes]]:
    link_local = _link_local(mac)
    for options in (b"", b"\1\1" + mac):
        yield f"check, {options!r}", _solicitation(GATEWAY6, options)
        yield f"question, {options!r}", _solicitation(_GATEWAYS_GROUP, options)
    for options in (b"", b"\2\1" + mac):
        for to in (GATEWAY6, "fe80::7", "fe80::8000:0:0:7", "ff02::1"):
            yield f"answer to {to}, {options!r}", _advertisement(to, options)
    yield "from its own link-local address", _solicitation(_GATEWAYS_GROUP, source=link_local)
    yield "check of a neighbour", _solicitation("fe80::7", target="fe80::7", source=link_local)
    for options in (b"", b"\x0e\1nonce."):
        yield f"duplicates, {options!r}", _solicitation(_OWN_GROUP, options, target=SANDBOX6,
                                                        source="::")  # fmt: skip


def _on_link() -> Iterator[tuple[str, bytes]]:
    yield "another group", _solicitation("ff02::1:ff00:7")
    yield "question about another neighbour", _solicitation("ff02::1:ff00:77", target=_NEIGHBOUR)
    yield "check of another neighbour", _solicitation(_NEIGHBOUR, target=_NEIGHBOUR)
    yield "answer to another neighbour", _advertisement(_NEIGHBOUR)


def _about_others() -> Iterator[tuple[str, bytes]]:
    yield "about a stranger", _solicitation(_GATEWAYS_GROUP, target=INTERNET6)
    yield "to a stranger", _solicitation(INTERNET6)
    yield "to a stranger about itself", _solicitation(INTERNET6, target=INTERNET6)
    yield "about a stranger of the link", _solicitation("ff02::1:ff00:7", target="fe80::7")
    yield "to a neighbour about the gateway", _solicitation("fe80::7")
    yield "to the gateway about a neighbour", _solicitation("fe80:0:0:1::7", target="fe80::7")
    yield "answer about a stranger", _advertisement(GATEWAY6, target=INTERNET6)
    yield "answer to a stranger", _advertisement(INTERNET6)
    yield "answer to routers", _advertisement("ff02::2")
    yield "duplicates, another group", _solicitation("ff02::1:ff00:7", target=SANDBOX6, source="::")


def _not_the_kernels(mac: bytes) -> Iterator[tuple[str, bytes]]:
    yield "a code", headers.neighbour(SANDBOX6, GATEWAY6, target=GATEWAY6, code=1)
    yield "routable", headers.neighbour(SANDBOX6, GATEWAY6, target=GATEWAY6, hop_limit=254)
    for kind in (133, 134, 137):
        yield f"type {kind}", headers.neighbour(SANDBOX6, GATEWAY6, kind, target=GATEWAY6)
    yield "an extension header", headers.with_extension6(_solicitation(GATEWAY6))
    for options in (
        b"\1\1" + b"\2\0\0\0\xbb\1", b"\5\1" + mac, b"\1\2" + mac, b"\x0e\1nonce.",
        b"\1\1" + mac + bytes(8), b"\1\1" + mac + b"x",
    ):  # fmt: skip
        yield f"option {options!r}", _solicitation(GATEWAY6, options)
    yield "from another address", _solicitation(GATEWAY6, source="fd00:200::9")
    yield "from another link-local address", _solicitation(GATEWAY6, source="fe80::9")
    yield "answer from another address", _advertisement(GATEWAY6, source="fd00:200::9")
    unspecified = partial(_solicitation, _OWN_GROUP, source="::")
    yield "duplicates of another address", unspecified(target="fd00:200::9")
    yield "duplicates with another option", unspecified(b"\1\1" + mac, target=SANDBOX6)
    yield "duplicates with more", unspecified(b"\x0e\1nonce." + bytes(8), target=SANDBOX6)
    yield "answer from no address", _advertisement("ff02::1", source="::")


def _link_local(mac: bytes) -> str:
    identifier = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier))
