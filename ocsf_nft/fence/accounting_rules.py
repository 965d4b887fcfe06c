"""Insertion of the packet counters of each rule (``rules/accounting.nft``) into a ruleset."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ocsf_nft.fence import policy_file
from ocsf_nft.fence.spec import TABLE
from ocsf_nft.flow import counter_suffix
from ocsf_nft.record import PERMISSIVE

if TYPE_CHECKING:
    from ocsf_nft.fence.spec import FenceSpec

#: Where the accounting of a rule is inserted: the family of its table, and the rule's name.
_ACCOUNTING: Final = re.compile(r"^# accounting\.nft: (\w+) ([\w-]+)\n", re.MULTILINE)
#: Objects in accounting.nft that count packets: their kind and their name before the rule's name;
#: and their definitions.
_COUNTER: Final = re.compile(
    r"((?:@|\bset |\bcounter |\bcounter name )"
    r"(?:flows4|flows6|others|refused|overflow|logged))_egress\b"
)
_COUNTING_OBJECTS: Final = re.compile(
    r"^\t(?:set (?:flows4|flows6|others)_egress \{\n(?:\t\t.*\n)+\t\}"
    r"|counter (?:refused|overflow|logged)_egress \{ \})\n",
    re.MULTILINE,
)
#: In accounting.nft, the jump to the first chain for packets with an owner, and these chains.
_OWNER_CHAIN: Final = re.compile(
    r"^\t\tmeta skuid >= 0 goto account_owned_egress\n"
    r"|^\tchain \w+_owned_egress \{\n(?:\t\t.*\n)+\t\}\n\n",
    re.MULTILINE,
)
_OWNER_CHAINS: Final = 12
#: In accounting.nft, the sets, chains and single statements that limit each user's new flows.
_QUOTAS: Final = re.compile(
    r"^(?:\t#.*\n)*"
    r"(?:\tset (?:new_flows|first_flows|shared[46])_egress \{\n(?:\t\t.*\n)+\t\}\n)+\n?"
    r"|^\tchain new_\w+_egress \{\n(?:\t\t.*\n)+\t\}\n\n"
    r"|^\t+[^#\n]* (?:goto new_\w+_egress|@shared[46]_egress .*)\n",
    re.MULTILINE,
)
#: Size of the sets of flows in accounting.nft; and without the reserve.
_SLOTS: Final = "\t\tsize 32768\n"
_SLOTS_WITHOUT_RESERVE: Final = "\t\tsize 16384\n"
#: Rules for packets that users of the sandbox send. All other rules see one sender, or have no
#: packets with a user.
_RULES_OF_USERS: Final = frozenset({"egress", "link"})


def insert(text: str, table: str, spec: FenceSpec) -> str:
    """Return a ruleset with the sets, counters and chains that count each rule's packets.

    ``text`` has a mark for each rule, and ``table`` is the name of its tables. Raises
    AssertionError if ``text`` has no mark.
    """
    policy = policy_file.define(policy_file.read("accounting.nft"), "sandbox", f'"{spec.sandbox}"')
    defines, _, body = policy.partition(f"table inet {TABLE} {{\n")
    if spec.tap is not None:
        body = _without_owners(body)
    preserved = (
        "".join(found[0] for found in _COUNTING_OBJECTS.finditer(body)) if spec.has_changed else ""
    )
    preserved = _named_for_mode(preserved, is_permissive=not spec.is_permissive)
    body = preserved + _named_for_mode(body, is_permissive=spec.is_permissive)
    if spec.is_permissive:
        body = body.replace(":egress:", f":egress:{PERMISSIVE}:")

    def of_rule(match: re.Match[str]) -> str:
        family, rule = match.groups()
        limited = body if rule in _RULES_OF_USERS else _without_quotas(body)
        renamed = re.sub(r"_egress(?![a-z])", f"_{rule}", limited).replace(":egress:", f":{rule}:")
        return f"table {family} {table} {{\n{renamed}\n"

    first = _ACCOUNTING.search(text)
    if first is None:
        raise AssertionError("the policy file must mark where its accounting is inserted")
    before, after = text[: first.start()], text[first.start() :]
    return before + defines + _ACCOUNTING.sub(of_rule, after)


def _without_owners(accounting: str) -> str:
    # Of a VM's packet, the kernel reports a process on the host as the owner, for example the
    # hypervisor.
    remaining, count = _OWNER_CHAIN.subn("", accounting)
    if count != _OWNER_CHAINS:
        raise AssertionError("accounting.nft must count packets with an owner in known chains")
    return remaining


def _without_quotas(accounting: str) -> str:
    return _QUOTAS.sub("", accounting).replace(_SLOTS, _SLOTS_WITHOUT_RESERVE)


def _named_for_mode(body: str, *, is_permissive: bool) -> str:
    if not is_permissive:  # the policy file has these names
        return body
    name = counter_suffix("egress", is_permissive=True)
    return _COUNTER.sub(lambda found: f"{found[1]}_{name}", body)
