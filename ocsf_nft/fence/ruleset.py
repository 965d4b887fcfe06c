"""The text of a ruleset, from the policy files in ``rules/`` and checked values. Runs on any OS.

Here a policy file's ``define`` lines get their values, its rules their accounting, its log
statements their form, its sets their elements. All text that nft reads comes from these files or
from values that :mod:`ocsf_nft.fence.values` has checked.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.fence import permissive, vm_addresses
from ocsf_nft.flow import counting_name
from ocsf_nft.record import PERMISSIVE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ocsf_nft.fence.spec import FenceSpec, LogTransport, Profile, Surroundings

TABLE: Final = "ocsf_nft"
LOOPBACK: Final = "lo"
#: The sets that the installer fills, in whichever table they are.
_STATIC_SETS: Final = ("allowed4", "allowed6", "neighbours4", "neighbours6")

_FILES: Final[Mapping[Profile, str]] = {
    "sandbox": "sandbox.nft",
    "sidecar": "sidecar.nft",
    "tap": "tap.nft",
}
#: What a permissive fence has besides, by the policy file that it is put into.
_PERMISSIVE: Final = {
    "sandbox.nft": "permissive.nft",
    "sidecar.nft": "permissive.nft",
    "tap.nft": "permissive_tap.nft",
}
#: The families of a profile's tables, and the rules that count in each.
_INSIDE: Final = (("inet", ("egress", "forward", "ingress")), ("netdev", ("link",)))
_RULES: Final[Mapping[Profile, tuple[tuple[str, tuple[str, ...]], ...]]] = {
    "sandbox": _INSIDE,
    "sidecar": _INSIDE,
    "tap": (("inet", ("vm-forward", "vm-input", "vm-ingress")), ("netdev", ("vm-link",))),
}
#: A table with these is changed by the process alone that has opened it in this way, for as long as
#: its socket is open; nft's is not for long, and what it leaves persists (Linux 6.9).
OWNED: Final = "flags owner,persist;"
_LOG_TAIL: Final = " group 4001 snaplen 128"
#: How a policy file names its tables: where a table is named for a device, by what stands for it.
_OPENING: Final = re.compile(
    r"^(?P<before>(?:delete )?table (?P<family>\w+) )(?P<table>ocsf_nft[\w.-]*)(?P<after> \{)?$",
    re.MULTILINE,
)
#: Where a definition makes sure that there is a table to delete, and where it opens one.
_FIRST: Final = re.compile(r"^(table \w+ [\w.-]+)$", re.MULTILINE)
_BLOCK: Final = re.compile(r"^(table \w+ [\w.-]+ \{)$", re.MULTILINE)
_SET: Final = re.compile(r"^\tset (\w+) \{$")
#: Where the accounting of a rule goes: the family of its table, and the rule's name.
_ACCOUNTING: Final = re.compile(r"^# accounting\.nft: (\w+) ([\w-]+)\n", re.MULTILINE)
#: In accounting.nft, what counts packets, by its kind and its name before the rule's; and its
#: definition.
_COUNTER: Final = re.compile(
    r"((?:@|\bset |\bcounter |\bcounter name )"
    r"(?:flows4|flows6|others|refused|overflow|logged))_egress\b"
)
_COUNTS: Final = re.compile(
    r"^\t(?:set (?:flows4|flows6|others)_egress \{\n(?:\t\t.*\n)+\t\}"
    r"|counter (?:refused|overflow|logged)_egress \{ \})\n",
    re.MULTILINE,
)
#: ``flags all``: uid, TCP sequence and options, IP options, link addresses. Level info, because a
#: warning reaches the console. The kernel log holds some hundreds of records and is everybody's,
#: so here there is one more budget, for all flows; what it keeps out is counted all the same.
_KERNEL_LOG: Final = ("limit rate 1000/second burst 2000 packets ", " level info flags all")


class Table(NamedTuple):
    """A table of a fence, and the rules that count in it."""

    family: str
    name: str
    rules: tuple[str, ...]


def tables(spec: FenceSpec) -> tuple[Table, ...]:
    """The tables in the namespace that is fenced; a VM's fence is in its host's."""
    return tables_of(spec.profile, None if spec.tap is None else spec.tap.device)


def tables_of(profile: Profile, device: str | None) -> tuple[Table, ...]:
    """The same, of a fence that nothing more is known of."""
    name = TABLE if device is None else device_table(device)
    return tuple(Table(family, name, rules) for family, rules in _RULES[profile])


def static_sets(spec: FenceSpec) -> tuple[str, ...]:
    """The sets that the installer fills. All others fill themselves."""
    is_told = spec.tap is not None and spec.tap.mac is not None
    return (*_STATIC_SETS, "macs") if is_told else _STATIC_SETS


def guard_tables(spec: FenceSpec) -> tuple[Table, ...]:
    """The tables on the host's side of a sandbox's link, none where no guard is wanted."""
    if spec.guard_device is None:
        return ()
    return (Table("netdev", device_table(spec.guard_device), ("guard",)),)


def fence(spec: FenceSpec, around: Surroundings, transport: LogTransport) -> str:
    """The fence itself, ready for ``nft -f``."""
    links = around.links or (LOOPBACK,)
    defines = {"links": _names(links)}
    if spec.tap is None:
        defines["uplinks"] = _names(around.uplinks or links)
    if spec.profile == "sidecar":
        defines["proxy_uids"] = _braced(map(str, sorted(set(spec.proxy_uids))))
    if spec.tap is not None:
        defines |= vm_addresses.addresses(spec.tap) | {"tracked_as": vm_addresses.zone(around)}
    (name,) = {table.name for table in tables(spec)}
    text = _render(_FILES[spec.profile], spec, defines, name, transport)
    if spec.tap is not None:
        text = vm_addresses.without_families(text, spec.tap)
    return _whole(text, spec, around)


def guard(spec: FenceSpec, around: Surroundings, transport: LogTransport) -> str:
    """The guard on the host's side, ready for ``nft -f``; ``spec.guard_device`` names the link."""
    device = spec.guard_device or LOOPBACK
    defines = {"links": _names((device,))}
    text = _render("guard.nft", spec, defines, device_table(device), transport)
    return _whole(text, spec, around)


