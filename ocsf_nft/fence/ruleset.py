"""Generation of a fence's ruleset text from the policy files in ``rules/``; runs on any OS.

This module inserts values, set elements and packet counters. It changes the log statements, so
that the kernel logs packets to NFLOG, to the kernel log, or not at all.
:mod:`ocsf_nft.fence.values` checks values from outside the policy files.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from ocsf_nft import cloud_metadata
from ocsf_nft.fence import (
    accounting_rules,
    exception_rules,
    guard_conditions,
    permissive,
    pinned_rules,
    policy_file,
)
from ocsf_nft.fence.spec import LOOPBACK, Surroundings, device_table
from ocsf_nft.ip_text import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ocsf_nft.fence.spec import FenceSpec, LogTransport, Tap
    from ocsf_nft.fence.values import Subnet

#: Placeholder in conditions that are omitted.
_NO_MACS: Final = ("00:00:00:00:00:00",)
#: Additional rules of a permissive fence, by the policy file that they are inserted into.
_PERMISSIVE: Final = {
    "sandbox.nft": "permissive.nft",
    "sidecar.nft": "permissive.nft",
    "tap.nft": "permissive_tap.nft",
}
#: Policy file of a strict fence, and the chains of tap.nft that it replaces.
_STRICT: Final = "strict_tap.nft"
_NOT_STRICT: Final = re.compile(
    r"^\tchain unlisted \{\n\t\taccept\n\t\}\n\tchain answers \{\n\t\taccept\n\t\}\n", re.MULTILINE
)
#: A table with these flags can be changed only by the process that opened it this way, while its
#: socket is open (Linux 6.9). nft closes its socket at once, and the table that it created
#: persists.
EXCLUSIVE_FLAGS: Final = "flags owner,persist;"
_LOG_TAIL: Final = " group 4001 snaplen 128"
#: The same of the log statement for DNS, and a rule that jumps to it.
_DNS_LOG_TAIL: Final = " group 4001 snaplen 512"
_DNS_LOG_RULE: Final = " goto log_dns_"
#: Lines that create a table if it is missing, so that it can be deleted; and lines that open one.
_ENSURE_TABLE: Final = re.compile(r"^(table \w+ [\w.-]+)$", re.MULTILINE)
_BLOCK: Final = re.compile(r"^(table \w+ [\w.-]+ \{)$", re.MULTILINE)
_SET: Final = re.compile(r"^\tset (\w+) \{$")
#: Parts of the guard about uplinks, which are needed only if another end is guarded, too.
_ABOUT_UPLINKS: Final = re.compile(
    r"^define uplinks = .*\n|^\t\t[io]ifname != \$uplinks .*\n|(?<=^\t\t)[io]ifname \$uplinks ",
    re.MULTILINE,
)
#: Lookups in sets of the own addresses: only a new ruleset changes their elements. Not in those of
#: interfaces, because nft lists the same index as a number, or as a name. Not in those of link
#: addresses: nft would read such an address and the ethertype at once. Before Linux 6.6 the kernel
#: then overlooks a VLAN tag that it has taken out of the frame.
_LOOKUP: Final = re.compile(r" @(own4|own6)\b")
#: Links of a fence, and a chain that is attached to them.
_LINKS: Final = re.compile(r"^define links = \{ (.*) \}$", re.MULTILINE)
_ATTACHED: Final = re.compile(
    r"^\tchain (\w+) \{\n(?:\t\t#.*\n)*"
    r"\t\t(type filter hook \w+ devices = )\$links (priority -?\d+;)",
    re.MULTILINE,
)
_NETDEV_TABLE: Final = re.compile(r"^table (netdev \S+) \{$", re.MULTILINE)
#: Most links in one message. The kernel accepts up to 255 (NFT_NETDEVICE_MAX), but its notice about
#: the change must fit into one page (NLMSG_GOODSIZE), or all readers of the notices lose some.
MOST_LINKS: Final = 128
#: ``flags all``: uid, TCP sequence and options, IP options, link addresses. Level info, because a
#: warning reaches the console. The kernel log holds some hundreds of records and is shared with all
#: other programs, so here there is one more limit, for all flows together. Packets beyond that
#: limit are still counted.
_KERNEL_LOG: Final = ("limit rate 1000/second burst 2000 packets ", " level info flags all")
_IPV4_BYTES: Final = 4
#: Number of conntrack zones for VMs.
_ZONES: Final = 0xFFFF


def static_sets(spec: FenceSpec) -> tuple[str, ...]:
    """Return the names of the sets in a fence that are filled when the fence is installed.

    All other sets are filled later, from packets.
    """
    around = Surroundings()
    return tuple(_static_elements(spec, around) | guard_conditions.elements(spec, around))


def fence(spec: FenceSpec, around: Surroundings, transport: LogTransport) -> str:
    """Return the ruleset of a fence without its guard, as text for ``nft -f``."""
    links = around.links or (LOOPBACK,)
    defines = {"links": _names(links)}
    if spec.tap is None and (options := pinned_rules.options(around)):
        defines["own_options"] = policy_file.set_literal(options)
    if spec.profile == "sidecar":
        defines["proxy_uids"] = policy_file.set_literal(map(str, sorted(set(spec.proxy_uids))))
    if spec.tap is not None:
        # A new device has another index, so a new VM can't use the tracked connections of an
        # earlier VM. The numbers repeat after 65535 indexes.
        defines |= vm_addresses(spec.tap) | {"ct_zone": str((around.ifindex or 0) % _ZONES + 1)}
        defines |= _metadata()
    (name,) = {name for _, name in spec.tables}
    text = _render(f"{spec.profile}.nft", spec, defines, name, transport)
    if spec.tap is not None:
        text = _without_families(text, spec.tap)
    else:
        text = pinned_rules.adapt(text, spec, around)
    return _complete(text, spec, _static_elements(spec, around))


def guard(spec: FenceSpec, around: Surroundings, transport: LogTransport) -> str:
    """Return the ruleset of a fence's guard, as text for ``nft -f``."""
    device = spec.guard_device or LOOPBACK
    ends = around.host.ends
    uplinks = tuple(end.name for end in ends if end.is_uplink)
    defines = {
        "links": _names(tuple(end.name for end in ends) or (device,)),
        "uplinks": _names(uplinks or (device,)),
        "own_options": policy_file.set_literal(
            f"0x{mac.replace(':', '')}" for mac in around.macs or _NO_MACS
        ),
    }
    for version in (4, 6):
        own = [each for each in around.addresses if each.version == version]
        defines[f"own{version}_quoted"] = policy_file.set_literal(
            f"{int(each):#x}" for each in own or (0,)
        )
    text = _render("guard.nft", spec, defines, device_table(device), transport)
    if all(end.is_uplink for end in ends):
        text = _ABOUT_UPLINKS.sub("", text)
    if spec.finds_guard and (not ends or spec.is_permissive):
        text = guard_conditions.without_hooks(text)
    text = guard_conditions.without_unknown(text, spec, around)
    # Own addresses are others in a guard: the link-local ones have a set of their own there.
    static = _static_elements(spec, around) | guard_conditions.elements(spec, around)
    return _complete(text, spec, static, guard_conditions.learned_elements(around))


