"""Targets: rulesets as nft and iptables list them. A process in the sandbox can add any rule."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from ocsf_nft.check import xtables
from ocsf_nft.check.accepted_flows import CheckScope
from ocsf_nft.check.blocking_rules import judge
from ocsf_nft.check.ruleset import from_json
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import listing
from ocsf_nft.fence.values import subnet
from ocsf_nft.netns import Namespace
from tests.fuzz import parts, seeds
from tests.fuzz.target import HOSTILE_JSON, HOSTILE_TEXT, Target, require

if TYPE_CHECKING:
    from tests.fuzz.parts import Part

_HOSTS: Final = Path(__file__).parents[2] / "check" / "hosts"
#: Sizes of the seeds: pieces of the real listings, so that mutations are fast.
_OBJECTS: Final = 12
_LINES: Final = 60
_MOST_LINE: Final = 200
_SCOPE: Final = CheckScope(
    namespace=Namespace(), device="vmtap-1", subnets=(subnet("172.16.0.1/30"),), port=3128
)


def _nft_json(data: bytes) -> None:
    try:
        listed = orjson.loads(data)
    except orjson.JSONDecodeError:
        return
    from_json(listed)


def _nft_judge(data: bytes) -> None:
    try:
        listed = orjson.loads(data)
    except orjson.JSONDecodeError:
        return
    for finding in judge(from_json(listed), _SCOPE):
        require(finding.meaning.isprintable(), "the meaning of a finding is not printable")


def _nft_listing(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    listing.logging_rules([text])
    listing.without_elements(text)
    lines = listing.difference({"inet ocsf_nft": _listing()}, {"inet ocsf_nft": text})
    require(all(len(line) <= _MOST_LINE for line in listing.shortened(lines)), "a line is too long")


def _iptables(data: bytes) -> None:
    xtables.chains(data.decode("utf-8", "surrogateescape"), "ip", "legacy")


def _json_seeds() -> list[bytes]:
    (whole,) = seeds.recorded("nft -j")
    objects = orjson.loads(whole)["nftables"]
    groups = [objects[at : at + _OBJECTS] for at in range(0, len(objects), _OBJECTS)]
    return [orjson.dumps({"nftables": group}) for group in groups]


def _judged_seeds() -> list[bytes]:
    """Return small rulesets with chains that see forwarded packets."""
    scope = {"family": "inet", "table": "t"}
    base = {
        "chain": {
            **scope,
            "name": "f",
            "type": "filter",
            "hook": "forward",
            "prio": 0,
            "policy": "drop",
        }
    }
    other = {"chain": {**scope, "name": "o"}}
    known = {
        "set": {
            **scope,
            "name": "s",
            "type": "ipv4_addr",
            "elem": ["10.0.0.1", {"range": ["10.0.0.5", "10.0.0.9"]}],
        }
    }

    def match(left: object, right: object) -> dict[str, object]:
        return {"match": {"op": "==", "left": left, "right": right}}

    def payload(protocol: str, field: str) -> dict[str, object]:
        return {"payload": {"protocol": protocol, "field": field}}

    expressions = [
        [match({"meta": {"key": "iifname"}}, "vmtap-*"), {"jump": {"target": "o"}}],
        [
            match(payload("ip", "saddr"), {"prefix": {"addr": "172.16.0.0", "len": 30}}),
            {"accept": None},
        ],
        [match(payload("tcp", "dport"), {"set": [80, {"range": [1000, 4000]}]}), {"drop": None}],
        [match(payload("ip", "daddr"), "@s"), {"goto": {"target": "o"}}],
        [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["new", {"drop": None}]]}}}],
        [match({"&": [{"meta": {"key": "mark"}}, 255]}, 1), {"reject": {"type": "tcp reset"}}],
        [
            {"limit": {"rate": 5, "per": "second"}},
            {"xt": {"type": "match", "name": "owner"}},
            {"return": None},
        ],
    ]
    rules = [
        {"rule": {**scope, "chain": "f" if number % 3 else "o", "handle": number, "expr": each}}
        for number, each in enumerate(expressions, 1)
    ]
    return [
        orjson.dumps({"nftables": [base, other, known, *rules]}),
        *(orjson.dumps({"nftables": [base, other, known, rule, rules[0]]}) for rule in rules),
    ]


@cache
def _listing() -> str:
    return _listing_seeds()[0].decode()


@cache
def _listing_seeds() -> list[bytes]:
    (whole,) = seeds.recorded("nft -a")
    lines = whole.splitlines(keepends=True)
    return [b"".join(lines[at : at + _LINES]) for at in range(0, len(lines), _LINES)]


def _saved() -> list[bytes]:
    found = []
    for path in sorted(_HOSTS.glob("*.rules?")):
        lines = path.read_bytes().splitlines(keepends=True)
        found += [b"".join(lines[at : at + _LINES]) for at in range(0, len(lines), _LINES)]
    return found


def _parts(data: bytes) -> list[Part]:
    return parts.lines(data)


TARGETS: Final = (
    Target(
        name="nft-json",
        parse=_nft_json,
        seeds=_json_seeds,
        parts=parts.json_values,
        hostile=HOSTILE_JSON,
        limit=65_536,
        share=2,
    ),
    Target(
        name="nft-judge",
        parse=_nft_judge,
        seeds=_judged_seeds,
        parts=parts.json_values,
        hostile=HOSTILE_JSON,
        limit=16_384,
        share=0.5,
    ),
    Target(
        name="nft-listing",
        parse=_nft_listing,
        seeds=_listing_seeds,
        parts=_parts,
        hostile=(
            *HOSTILE_TEXT,
            b'log prefix "ocsf-nft:a:egress:" # handle 1',
            b"}\n",
            b"chain a {",
        ),
        limit=32_768,
        share=1,
    ),
    Target(
        name="iptables-save",
        parse=_iptables,
        seeds=_saved,
        parts=_parts,
        documented=(OcsfNftError,),
        hostile=(*HOSTILE_TEXT, b"-A INPUT ", b"-j DROP\n", b"! -s "),
        limit=32_768,
        share=2,
    ),
)
