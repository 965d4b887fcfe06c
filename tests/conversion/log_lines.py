"""Random log files: real lines of the kernel with changed headers, prefixes, values and bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tests.sources.corpus_cases import MESSAGES

if TYPE_CHECKING:
    import random

PREFIXES: Final = (
    b"ocsf-nft:a1:egress:",
    b"ocsf-nft:b.2:ingress:",
    b"ocsf-nft:vm:vm-forward:",
    b"ocsf-nft:c:egress:permissive:",
    b"[UFW BLOCK] ",
    b"DROP IN ",
    b"nft# ",
    b"filter_IN_public_REJECT: ",
    b"fw:x ",
    b"x=y ",
    b"password=hunter2 ",
    b"token AKIAABCDEFGHIJKLMNOP ",
    b"IN=x ",
    b"",
)
_PREFIX: Final = re.compile(rb"^osb:h2-sb:[a-z0-9]+:(?=IN=)")
_NUMBER: Final = re.compile(
    rb"(?<= )(SPT|DPT|ID|LEN|WINDOW|UID|GID|TTL|SEQ|ACK|TYPE|CODE|HOPLIMIT|FLOWLBL|TC|URGP)=[0-9]+"
)
_DESTINATION: Final = re.compile(rb"(?<= DST=)[0-9a-f.:]+")
_LIMITS: Final = (0, 1, 22, 53, 80, 443, 255, 256, 65535, 65536, 4294967295, 4294967296)
_IPV4: Final = (
    b"8.8.8.8",
    b"10.1.2.3",
    b"169.254.169.254",
    b"224.0.0.251",
    b"255.255.255.255",
    b"0.0.0.0",
    b"127.0.0.1",
    b"1.2.3.04",
    b"300.1.1.1",
)
_IPV6: Final = (
    (0x2001, 0xDB8, 0, 0, 0, 0, 0, 1),
    (0xFE80, 0, 0, 0, 1, 0, 0, 0),
    (0, 0, 0, 0, 0, 0, 0, 1),
    (0, 0, 0, 0, 0, 0xFFFF, 0x808, 0x808),
    (0x2002, 1, 2, 3, 4, 5, 6, 7),
    (0x2001, 0, 1, 2, 3, 4, 5, 6),
    (0x64, 0xFF9B, 0, 0, 0, 0, 0xA9FE, 0xA9FE),
    (0xFF02, 0, 0, 0, 0, 0, 0, 0xFB),
    (0xFD00, 0xEC2, 0, 0, 0, 0, 0, 0x254),
    (1, 0, 0, 2, 0, 0, 0, 3),
    (0x2A00, 0, 1, 0, 1, 0, 1, 0),
    (0x2A00, 1, 0, 0, 0, 0, 0, 0),
)
_WORDS: Final = (
    b" ", b"IN=", b"OUT=", b'"', b"\\", b"\0", b"\xff", b"\xc3\xa9", b"PHYSIN=br0 ", b"UID=1 ",
    b"0", b"9", b"MARK=0x1 ", b"FRAG:8 ", b"MF ", b"CE ", b"A", b"f", b":", b".", b"\r", b"\t",
    b"MAC=", b"URG ", b"RST ", b"\x7f", b"%", b"\n",
)  # fmt: skip
_DECODED: Final = (
    b"kern  :warn  :", b"kern:info:", b"kern  :warning:", b"user  :warn  :", b"kern  :err :",
    b"<4>kern  :debug :", b"kern  :warn  ",
)  # fmt: skip
_DMESG_FRACTIONS: Final = (
    b"000001+00:00", b"123456-05:30", b"12345+00:00", b"1234567+00:00", b"123456Z", b"123456+0000",
)  # fmt: skip
_OTHER_LINES: Final = (
    b"",
    b" cont IN=x OUT=y",
    b"usb 1-1: new device",
    b"4,5,6,-;usb",
    b" SUBSYSTEM=usb IN= OUT=",
    b'{"a":1}',
    b"__CURSOR=s=1",
    b"MESSAGE=x",
    b"NFLOG group=1",
    b"ocsf-nft:",
)


def log_file(chance: random.Random, number: int) -> bytes:
    """Return about ``number`` lines, some of which are repeated; the last one may have no end."""
    lines: list[bytes] = []
    for _ in range(number):
        lines.append(_line(chance))
        if chance.random() < 0.05:
            lines.append(chance.choice(lines[-40:]))
    return b"\n".join(lines) + b"\n" * chance.randrange(2)


def _line(chance: random.Random) -> bytes:
    if chance.random() < 0.03:
        return chance.choice(_OTHER_LINES)
    message = _message(chance)
    if chance.random() < 0.12:
        for _ in range(chance.randrange(1, 3)):
            message = _changed(chance, message)
    return _header(chance) + message


def _message(chance: random.Random) -> bytes:
    message = chance.choice(MESSAGES if chance.random() < 0.5 else MESSAGES[:6]).encode()
    prefix = chance.choice(PREFIXES) if chance.random() < 0.4 else PREFIXES[0]
    message = _PREFIX.sub(prefix, message)

    def number(match: re.Match[bytes]) -> bytes:
        if chance.random() > 0.06:
            return match[0]
        return b"%b=%d" % (match[1], chance.choice((chance.choice(_LIMITS), chance.randrange(99))))

    def destination(match: re.Match[bytes]) -> bytes:
        if chance.random() > 0.3:
            return match[0]
        if b"." in match[0]:
            return chance.choice(_IPV4)
        groups: tuple[int, ...] = chance.choice(_IPV6)
        if chance.random() < 0.3:
            groups = tuple(chance.randrange(1 << 16) * chance.randrange(2) for _ in groups)
        return b":".join(b"%04x" % group for group in groups)

    return _DESTINATION.sub(destination, _NUMBER.sub(number, message))


def _changed(chance: random.Random, message: bytes) -> bytes:
    """Return a message of which a part is missing, added or another one."""
    start = chance.randrange(len(message) + 1)
    end = start + chance.randrange(4)
    word = chance.choice((*_WORDS, bytes((chance.randrange(256),)), b""))
    return message[:start] + (word if chance.random() < 0.9 else b"") + message[end:]


def _header(chance: random.Random) -> bytes:
    seconds, micros = chance.randrange(100_000), chance.randrange(10**6)
    # Mostly equal times: the library learns each one.
    clock, day, year = b"12:34:56", 24, 2026
    if chance.random() < 0.2:
        times = chance.randrange(24), chance.randrange(60), chance.randrange(60)
        clock, day = b"%02d:%02d:%02d" % times, chance.randrange(1, 31)
        year = chance.choice((1969, 2026, 2263, 9999))
    zone = chance.choice(
        (b"", b"Z", b"+01:00", b"-0330", b",123456+00:00", b".5Z", b".1234567890Z")
    )
    forms = (
        b"[%5d.%06d] " % (seconds, micros),
        b"[%5d.%06d] " % (seconds, micros),
        b"4,%d,%d,%b;"
        % (
            chance.randrange(10 ** chance.randrange(1, 21)),
            seconds * micros,
            chance.choice((b"-", b"c", b"", b"-,caller=T1", b"-,password=hunter2hunter2")),
        ),
        b"%d-11-%02dT%b.5Z h kernel: "
        % (chance.choice((1969, 1970, 2262, 2263, 9999)), day, clock),
        b"Nov %2d %b host%d kernel: " % (day, clock, chance.randrange(3)),
        b"Nov %02d %b host kernel: [%5d.%06d] " % (day, clock, seconds, micros),
        b"2026-11-%02dT%b.%06d+00:00 web.example kernel: [ 12.123456] " % (day, clock, micros),
        b"2026-11-%02dT%b%b h kernel: " % (day, clock, zone),
        b"<%d>[%5d.%06d] " % (chance.randrange(16), seconds, micros),
        b"<4>[%5d.%06d][%6b] " % (seconds, micros, chance.choice((b"T1", b"C12", b"X1", b"T"))),
        b"%b [%5d.%06d] " % (chance.choice(_DECODED), seconds, micros),
        b"[%b Nov %2d %b %d] " % (chance.choice((b"Sun", b"Mon", b"Xyz")), day, clock, year),
        b"2026-11-%02dT%b,%b " % (day, clock, chance.choice(_DMESG_FRACTIONS)),
        b"<%b>Nov %2d %b host kernel: " % (chance.choice((b"4", b"04", b"12", b"x")), day, clock),
        b"<4>1 2026-11-%02dT%bZ host kernel - - - " % (day, clock),
        b"<4>4,%d,%d,-;" % (micros, seconds),
        b"Nov %2d %b kern.warn kernel: " % (day, clock),
        b"",
    )
    return chance.choice(forms)