def fence_and_guard(spec: FenceSpec, around: Surroundings, transport: LogTransport) -> str:
    """Return the ruleset of a fence, and of its guard if it has one, as text for ``nft -f``."""
    text = fence(spec, around, transport)
    return text if spec.guard_device is None else text + guard(spec, around, transport)


def digest(spec: FenceSpec, around: Surroundings, transport: LogTransport) -> str:
    """Return the SHA-256 (hex) of the ruleset text of a fence and its guard.

    A version of ocsf-nft with other rules returns another digest.
    """
    return hashlib.sha256(fence_and_guard(spec, around, transport).encode()).hexdigest()


def vm_addresses(tap: Tap) -> dict[str, str]:
    """Return the values of the ruleset's variables ``vm4``, ``subnet4``, ``vm6`` and ``subnet6``.

    ``vm4`` and ``vm6`` are nftables sets of the addresses that the VM may have. If ``tap`` has no
    subnet of an IP version, the two variables of this version are omitted.
    """
    found = {}
    for subnet in tap.subnets:
        found[f"vm{subnet.version}"] = policy_file.set_literal(_vm_ranges(subnet))
        found[f"subnet{subnet.version}"] = str(subnet.network)
    return found


def _metadata() -> dict[str, str]:
    """Return the values of the ruleset's variables for metadata services of clouds.

    They are without the addresses in 169.254.0.0/16, which the rules refuse as a network.
    """
    addresses = [each.packed for each in cloud_metadata.SERVICES if not each.is_link_local]
    of_ipv4 = [each for each in addresses if len(each) == _IPV4_BYTES]

    def literal(values: Iterable[bytes]) -> str:
        return policy_file.set_literal(map(text_of, values))

    found = {
        f"metadata_{name}": literal(map(form.address_of, of_ipv4))
        for name, form in cloud_metadata.FREE_FORMS.items()
    }
    exact = [form.address_of(each) for form in cloud_metadata.EXACT_FORMS for each in of_ipv4]
    of_ipv6 = [each for each in addresses if len(each) != _IPV4_BYTES]
    return found | {"metadata4": literal(of_ipv4), "metadata6": literal((*of_ipv6, *exact))}


