"""Detection of DNS tunnels: many long and dense names below one domain carry data.

Ordinary lookups have few long names below a domain: those of a content network, or of a package
manager with a hundred hosts, are below many domains or are short. A search domain, such as
``svc.cluster.local``, has many names below it, and each name is below several of them. So only the
labels before the longest shared domain are data, and equal data counts once.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from itertools import takewhile
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ocsf_nft.ocsf.finding_settings import TunnelThreshold
    from ocsf_nft.record import DnsQuestion

#: Names as their labels.
_Names: TypeAlias = "list[list[str]]"
#: Labels of a name in presentation format, and an escaped byte in a label (RFC 1035, section 5.1).
_LABEL: Final = re.compile(r"(?:[^.\\]++|\\(?:\d{3}|.))++")
_ESCAPED: Final = re.compile(r"\\(?:\d{3}|.)")
#: Byte of a label, as it is or escaped.
_BYTE: Final = re.compile(r"\\(?:\d{3}|.)|[^\\]")
#: A domain is shared if one of so many of the names that a tunnel needs are below it.
_SHARED: Final = 3
#: Domains of reverse lookups: their names are addresses.
_REVERSE: Final = frozenset({("in-addr", "arpa"), ("ip6", "arpa")})


class Tunnel(NamedTuple):
    """DNS tunnel: its domain, and the figures of the long names below it."""

    domain: str
    #: Number of names with different data.
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
    by_domain: defaultdict[tuple[str, ...], _Names] = defaultdict(list)
    for name in names:
        labels = _LABEL.findall(name) if "\\" in name else name.split(".")
        by_domain[_domain(labels)].append(labels)
    found = (
        _measure(below, len(domain), threshold)
        for domain, below in by_domain.items()
        if domain not in _REVERSE and len(below) >= threshold.names
    )
    return max((each for each in found if each is not None), key=_names, default=None)


def _names(tunnel: Tunnel) -> tuple[int, str]:
    return tunnel.names, tunnel.domain


def _domain(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the last two labels, or three below a domain such as co.uk."""
    is_national = len(labels) > 2 and len(labels[-1]) == 2 and len(labels[-2]) <= 3
    return tuple(labels[-3 if is_national else -2 :])


def _measure(names: _Names, depth: int, threshold: TunnelThreshold) -> Tunnel | None:
    parts = []
    for known, below in _parts(names, depth, max(2, threshold.names // _SHARED)):
        data = {"".join(labels[: len(labels) - known]): labels for labels in below}
        parts.append({text: data[text] for text in data if _length(text) >= threshold.length})
    # Names below other domains do not hide the domain of most long names.
    long = max(parts, key=len)
    if len(long) < threshold.names:
        long = {text: labels for part in parts for text, labels in part.items()}
    if len(long) < threshold.names:
        return None
    text = "".join(long)
    entropy = _entropy(text)
    if entropy < threshold.entropy:
        return None
    labels = next(iter(long.values()))
    domain = ".".join(labels[len(labels) - _common_end(long.values()) :])
    return Tunnel(domain, len(long), _length(text) / len(long), entropy)


def _parts(names: _Names, depth: int, shared: int) -> Iterator[tuple[int, _Names]]:
    """Yield the names by the longest of their domains that at least ``shared`` of them have.

    ``depth`` is the number of last labels that all names have. Each part comes with its number.
    """
    pending = [(depth, names)]
    while pending:
        depth, found = pending.pop()
        by_label: defaultdict[str | None, _Names] = defaultdict(list)
        for labels in found:
            by_label[labels[-depth - 1] if len(labels) > depth else None].append(labels)
        rest = by_label.pop(None, [])
        for below in by_label.values():
            if len(below) < shared:
                rest += below
            else:
                pending.append((depth + 1, below))
        yield depth, rest


def _common_end(names: Iterable[Sequence[str]]) -> int:
    """Return the number of last labels that all names have in common."""
    columns = zip(*(reversed(labels) for labels in names), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _length(text: str) -> int:
    """Return the number of bytes that a text stands for."""
    return len(_ESCAPED.sub(" ", text)) if "\\" in text else len(text)


def _entropy(text: str) -> float:
    """Return the Shannon entropy in bits a byte."""
    counts = Counter(_BYTE.findall(text) if "\\" in text else text)
    shares = [count / counts.total() for count in counts.values()]
    return -sum(share * math.log2(share) for share in shares)
