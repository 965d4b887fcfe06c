"""Decision whether DNS queries are a tunnel, for traffic of both kinds."""

from __future__ import annotations

import base64
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.ocsf.dns_tunnel import find_tunnel
from ocsf_nft.ocsf.finding_settings import TunnelThreshold
from ocsf_nft.record import DnsQuestion
from tests.strategies import QUESTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DEFAULT: Final = TunnelThreshold()
_RANDOM: Final = random.Random(7)
_WORDS: Final = [
    "static",
    "images",
    "api",
    "cdn",
    "docs",
    "mail",
    "news",
    "shop",
    "login",
    "update",
    "mirror",
    "archive",
    "files",
    "media",
    "video",
    "search",
    "status",
    "build",
    "cache",
    "proxy",
    "assets",
    "download",
    "packages",
    "registry",
    "security",
    "support",
]


def asked(names: Iterable[str]) -> list[DnsQuestion]:
    return [DnsQuestion(name, 1) for name in names]


def _data(size: int = 30) -> bytes:
    return _RANDOM.randbytes(size)


def _split(text: str, size: int = 63) -> str:
    return ".".join(text[at : at + size] for at in range(0, len(text), size))


def _binary(raw: bytes) -> str:
    return "".join(
        chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03}" for byte in raw
    )


#: One name of each kind of tunnel.
_TUNNELS: Final[dict[str, Callable[[int], str]]] = {
    "hexadecimal": lambda _: f"{_data(24).hex()}.t.example.com",
    "dnscat2, several labels": lambda _: f"dnscat.{_split(_data(90).hex())}.example.com",
    "iodine, base 32": lambda _: (
        f"{_split(base64.b32encode(_data(100)).decode().lower().strip('='))}.t.example.co.uk"
    ),
    "short labels": lambda _: f"{_split(_data(20).hex(), 4)}.t.example.com",
    "binary labels": lambda _: f"{_binary(_data(40))}.t.example.com",
    "decimal digits": lambda _: f"{int.from_bytes(_data(16)):039}.t.example.com",
    "with a counter": lambda number: f"{number}.{_data(20).hex()}.x.example.com",
}


@pytest.mark.parametrize("kind", _TUNNELS)
def test_tunnel_is_found_from_enough_names_on(kind: str) -> None:
    questions = asked(_TUNNELS[kind](number) for number in range(DEFAULT.names))
    found = find_tunnel(questions, DEFAULT)
    assert found is not None
    assert found.names == DEFAULT.names
    assert found.domain.endswith(("example.com", "example.co.uk"))
    assert found.length >= DEFAULT.length
    assert find_tunnel(questions[1:], DEFAULT) is None


def test_tunnel_among_ordinary_names_has_its_own_figures() -> None:
    questions = asked(f"{_data(24).hex()}.t.example.com" for _ in range(312))
    ordinary = asked(f"{word}{number}.example.com" for word in _WORDS for number in range(20))
    found = find_tunnel([*ordinary, *questions], DEFAULT)
    assert found is not None
    assert found.reason == (
        "312 distinct names below t.example.com, 48 characters long on average, "
        "4.0 bits a character"
    )


#: Names of ordinary programs.
_ORDINARY: Final = {
    "a content network": [
        f"d{_RANDOM.randrange(1 << 60):x}"[:14] + ".cloudfront.net" for _ in range(300)
    ],
    "a package manager of 100 hosts": [
        f"{_WORDS[number % 25]}.{_WORDS[number % 24]}{number}.example{number}.org"
        for number in range(100)
    ],
    "one host often": ["files.packages.example.org"] * 1000,
    "search lists of a cluster": [
        f"{word}.example.org.{end}"
        for word in _WORDS
        for end in ("default.svc.cluster.local", "svc.cluster.local", "cluster.local")
    ],
    "services of a cluster": [
        f"{one}-{two}.{two}.svc.cluster.local" for one in _WORDS for two in _WORDS[:10]
    ],
    "reverse lookups of IPv6": [
        ".".join(f"{_RANDOM.randrange(1 << 128):032x}") + ".ip6.arpa" for _ in range(300)
    ],
    "reverse lookups of IPv4": [f"{n % 256}.{n % 7}.113.203.in-addr.arpa" for n in range(300)],
    "a block list": [f"{n % 256}.{n % 7}.0.192.zen.example.org" for n in range(300)],
    "buckets": [f"{one}-{two}.s3.example.com" for one in _WORDS for two in _WORDS],
    "random probes of a browser": [f"{_data(8).hex()}" for _ in range(300)],
    "hashes in few names": [f"{_data(20).hex()}.avqs.example.com" for _ in range(20)],
    "padding": [f"{'a' * (30 + number)}.example.com" for number in range(33)] * 9,
}