def ensure_table(family: str, name: str, *, persists: bool) -> str:
    """Return the ruleset line that creates a table if it is missing.

    With ``persists``, the line has the flags ``owner`` and ``persist``. For an existing table,
    ``persists`` must be true if the table is persistent, else false.
    """
    # ``delete table`` fails without the table, so this line comes before it. The kernel refuses a
    # line with other flags than the existing table has.
    return f"table {family} {name}{f' {{ {EXCLUSIVE_FLAGS} }}' if persists else ''}\n"


def _render(
    file: str, spec: FenceSpec, defines: Mapping[str, str], table: str, transport: LogTransport
) -> str:
    text = policy_file.read(file)
    if spec.tap is not None and spec.tap.is_strict:
        text = _make_strict(text)
    if spec.is_permissive:
        more = _PERMISSIVE.get(file)
        text = permissive.make_permissive(text, "" if more is None else policy_file.read(more))
    text = exception_rules.repeat_rules(text, spec.ranges)
    for name, value in defines.items():
        text = policy_file.define(text, name, value)
    opened = policy_file.OPENING.search(text)
    if opened is None:
        raise AssertionError("the policy file must open a table of ours")
    text = accounting_rules.insert(text, opened["table"], spec)
    text = text.replace("of sandbox example", f"of sandbox {spec.sandbox}")
    text = policy_file.OPENING.sub(lambda at: at["before"] + table + (at["after"] or ""), text)
    return _set_log_transport(text, spec.group, transport)


def _make_strict(text: str) -> str:
    """Return a VM's policy with the chains of a strict fence."""
    opened = policy_file.OPENING.search(policy_file.read(_STRICT))
    chains = (
        "" if opened is None else policy_file.read(_STRICT)[opened.end() + 1 :].removesuffix("}\n")
    )
    text, count = _NOT_STRICT.subn(lambda _: chains, text)
    if count != 1 or not chains:
        raise AssertionError("the policy file must have the chains that a strict fence replaces")
    return text


def _complete(
    text: str,
    spec: FenceSpec,
    static: Mapping[str, list[str]],
    learned: Mapping[str, list[str]] = MappingProxyType({}),
) -> str:
    text = _compare_with_single_elements(text, static)
    text += _fill_sets(text, {**static, **learned})
    text = _attach_in_groups(text)
    if not spec.is_owned:
        return text
    text = _ENSURE_TABLE.sub(rf"\1 {{ {EXCLUSIVE_FLAGS} }}", text)
    return _BLOCK.sub(rf"\1\n\t{EXCLUSIVE_FLAGS}", text)


def _attach_in_groups(text: str) -> str:
    """Return ``text`` with more statements for the links beyond the most in one message."""
    links = _LINKS.search(text)
    table = _NETDEV_TABLE.search(text)
    if links is None or table is None:
        raise AssertionError("a ruleset of ours must have links and a table for them")
    names, chains = links[1].split(", "), _ATTACHED.findall(text)
    first = policy_file.set_literal(names[:MOST_LINKS])
    text = text.replace(links[0], f"define links = {first}")
    for start in range(MOST_LINKS, len(names), MOST_LINKS):
        group = policy_file.set_literal(names[start : start + MOST_LINKS])
        for chain, head, priority in chains:
            text += f"add chain {table[1]} {chain} {{ {head}{group} {priority} }}\n"
    return text


