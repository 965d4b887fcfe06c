"""Detection of DNS tunnels: many long and dense names below one domain carry data.

Ordinary lookups have few long names below a domain: those of a content network, or of a package
manager with a hundred hosts, are below many domains or are short.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ocsf_nft.record import DnsQuestion

#: Labels of a name in presentation format, and an escaped byte in a label (RFC 1035, section 5.1).
_LABEL: Final = re.compile(r"(?:[^.\\]|\\\d{3}|\\.)+")
_ESCAPED: Final = re.compile(r"\\(?:\d{3}|.)")
#: Domains of reverse lookups: their names are addresses.
_REVERSE: Final = frozenset({("in-addr", "arpa"), ("ip6", "arpa")})


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelThreshold:
    """Condition for DNS queries to be a tunnel: that many distinct long names below one domain.

    ``length`` is the number of characters of a long name, without the domain and the dots.
    ``entropy`` is the minimum of bits a character in all these names together.
    """

    names: int = 50
    length: int = 30
    entropy: float = 3.0


class Tunnel(NamedTuple):
    """DNS tunnel: its domain, and the figures of the long names below it."""

    domain: str
    names: int
    #: Mean number of characters below the domain.
    length: float
    #: Bits a character: 4 for hexadecimal data, 5 for base 32.
    entropy: float

    @property
    def reason(self) -> str:
        """Return the figures as text."""
        return (
            f"{self.names} distinct names below {self.domain}, "
            f"{self.length:.0f} characters long on average, {self.entropy:.1f} bits a character"
        )


def find_tunnel(questions: Iterable[DnsQuestion], threshold: TunnelThreshold) -> Tunnel | None:
    """Return the tunnel with the most names in a flow's DNS questions; None if there is none."""
    names = {question.name for question in questions}
    if len(names) < threshold.names:
        return None
    by_domain: dict[tuple[str, ...], list[list[str]]] = {}
    for name in names:
        labels = _LABEL.findall(name) if "\\" in name else name.split(".")
        by_domain.setdefault(_domain(labels), []).append(labels)
    found = (
        _measure(all_labels, threshold)
        for domain, all_labels in by_domain.items()
        if domain not in _REVERSE and len(all_labels) >= threshold.names
    )
    return max((each for each in found if each is not None), key=_names, default=None)


def _names(tunnel: Tunnel) -> tuple[int, str]:
    return tunnel.names, tunnel.domain


def _domain(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the last two labels, or three below a domain such as co.uk."""
    is_national = len(labels) > 2 and len(labels[-1]) == 2 and len(labels[-2]) <= 3
    return tuple(labels[-3 if is_national else -2 :])


def _measure(names: Sequence[Sequence[str]], threshold: TunnelThreshold) -> Tunnel | None:
    common = _common_end(names)
    long = [labels for labels in names if len(_data(labels, common)) >= threshold.length]
    if len(long) < threshold.names:
        return None
    # Short names, such as that of a web server, do not hide the domain of the long ones.
    common = _common_end(long)
    data = [_data(labels, common) for labels in long]
    entropy = _entropy("".join(data))
    if entropy < threshold.entropy:
        return None
    domain = ".".join(long[0][len(long[0]) - common :])
    return Tunnel(domain, len(long), sum(map(len, data)) / len(data), entropy)


def _common_end(names: Sequence[Sequence[str]]) -> int:
    """Return the number of last labels that all names have in common."""
    columns = zip(*(reversed(labels) for labels in names), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _data(labels: Sequence[str], common: int) -> str:
    """Return the labels before the common ones as one text, with one character for each byte."""
    text = "".join(labels[: len(labels) - common])
    return _ESCAPED.sub(_byte, text) if "\\" in text else text


def _byte(escaped: re.Match[str]) -> str:
    text = escaped[0][1:]
    return chr(0x100 + int(text)) if len(text) == 3 else text


def _entropy(text: str) -> float:
    """Return the Shannon entropy in bits a character."""
    # Half the time of a Counter of the text.
    shares = [text.count(character) / len(text) for character in set(text)]
    return -sum(share * math.log2(share) for share in shares)
