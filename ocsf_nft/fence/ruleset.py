"""The text of a ruleset, from the policy files in ``rules/`` and checked values. Runs on any OS.

Here a policy file's ``define`` lines get their values, its rules their accounting, its log
statements their form, its sets their elements. All text that nft reads comes from the three files
or from values that :mod:`ocsf_nft.fence.values` has checked.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.fence.spec import FenceSpec, LogTransport, Surroundings
    from ocsf_nft.fence.values import Address, Endpoint

TABLE: Final = "ocsf_nft"
FAMILIES: Final = ("inet", "netdev")
LOOPBACK: Final = "lo"
#: The sets that the installer fills, in whichever table they are. All others fill themselves.
STATIC_SETS: Final = ("allowed4", "allowed6", "neighbours4", "neighbours6")

_GUARD_IN_FILE: Final = "ocsf_nft_guard"
_LOG_TAIL: Final = " group 4001 snaplen 128"
#: Where the accounting of a rule goes: the family of its table, and the rule's name.
_ACCOUNTING: Final = re.compile(r"^# accounting\.nft: (\w+) (\w+)\n", re.MULTILINE)
#: ``flags all``: uid, TCP sequence and options, IP options, link addresses. Level info, because a
#: warning reaches the console. The kernel log holds some hundreds of records and is everybody's,
#: so here there is one more budget, for all flows; what it keeps out is counted all the same.
_KERNEL_LOG: Final = ("limit rate 1000/second burst 2000 packets ", " level info flags all")


def sandbox(spec: FenceSpec, around: Surroundings, transport: LogTransport) -> str:
    """The fence inside the sandbox, ready for ``nft -f``."""
    links = around.links or (LOOPBACK,)
    text = _render("sandbox.nft", spec, links, transport)
    text = _define(text, "uplinks", _names(around.uplinks or links))
    return (
        text
        + _elements("inet", TABLE, spec.allowed, around.neighbours, link_layer=False)
        + (_elements("netdev", TABLE, spec.allowed, around.neighbours, link_layer=True))
    )


def guard(spec: FenceSpec, around: Surroundings, transport: LogTransport) -> str:
    """The guard on the host's side, ready for ``nft -f``; ``spec.guard_device`` names the link."""
    device = spec.guard_device or LOOPBACK
    table = guard_table(device)
    text = _render("guard.nft", spec, (device,), transport).replace(_GUARD_IN_FILE, table)
    return text + _elements("netdev", table, spec.allowed, around.neighbours, link_layer=True)


def whole(spec: FenceSpec, around: Surroundings, transport: LogTransport) -> str:
    """All that a specification asks for: the fence, and the guard if one is wanted."""
    text = sandbox(spec, around, transport)
    return text if spec.guard_device is None else text + guard(spec, around, transport)


def digest(spec: FenceSpec, around: Surroundings, transport: LogTransport) -> str:
    """What tells this version's policy from another's: SHA-256 of its text, in hex."""
    return hashlib.sha256(whole(spec, around, transport).encode()).hexdigest()


def guard_table(device: str) -> str:
    """The name of a guard's table: one for each device, in the characters that nft allows."""
    return f"{TABLE}_" + re.sub(r"[^A-Za-z0-9.-]", lambda found: f"_{ord(found[0]):02x}", device)


def removal(tables: Iterable[tuple[str, str]]) -> str:
    """Delete tables (family, name), whether they are there or not, in one transaction."""
    return "".join(
        f"table {family} {name}\ndelete table {family} {name}\n" for family, name in tables
    )


def _render(file: str, spec: FenceSpec, links: tuple[str, ...], transport: LogTransport) -> str:
    text = _define(_policy(file), "links", _names(links))
    text = _with_accounting(text, spec.sandbox)
    text = text.replace("of sandbox example", f"of sandbox {spec.sandbox}")
    return _with_log(text, spec.group, transport)


def _policy(file: str) -> str:
    return (importlib.resources.files("ocsf_nft.rules") / file).read_text("utf-8")


def _with_accounting(text: str, name: str) -> str:
    policy = _define(_policy("accounting.nft"), "sandbox", f'"{name}"')
    opening = f"table inet {TABLE} {{\n"
    defines, _, body = policy.partition(opening)
    table = _GUARD_IN_FILE if f"table netdev {_GUARD_IN_FILE}" in text else TABLE

    def of_rule(place: re.Match[str]) -> str:
        family, rule = place.groups()
        renamed = re.sub(r"_egress\b", f"_{rule}", body).replace(":egress:", f":{rule}:")
        return f"table {family} {table} {{\n{renamed}\n"

    first = _ACCOUNTING.search(text)
    if first is None:
        raise AssertionError("the policy file must say where its rules are accounted for")
    before, after = text[: first.start()], text[first.start() :]
    return before + defines + _ACCOUNTING.sub(of_rule, after)


def _names(links: tuple[str, ...]) -> str:
    return "{ " + ", ".join(f'"{link}"' for link in links) + " }"


def _define(text: str, name: str, value: str) -> str:
    replaced, count = re.subn(
        rf"^define {name} = .*$", lambda _: f"define {name} = {value}", text, flags=re.MULTILINE
    )
    if count != 1:
        raise AssertionError(f"the policy file must define {name} once, not {count} times")
    return replaced


def _with_log(text: str, group: int, transport: LogTransport) -> str:
    lines = []
    for line in text.splitlines(keepends=True):
        head, log, tail = line.partition("log prefix ")
        if not log or transport == "nflog":
            lines.append(line.replace(_LOG_TAIL, f" group {group} snaplen 128") if log else line)
        elif transport == "kmsg":
            budget, flags = _KERNEL_LOG
            lines.append(head + budget + log + tail.replace(_LOG_TAIL, flags))
    return "".join(lines)


def _elements(
    family: str,
    table: str,
    allowed: tuple[Endpoint, ...],
    neighbours: tuple[Address, ...],
    *,
    link_layer: bool,
) -> str:
    sets = {
        f"allowed{version}": [
            f"{place.address} . {place.protocol} . {place.port}"
            for place in allowed
            if place.address.version == version
        ]
        for version in (4, 6)
    }
    for version in (4, 6) if link_layer else (6,):
        sets[f"neighbours{version}"] = [
            str(address) for address in neighbours if address.version == version
        ]
    return "".join(
        f"add element {family} {table} {name} {{ {', '.join(elements)} }}\n"
        for name, elements in sets.items()
        if elements
    )