def _compare_with_single_elements(text: str, contents: Mapping[str, list[str]]) -> str:
    """Return ``text`` with comparisons in place of lookups in sets of one element.

    A lookup takes three times as long, and each allowed packet has a dozen.
    """
    single = {name: found[0] for name, found in contents.items() if len(found) == 1}
    return _LOOKUP.sub(lambda found: f" {single.get(found[1], f'@{found[1]}')}", text)


def _without_families(text: str, tap: Tap) -> str:
    """Return ``text`` without the lines of an IP version of which a VM has no subnet."""
    for version in {4, 6} - {subnet.version for subnet in tap.subnets}:
        named = re.compile(rf"\$(?:vm|subnet){version}\b|^define (?:vm|subnet){version} = ")
        lines = text.splitlines(keepends=True)
        text = "".join(line for line in lines if not named.search(line))
    return text


def _names(links: tuple[str, ...]) -> str:
    return policy_file.set_literal(f'"{link}"' for link in links)


def _set_log_transport(text: str, group: int, transport: LogTransport) -> str:
    lines = []
    for line in text.splitlines(keepends=True):
        head, log, tail = line.partition("log prefix ")
        # The kernel's text has no bytes of a packet, so more of it is of no use for DNS.
        is_of_dns = _DNS_LOG_RULE in line or _DNS_LOG_TAIL in line
        if transport == "kmsg" and is_of_dns:
            continue
        if not log or transport == "nflog":
            lines.append(line.replace(" group 4001 ", f" group {group} ") if log else line)
        elif transport == "kmsg":
            budget, flags = _KERNEL_LOG
            lines.append(head + budget + log + tail.replace(_LOG_TAIL, flags))
    return "".join(lines)


def _static_elements(spec: FenceSpec, around: Surroundings) -> dict[str, list[str]]:
    """Return the elements of the sets that the installer fills, but of those of a guard alone."""
    found: dict[str, list[str]] = {}
    for version in (4, 6):
        found[f"allowed{version}"] = [
            f"{endpoint.address} . {endpoint.protocol} . {endpoint.port}"
            for endpoint in spec.allowed
            if endpoint.address.version == version
        ]
    for version in (4, 6):
        found[f"neighbours{version}"] = [
            str(address) for address in around.neighbours if address.version == version
        ]
    if spec.tap is None:
        found |= pinned_rules.elements(around)
    elif spec.tap.mac is not None:
        found["macs"] = [spec.tap.mac]
    return found


def _fill_sets(text: str, contents: Mapping[str, list[str]]) -> str:
    """Return statements that fill the sets of a ruleset with ``contents``, by the sets' names."""
    lines = []
    where = ""
    for line in text.splitlines():
        if not line.endswith("{"):
            continue
        if opened := policy_file.OPENING.fullmatch(line):
            where = f"{opened['family']} {opened['table']}"
        elif (found := _SET.fullmatch(line)) and contents.get(found[1]):
            lines.append(
                f"add element {where} {found[1]} {policy_file.set_literal(contents[found[1]])}\n"
            )
    return "".join(lines)


def _vm_ranges(subnet: Subnet) -> Iterator[str]:
    """Yield the addresses that a VM may have in its subnet, for example ``10.0.0.2-10.0.0.254``."""
    first, last = int(subnet.network[0]), int(subnet.network[-1])
    taken = {int(subnet.ip)}
    # The first address is reserved (network in IPv4, anycast of all routers in IPv6: RFC 4291), and
    # the last in IPv4 (broadcast). A subnet of two addresses reserves none (RFC 3021, RFC 6164).
    if last - first > 1:
        taken |= {first, last} if subnet.version == 4 else {first}
    make = type(subnet.ip)
    for before, after in itertools.pairwise((first - 1, *sorted(taken), last + 1)):
        if after - before == 2:
            yield str(make(before + 1))
        elif after - before > 2:
            yield f"{make(before + 1)}-{make(after - 1)}"
