"""ARP and neighbour discovery without an owner, which each fence in a namespace judges alike."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ocsf_nft.lab import GATEWAY6, SANDBOX4, SANDBOX6
from tests.kernel import headers, packets
from tests.kernel.outcomes import Case
from tests.kernel.packets import ETH_ARP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.kernel.verdicts import Bench


def arp(bench: Bench, refused: str) -> Iterator[Case]:
    """Yield the kernel's own ARP, which passes, and frames that differ from it in one property."""
    request = packets.arp(SANDBOX4, "10.200.0.77", b"\x02\0\0\0\xbb\1")
    padding = bytes(18)
    send = partial(bench.unowned_frame, ETH_ARP)
    for frame in (
        b"\0\6" + request[2:], request[:2] + b"\x86\xdd" + request[4:],
        request[:4] + b"\7" + request[5:], request[:5] + b"\5" + request[6:],
        request[:4] + b"\5" + request[5:], request[:5] + b"\3" + request[6:],
        request[:7] + b"\0" + request[8:], request[:7] + b"\3" + request[8:],
    ):  # fmt: skip
        yield Case(frame.hex(), partial(send, frame), refused)
    yield Case("request", partial(send, request), "out")
    yield Case("answer", partial(send, request[:7] + b"\2" + request[8:]), "out")
    yield Case("padded", partial(send, request + padding, pad=False), "out")
    yield Case("longer", partial(send, request + padding + b"x", pad=False), refused)
    yield Case("tagged", partial(send, request, tag=b"\x81\0\0\5"), refused)
    yield Case("of another type", partial(bench.unowned_frame, 0x88B5, request), refused)
    yield Case("a socket's", partial(bench.frame, ETH_ARP, request), refused)


def wrong_neighbours(
    bench: Bench,
    rule: str,
    *,
    past_output: bool,
    found: Iterable[str],
    not_found: Iterable[str] = (),
) -> dict[str, str]:
    """Return the wrong verdicts on neighbour discovery without an owner.

    It passes to the addresses in ``found``. A ``rule`` refuses it to those in ``not_found``.
    """
    send = partial(bench.unowned, past_output=past_output)
    about = partial(headers.neighbour, SANDBOX6)
    passing = {
        "answer": about(GATEWAY6, 136),
        "longest options": about(GATEWAY6, options=bytes(16)),
        **{f"to {to}": about(to) for to in found},
    }
    refused = {
        "a code": about(GATEWAY6, code=1),
        "routable": about(GATEWAY6, hop_limit=254),
        "a router's solicitation": about(GATEWAY6, 133),
        "a router's advertisement": about(GATEWAY6, 134),
        "a redirect": about(GATEWAY6, 137),
        "one byte more": about(GATEWAY6, options=bytes(17)),
        "an extension header": headers.with_extension6(about(GATEWAY6)),
        **{f"to {to}": about(to) for to in not_found},
    }
    long = about(GATEWAY6, options=bytes(17))
    cases = [
        *(Case(name, partial(send, packet), "out") for name, packet in passing.items()),
        *(Case(name, partial(send, packet), rule) for name, packet in refused.items()),
        Case("longer than its length field", partial(send, long, is_length_too_small=True), rule),
        Case(
            "shorter than its length field",
            partial(send, about(GATEWAY6), is_length_too_large=True),
            rule,
        ),
    ]
    # The fence answers a message to the gateway with an error, if it can answer.
    return {
        case.name: verdict
        for case in cases
        if (verdict := bench.outcome(case.send).removesuffix(" error")) != case.expected
    }
