"""Page of the documentation that lists the variants and their outcomes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from tests.kernel.ways.inherent import INHERENT
from tests.kernel.ways.variant import FENCED
from tests.kernel.ways.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.kernel.ways.matrix import Verdict
    from tests.kernel.ways.variant import Attacker, Form, Variant

TEST: Final = "tests/kernel/ways"
_ATTACKERS: Final[dict[Attacker, str]] = {
    "unprivileged": "A user without capabilities",
    "raw": "A user with CAP_NET_RAW",
    "admin": "Root of a user namespace that owns the network namespace",
    "cap-add": "Root with CAP_NET_ADMIN and CAP_NET_RAW of the initial user namespace",
}
_COLUMNS: Final[dict[Form, str]] = {
    "guarded": "sandbox with guard",
    "unguarded": "sandbox without guard",
    "sidecar": "sidecar",
    "tap": "VM",
}
_HEAD: Final = """\
# Ways round the proxy

<!-- This page is generated: python -m tests.kernel.ways docs/explanation/ways-round.md -->

This page lists the attacks that the tests try against each form of a fence. Each attack is to bring
chosen bytes past the fence, without the proxy. A test runs each attack in a namespace without a
fence, and shows that it works there. Then it runs the attack against the fence. Observers behind
the fence search all frames for the bytes.

| outcome | meaning |
|---|---|
| stopped | No chosen byte arrived. |
| reported | Chosen bytes arrived. Within 5 s, an event of severity Medium or more reported it. |
| allowed | Chosen bytes arrived only where the policy allows packets. |
| OUT | Chosen bytes arrived, and no event reported it. |

The policy allows packets to the proxy, and from a VM also packets to the internet with the host's
address. An event about a blocked packet is no report: it states that the packet was blocked.
Some attacks race the restoration of the fence. Their outcome is stopped or reported. Those of the
family "rewriting after the verdict" race the removal of their chain: if it is removed first, the
packet goes to the proxy as it was, which is allowed.

The columns are the forms of a fence. "Guard" is the fence on the host's end of the link
(`host_guard`). "VM" is the profile `tap`, as it is by default.

"""
_INHERENT: Final = """
## Inherent

The proxy receives the packets that it needs, and a packet has fields that its sender chooses.
No fence can prevent that. The proxy decides what leaves.

| attack | reason |
|---|---|
"""


def page(verdicts: Mapping[tuple[str, Form], Verdict]) -> str:
    """Return the page for the outcomes of a run."""
    return _HEAD + "".join(_parts(verdicts))


def row(key: str, verdicts: Mapping[tuple[str, Form], Verdict]) -> str:
    """Return the line of a variant."""
    variant = VARIANTS[key]
    cells = (
        variant.family,
        f"**{variant.name}**: {variant.summary}",
        *(verdicts[key, form] for form in FENCED),
        f"`[{key}]`",
    )
    return f"| {' | '.join(cells)} |\n"


def _parts(verdicts: Mapping[tuple[str, Form], Verdict]) -> Iterator[str]:
    yield from _summary(verdicts)
    for attacker, title in _ATTACKERS.items():
        yield f"\n## {title}\n\n"
        yield f"| family | attack | {' | '.join(_COLUMNS.values())} | test |\n"
        yield f"|{'---|' * (len(_COLUMNS) + 3)}\n"
        yield from (row(key, verdicts) for key in _keys(attacker))
    yield _INHERENT
    for key, reason in INHERENT.items():
        yield f"| `[{key}]` | {reason} |\n"


def _keys(attacker: Attacker) -> Iterator[str]:
    def order(item: tuple[str, Variant]) -> tuple[str, str]:
        return item[1].family, item[1].name

    found = sorted(VARIANTS.items(), key=order)
    return (key for key, each in found if each.attacker == attacker)


def _summary(verdicts: Mapping[tuple[str, Form], Verdict]) -> Iterator[str]:
    yield (
        "`make ways` runs all of them. `python -m tests.kernel.ways NAME` runs one, by the name in "
        "the last column.\n\n"
    )
    yield "| attacker | form | attacks | stopped | reported | allowed | OUT |\n"
    yield "|---|---|---|---|---|---|---|\n"
    for attacker, title in _ATTACKERS.items():
        keys = list(_keys(attacker))
        for form, name in _COLUMNS.items():
            counts = Counter(verdicts[key, form] for key in keys)
            cells = (counts[each] for each in ("stopped", "reported", "allowed", "OUT"))
            yield f"| {title} | {name} | {len(keys)} | {' | '.join(map(str, cells))} |\n"
