"""Rules for exceptions: for destinations that are networks, or that have a range of ports."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.fence.values import Destination

#: Values of an exception that is a network or has a range of ports, in a rule of a policy file.
_VALUE: Final = re.compile(r"\$exception(4|6|_protocol|_ports)\b")
_DEFINE: Final = re.compile(
    r"^(?:#.*\n)*(?:define exception(?:4|6|_protocol|_ports) = .*\n)+", re.MULTILINE
)


def repeat_rules(text: str, ranges: Sequence[Destination]) -> str:
    """Return ``text`` with a copy of each rule for exceptions, for each exception in ``ranges``.

    Such a rule names an exception's values (``$exception4``, ``$exception_ports``). Rules for IPv4
    have copies for networks of IPv4, rules for IPv6 for networks of IPv6. Raises AssertionError if
    ``text`` does not define these values exactly once.
    """
    text, count = _DEFINE.subn("", text)
    if count != 1:
        raise AssertionError("the policy file must define the values of an exception once")
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if _VALUE.search(line):
            # A rule without a port is the same for all exceptions with one network.
            copies = dict.fromkeys(filter(None, (_rule_for(each, line) for each in ranges)))
            while not copies and lines[-1].lstrip().startswith("#"):
                lines.pop()  # the comment on the rule
            lines += copies
        else:
            lines.append(line)
    return "".join(lines)


def _rule_for(destination: Destination, line: str) -> str | None:
    values = {
        str(destination.network.version): str(destination.network),
        "_protocol": destination.protocol,
        "_ports": destination.ports,
    }
    if f"$exception{destination.network.version}" not in line:
        return None
    return _VALUE.sub(lambda found: values[found[1]], line)