def whole(spec: FenceSpec, around: Surroundings, transport: LogTransport) -> str:
    """All that a specification asks for: the fence, and the guard if one is wanted."""
    text = fence(spec, around, transport)
    return text if spec.guard_device is None else text + guard(spec, around, transport)


def digest(spec: FenceSpec, around: Surroundings, transport: LogTransport) -> str:
    """What tells this version's policy from another's: SHA-256 of its text, in hex."""
    return hashlib.sha256(whole(spec, around, transport).encode()).hexdigest()


def device_table(device: str) -> str:
    """The name of a table that is one device's, in the characters that nft allows."""
    return f"{TABLE}_" + re.sub(r"[^A-Za-z0-9.-]", lambda found: f"_{ord(found[0]):02x}", device)


def first(family: str, name: str, *, persists: bool) -> str:
    """What makes sure that there is a table to delete, where the one that stands is of that kind.

    The kernel takes no table by the same name and of the other kind.
    """
    return f"table {family} {name}{f' {{ {OWNED} }}' if persists else ''}\n"


def _render(
    file: str, spec: FenceSpec, defines: Mapping[str, str], table: str, transport: LogTransport
) -> str:
    text = _policy(file)
    if spec.is_permissive:
        more = _PERMISSIVE.get(file)
        text = permissive.turned(text, "" if more is None else _policy(more))
    for name, value in defines.items():
        text = _define(text, name, value)
    opened = _OPENING.search(text)
    if opened is None:
        raise AssertionError("the policy file must open a table of ours")
    text = _with_accounting(text, opened["table"], spec)
    text = text.replace("of sandbox example", f"of sandbox {spec.sandbox}")
    text = _OPENING.sub(lambda at: at["before"] + table + (at["after"] or ""), text)
    return _with_log(text, spec.group, transport)


def _whole(text: str, spec: FenceSpec, around: Surroundings) -> str:
    text += _elements(text, _static(spec, around))
    if not spec.is_owned:
        return text
    text = _FIRST.sub(rf"\1 {{ {OWNED} }}", text)
    return _BLOCK.sub(rf"\1\n\t{OWNED}", text)


def _policy(file: str) -> str:
    return (importlib.resources.files("ocsf_nft.rules") / file).read_text("utf-8")


def _with_accounting(text: str, table: str, spec: FenceSpec) -> str:
    policy = _define(_policy("accounting.nft"), "sandbox", f'"{spec.sandbox}"')
    defines, _, body = policy.partition(f"table inet {TABLE} {{\n")
    if spec.tap is not None:
        body = vm_addresses.without_owners(body)
    kept = "".join(found[0] for found in _COUNTS.finditer(body)) if spec.has_changed else ""
    kept = _counted_as(kept, is_permissive=not spec.is_permissive)
    body = kept + _counted_as(body, is_permissive=spec.is_permissive)
    if spec.is_permissive:
        body = body.replace(":egress:", f":egress:{PERMISSIVE}:")

    def of_rule(place: re.Match[str]) -> str:
        family, rule = place.groups()
        renamed = re.sub(r"_egress(?![a-z])", f"_{rule}", body).replace(":egress:", f":{rule}:")
        return f"table {family} {table} {{\n{renamed}\n"

    first = _ACCOUNTING.search(text)
    if first is None:
        raise AssertionError("the policy file must say where its rules are accounted for")
    before, after = text[: first.start()], text[first.start() :]
    return before + defines + _ACCOUNTING.sub(of_rule, after)


def _counted_as(body: str, *, is_permissive: bool) -> str:
    """The accounting of the rule egress, by the names that its mode has."""
    name = counting_name("egress", is_permissive=is_permissive)
    return _COUNTER.sub(lambda found: f"{found[1]}_{name}", body)


def _names(links: tuple[str, ...]) -> str:
    return _braced(f'"{link}"' for link in links)


def _braced(values: Iterable[str]) -> str:
    return "{ " + ", ".join(values) + " }"


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


def _static(spec: FenceSpec, around: Surroundings) -> dict[str, list[str]]:
    """What is in the sets that fill themselves in no table."""
    found: dict[str, list[str]] = {}
    for version in (4, 6):
        found[f"allowed{version}"] = [
            f"{place.address} . {place.protocol} . {place.port}"
            for place in spec.allowed
            if place.address.version == version
        ]
        found[f"neighbours{version}"] = [
            str(address) for address in around.neighbours if address.version == version
        ]
    if spec.tap is not None and spec.tap.mac is not None:
        found["macs"] = [spec.tap.mac]
    return found


def _elements(text: str, contents: Mapping[str, list[str]]) -> str:
    """Fill the sets of a ruleset, in whichever table they are."""
    lines = []
    where = ""
    for line in text.splitlines():
        if opened := _OPENING.fullmatch(line):
            where = f"{opened['family']} {opened['table']}"
        elif (found := _SET.fullmatch(line)) and contents.get(found[1]):
            lines.append(f"add element {where} {found[1]} {_braced(contents[found[1]])}\n")
    return "".join(lines)
