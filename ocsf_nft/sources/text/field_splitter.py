"""Splitter of a kernel log line into words, which the parser takes one after the other.

The last word may be cut off if no space follows it: ``TTL=6`` may be a part of ``TTL=64``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ocsf_nft.sources.base import MalformedError

if TYPE_CHECKING:
    from ocsf_nft.record import Detail
    from ocsf_nft.sources.packet_fields import Facts

_WORD: Final = re.compile(
    r"OPT *\(|INCOMPLETE *\[[^\[\]]*\]|INCOMPLETE *(?:\[[^\[\]]*)?\Z|[\[\]()]|[^ \[\]()]+", re.ASCII
)
_KEYS: Final = (
    "IN OUT PHYSIN PHYSOUT MAC MACSRC MACDST VPROTO VID MACPROTO TUNNEL SRC DST LEN TOS PREC TTL ID"
    " TC HOPLIMIT FLOWLBL PROTO SPT DPT SEQ ACK WINDOW RES URGP TYPE CODE PARAMETER GATEWAY MTU"
    " POINTER SPI UID GID MARK HTYPE PTYPE OPCODE IPSRC IPDST"
)
_NAMES: Final = "CE DF MF AE CWR ECE URG ACK PSH RST SYN FIN ARP AH ESP INCOMPLETE TRUNCATED"
_KNOWN: Final = re.compile(
    rf"(?:{'|'.join(_KEYS.split())})=.*|(?:{'|'.join(_NAMES.split())})"
    r"|FRAG:.*|ID:.*|OPT *\(|INCOMPLETE *\[.*\]|[\[\])]",
    re.ASCII | re.DOTALL,
)
_CANONICAL: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_INCOMPLETE: Final = re.compile(r"INCOMPLETE *\[ *(0|[1-9][0-9]{0,9}) bytes *\]", re.ASCII)
#: A hexadecimal number of 32 bits as printf's ``0x%x`` writes it.
UNPADDED: Final = "0x(0|[1-9a-f][0-9a-f]{0,7})"
_OPEN: Final = "OPT ("


def put(facts: Facts, name: str, value: Detail | None) -> bool:
    """Store a value of a packet under its name, unless it is None; return True if it was stored."""
    if value is None:
        return False
    facts[name] = value
    return True


class Words:
    """Words of a kernel log line, and the position of the next word for the parser."""

    def __init__(self, line: str) -> None:
        #: Words that can't be used: words that the kernel never prints, and a last word that may be
        #: cut off.
        self.unparsed: list[str] = []
        #: True if the line was cut or may be cut.
        self.truncated = False
        self._taken: set[str] = set()
        self._next = 0
        self._words = self._known(line)
        #: The last word may be cut: no character follows it.
        self._last_may_be_cut = bool(self._words) and line.endswith(self._words[-1])

    def _known(self, line: str) -> list[str]:
        known: list[str] = []
        for match in _WORD.finditer(line):
            word = match.group()
            if _KNOWN.fullmatch(word):
                known.append(_OPEN if word.startswith("OPT") else word)
            elif known and known[-1] == _OPEN and not word.strip("0123456789ABCDEF"):
                known.append(word)
            else:
                self.unparsed.append(word)
                if match.end() == len(line):
                    self.truncated = True
        return known

    def peek(self) -> str:
        """Return the next word without taking it, or an empty text if no word is left."""
        return self._words[self._next] if self._next < len(self._words) else ""

    def ended(self) -> bool:
        """Return True if every word of the line has been taken."""
        return self._next >= len(self._words)

    def expect_more(self) -> None:
        """Set ``truncated`` if no word is left.

        Call this at a position where the kernel always prints another word.
        """
        if self.ended():
            self.truncated = True

    def expect(self, facts: Facts, name: str, value: Detail | None) -> bool:
        """Store the value of a field that the kernel always prints; return True if it was stored.

        If ``value`` is None and no word is left, the line was cut: then ``truncated`` is set.
        """
        is_stored = put(facts, name, value)
        if not is_stored:
            self.expect_more()
        return is_stored

    def finish(self) -> None:
        """Check that all words have been taken; raises MalformedError if a word is left.

        No error is raised if only the last word is left, and it may be cut off. Then this word is
        added to ``unparsed``.
        """
        last = self._next == len(self._words) - 1
        if last and self._last_may_be_cut:
            self._take_word(certain=False)
        elif not self.ended():
            name = re.split("[=:]", self.peek(), maxsplit=1)[0]
            problem = "occurs twice" if name in self._taken else "is at a wrong position"
            raise MalformedError(f"{name} {problem}")

    def _take_word(self, *, certain: bool) -> bool:
        """Move past the next word; return True if it may be cut off, and so must not be used.

        Such a word is added to ``unparsed``. ``certain`` means that the word is complete.
        """
        word = self._words[self._next]
        self._next += 1
        if certain or not self._last_may_be_cut or not self.ended():
            return False
        self.unparsed.append(word)
        self.truncated = True
        return True

    def flag(self, name: str, *, certain: bool = False) -> bool:
        """Take the next word if it is ``name``; return True if it is.

        If the line ends directly after the word, the word may be cut off. Then the result is False,
        unless ``certain`` is true, as for a bracket, which ends the word. ``OPT (``, which the
        kernel prints before options and extension headers, counts as one word.
        """
        return self.peek() == name and not self._take_word(certain=certain)

    def value(self, key: str, separator: str = "=", *, certain: str | None = None) -> str | None:
        """Take the next word if it is the field ``key``; return its value, else None.

        The line's last word is taken even if it may be cut off. Then the result is None, unless the
        value equals ``certain``, the value that the caller expects.
        """
        start = key + separator
        if not self.peek().startswith(start):
            return None
        value = self.peek()[len(start) :]
        self._taken.add(key)
        return None if self._take_word(certain=value == certain) else value

    def number(
        self, key: str, limit: int, separator: str = "=", *, certain: int | None = None
    ) -> int | None:
        """Take the next word if it is the decimal field ``key``; return its number, else None.

        The line's last word is taken even if it may be cut off. Then the result is None, unless the
        number is 0 or equals ``certain``, the number that the caller expects. Raises
        MalformedError for an invalid number, or for a number above ``limit``.
        """
        # No number of several digits begins with 0, so 0 is complete even at the end of the line.
        zero = self.peek() == f"{key}{separator}0"
        value = self.value(key, separator, certain="0" if zero else str(certain))
        if value is None:
            return None
        if _CANONICAL.fullmatch(value) is None:
            raise MalformedError(f"{key} is not a number")
        if int(value) > limit:
            raise MalformedError(f"{key} is {value}, more than {limit}")
        return int(value)

    def hexadecimal(self, key: str, form: str, separator: str = "=") -> int | None:
        """Take the next word if it is the hexadecimal field ``key``; return its number, else None.

        ``form`` is a regular expression for the value; its first group has the digits. If the line
        may be cut off inside the value, the result is None. Raises MalformedError if a complete
        value does not match ``form``.
        """
        # A value of fixed length is complete if it matches, even at the line's end.
        whole = self.peek().removeprefix(key + separator)
        is_whole = form != UNPADDED and re.fullmatch(form, whole, re.ASCII)
        value = self.value(key, separator, certain=whole if is_whole else None)
        if value is None:
            return None
        match = re.fullmatch(form, value, re.ASCII)
        if match is None:
            raise MalformedError(f"{key} is not a hexadecimal number as the kernel writes it")
        return int(match.group(1), 16)

    def incomplete(self, facts: Facts) -> bool:
        """Take the next word if it is ``INCOMPLETE [n bytes]``; return True if it is.

        The kernel prints this word instead of a header if the packet ends inside the header. The
        number n is stored in ``facts``. Raises MalformedError if n does not fit into 32 bits.
        """
        match = _INCOMPLETE.fullmatch(self.peek())
        if match is None:
            return False
        self._next += 1
        number = int(match.group(1))
        if number > 0xFFFFFFFF:
            raise MalformedError("INCOMPLETE has more bytes than a packet can have")
        return put(facts, "incomplete_bytes", number)

    def options(self) -> tuple[str | None, bool]:
        """Take IP or TCP options, ``OPT (…)``; return their bytes, and whether they are truncated.

        The options are truncated if the packet ends inside them. The bytes are lower-case
        hexadecimal, or None if the options are missing or incomplete. Raises MalformedError for
        options of another form.
        """
        if not self.flag(_OPEN, certain=True):
            return None, False
        word = self.peek()
        if word not in {"", ")"}:
            self._next += 1
        if not self.flag(")", certain=True):
            if not self.ended():
                raise MalformedError("OPT is not closed")
            # The line ends inside the options.
            self.unparsed.append(f"{_OPEN}{word}")
            self.truncated = True
            return None, False
        # The packet ends inside the options.
        if word == "TRUNCATED":
            return None, True
        if not word.strip("0123456789ABCDEF") and len(word) % 2 == 0 and 2 <= len(word) <= 80:
            return word.lower(), False
        raise MalformedError("OPT has no octets")