#: Names in other sandboxes, in the order of time.
_APT: Final = [
    f"{service}{host}{end}"
    for host in (
        "archive.example.org", "security.example.org", "download.example.com", "apt.example.net",
        "packages.cloud.example.com", "ppa.example.net", "packages.example.com",
    )
    for service in ("", "_http._tcp.", "_https._tcp.")
    for end in ("", ".eu-central-1.compute.internal", ".ec2.internal")
]  # fmt: skip
_BROWSER: Final = [
    *(f"r{n}---sn-{_data(4).hex()}.googlevideo.com" for n in range(100)),
    *(f"{_data(8).hex()}.fls.doubleclick.net" for _ in range(60)),
    *(f"e{_RANDOM.randrange(99999)}.dsc{n % 9}.akamaiedge.net" for n in range(100)),
    *(f"scontent-fra{n}-{n % 5}.xx.fbcdn.net" for n in range(60)),
    *(f"{_data(16).hex()}.safeframe.googlesyndication.com" for _ in range(40)),
]
_SEARCH: Final = (
    ".production-workloads.svc.cluster.local", ".svc.cluster.local", ".cluster.local",
    ".eu-central-1.compute.internal", "",
)  # fmt: skip
_POD: Final = [
    f"{host}{end}"
    for host in (
        *(f"{one}.eu-central-1.amazonaws.com" for one in ("s3", "logs", "sqs", "monitoring")),
        *(f"{_data(6).hex()}.eu-central-1.rds.amazonaws.com" for _ in range(20)),
        *(f"{one}-service-{number}.payments" for one in _WORDS[:20] for number in range(6)),
    )
    for end in _SEARCH
]


@pytest.mark.parametrize("names", [_APT, _BROWSER, _POD], ids=["apt", "browser", "pod"])
def test_names_of_a_session_are_no_tunnel(names: list[str]) -> None:
    assert len(names) > DEFAULT.names
    for number in range(DEFAULT.names, len(names)):
        assert find_tunnel(asked(names[:number]), DEFAULT) is None


def test_tunnel_through_a_search_list_is_found() -> None:
    tunnel = [f"{_data(20).hex()}.t.example.com{_SEARCH[0]}" for _ in range(60)]
    found = find_tunnel(asked([*_POD, *tunnel]), DEFAULT)
    assert found is not None
    assert (found.domain, found.names) == (f"t.example.com{_SEARCH[0]}", 60)


def test_decision_on_hostile_names_is_quick() -> None:
    escaped = [f"{_binary(bytes([0, 1]) * 60 + _data(2))}.{n}.example.com" for n in range(512)]
    deep = [f"{n}.{'a.' * 120}com" for n in range(512)]
    for names in (escaped, deep):
        started = time.thread_time()
        find_tunnel(asked(names), DEFAULT)
        # Usually below 25 ms.
        assert time.thread_time() - started < 0.25


@pytest.mark.parametrize("kind", _ORDINARY)
def test_ordinary_names_are_no_tunnel(kind: str) -> None:
    assert find_tunnel(asked(_ORDINARY[kind]), DEFAULT) is None


def test_each_threshold_decides() -> None:
    questions = asked(f"{_data(24).hex()}.t.example.com" for _ in range(60))
    found = find_tunnel(questions, DEFAULT)
    assert found is not None
    exact = TunnelThreshold(names=60, length=48, entropy=found.entropy)
    assert find_tunnel(questions, exact) == found
    assert find_tunnel(questions, replace(exact, names=61)) is None
    assert find_tunnel(questions, replace(exact, length=49)) is None
    assert find_tunnel(questions, replace(exact, entropy=found.entropy + 0.01)) is None
    repeated = asked(f"{'a' * 40}{'b' * number}.example.com" for number in range(23))
    assert find_tunnel(repeated, TunnelThreshold(names=20, entropy=1)) is None


def test_only_distinct_names_count() -> None:
    name = f"{_data(24).hex()}.t.example.com"
    assert find_tunnel([DnsQuestion(name, number) for number in range(300)], DEFAULT) is None


@given(st.lists(QUESTIONS, max_size=80), st.integers(2, 9), st.integers(1, 20))
def test_decision_accepts_any_names(questions: list[DnsQuestion], names: int, length: int) -> None:
    found = find_tunnel(questions, TunnelThreshold(names=names, length=length, entropy=0))
    if found is not None:
        assert names <= found.names <= len(questions)
        assert found.length >= length
        assert 0 <= found.entropy <= 8.1
        assert find_tunnel(questions[::-1], TunnelThreshold(names=names, length=length, entropy=0))
