r"""The words of a kernel log line, and taking them one after the other.

Words that the kernel never prints are set aside at once; so is a last word without a space behind
it, unless it can't be the beginning of a longer one.
"""

from __future__ import annotations

import re
from typing import Final

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


class MalformedError(Exception):
    """The line can't be read; the message says why."""


class Words:
    """The words of a line, and how far it has been read.

    ``unparsed`` are the words that were set aside; ``truncated`` says that the line ends before
    its end.
    """

    def __init__(self, line: str) -> None:
        self.unparsed: list[str] = []
        self.truncated = False
        self._taken: set[str] = set()
        self._at = 0
        self._words = self._known(line)
        #: Whether the last word may go on: nothing stands behind it.
        self._open = bool(self._words) and line.endswith(self._words[-1])

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
        """The next word; empty at the end."""
        return self._words[self._at] if self._at < len(self._words) else ""

    def ended(self) -> bool:
        """Whether every word is taken."""
        return self._at >= len(self._words)

    def expect_more(self) -> None:
        """Something must follow here: note it when nothing does."""
        if self.ended():
            self.truncated = True

    def finish(self) -> None:
        """Raise MalformedError when a word is left over: it stands where it may not."""
        last = self._at == len(self._words) - 1
        if last and self._open:
            self._cut(certain=False)
        elif not self.ended():
            name = re.split("[=:]", self.peek(), maxsplit=1)[0]
            how = "occurs twice" if name in self._taken else "is out of place"
            raise MalformedError(f"{name} {how}")

    def _cut(self, *, certain: bool) -> bool:
        """Take the next word: whether it may have lost its end, so that it must not be used."""
        word = self._words[self._at]
        self._at += 1
        if certain or not self._open or not self.ended():
            return False
        self.unparsed.append(word)
        self.truncated = True
        return True

    def flag(self, name: str, *, certain: bool = False) -> bool:
        """Take a word without value."""
        return self.peek() == name and not self._cut(certain=certain)

    def value(self, key: str, separator: str = "=", *, certain: str | None = None) -> str | None:
        """Take a field's value as text; ``None`` when it doesn't come next, or is cut.

        ``certain`` is a value that is believed even when nothing stands behind it.
        """
        start = key + separator
        if not self.peek().startswith(start):
            return None
        value = self.peek()[len(start) :]
        self._taken.add(key)
        return None if self._cut(certain=value == certain) else value

    def number(
        self, key: str, limit: int, separator: str = "=", *, certain: int | None = None
    ) -> int | None:
        """Take a decimal field; raises MalformedError when it is none or above ``limit``."""
        # No number of several digits begins with 0.
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
        """Take a hexadecimal field of a form: a regular expression whose group has the digits.

        All forms but UNPADDED are of one width: a value that has it is not cut.
        """
        whole = self.peek().removeprefix(key + separator)
        sure = form != UNPADDED and re.fullmatch(form, whole, re.ASCII)
        value = self.value(key, separator, certain=whole if sure else None)
        if value is None:
            return None
        match = re.fullmatch(form, value, re.ASCII)
        if match is None:
            raise MalformedError(f"{key} is not a hexadecimal number as the kernel writes it")
        return int(match.group(1), 16)

    def incomplete(self) -> int | None:
        """Take ``INCOMPLETE [n bytes]``: n."""
        match = _INCOMPLETE.fullmatch(self.peek())
        if match is None:
            return None
        self._at += 1
        if int(match.group(1)) > 0xFFFFFFFF:
            raise MalformedError("INCOMPLETE has more bytes than a packet can lack")
        return int(match.group(1))

    def bracket(self, character: str) -> bool:
        """Take a bracket or the beginning of options, which are never cut in the middle."""
        return self.peek() == character and not self._cut(certain=True)

    def options(self) -> tuple[str | None, bool]:
        """Take ``OPT (…)``: the octets in lower-case hexadecimal, and whether they are TRUNCATED.

        Options that are not closed before the line ends are set aside.
        """
        if not self.bracket(_OPEN):
            return None, False
        word = self.peek()
        if word not in {"", ")"}:
            self._at += 1
        if not self.bracket(")"):
            if not self.ended():
                raise MalformedError("OPT is not closed")
            self.unparsed.append(f"{_OPEN}{word}")
            self.truncated = True
            return None, False
        if word == "TRUNCATED":
            return None, True
        if not word.strip("0123456789ABCDEF") and len(word) % 2 == 0 and 2 <= len(word) <= 80:
            return word.lower(), False
        raise MalformedError("OPT has no octets")
