"""The text of a fence's exceptions: a protocol, a network and a range of ports."""

from __future__ import annotations

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.errors import UsageError
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.values import Destination, endpoint, exception
from tests.fence.destinations import DESTINATIONS, is_allowed

#: Pieces of exceptions, and of what must not get into a ruleset.
_PIECES = st.sampled_from(
    [
        *("tcp:", "udp:", "TCP:", "10.0.0.0", "fd00::", "::", "[", "]", "/", "8", "0", "33", "129"),
        *(
            ":",
            "-",
            "443",
            "65536",
            "00",
            "%eth0",
            " ",
            "\n",
            '"',
            "accept",
            "; ",
            "{",
            "}",
            "$",
            "٨",
        ),
    ]
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("udp:10.0.0.53:53", "udp:10.0.0.53:53"),
        ("tcp:10.0.0.0/8:443", "tcp:10.0.0.0/8:443"),
        ("udp:[fd00::/16]:53", "udp:[fd00::/16]:53"),
        ("udp:[FD00:0::/16]:053", "udp:[fd00::/16]:53"),
        ("tcp:192.0.2.1:8000-8100", "tcp:192.0.2.1:8000-8100"),
        ("tcp:10.1.0.0/16:1024-65535", "tcp:10.1.0.0/16:1024-65535"),
        ("tcp:192.0.2.1/32:443-443", "tcp:192.0.2.1:443"),
        ("tcp:[fd00::1/128]:1-2", "tcp:[fd00::1]:1-2"),
        ("tcp:64.0.0.0/2:1", "tcp:64.0.0.0/2:1"),
        ("tcp:[2000::/3]:1", "tcp:[2000::/3]:1"),
    ],
)
def test_exception_has_a_canonical_form(text: str, shown: str) -> None:
    assert str(exception(text)) == shown


@given(DESTINATIONS)
def test_canonical_form_is_parsed_again(destination: Destination) -> None:
    assert exception(str(destination)) == destination


@given(st.text(max_size=40) | st.lists(_PIECES, max_size=12).map("".join))
def test_accepted_exception_is_canonical_and_cannot_add_statements(text: str) -> None:
    try:
        found = exception(text)
    except UsageError:
        return
    assert exception(str(found)) == found
    assert not set(str(found)) - set("tcpudp0123456789abcdef.:/[]-")
    assert 1 <= found.first_port <= found.last_port <= 65535
    assert found.network.prefixlen > 0
    assert is_allowed(found.network)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("10.0.0.53:53", "write tcp:ADDR:PORT or udp:ADDR:PORT"),
        ("icmp:10.0.0.53:53", "write tcp:ADDR:PORT or udp:ADDR:PORT"),
        ("UDP:10.0.0.53:53", "write tcp:ADDR:PORT or udp:ADDR:PORT"),
        ("udp:", "is no exception: write tcp:10.0.0.1:443"),
        ("tcp:10.0.0.0/8", "is no exception: write tcp:10.0.0.1:443"),
        ("tcp:10.0.0.1:80-", "is no exception: write tcp:10.0.0.1:443"),
        ("tcp:10.0.0.1:80-90-99", "is no exception: write tcp:10.0.0.1:443"),
        ("tcp:10.0.0.1:80,90", "is no exception: write tcp:10.0.0.1:443"),
        ("tcp:10.0.0.1:٨٠-٩٠", "is no exception: write tcp:10.0.0.1:443"),
        ("tcp:10.0.0.1:0-80", "are out of range: use 1 to 65535, lowest first"),
        ("tcp:10.0.0.1:90-80", "are out of range: use 1 to 65535, lowest first"),
        ("tcp:10.0.0.1:80-65536", "are out of range: use 1 to 65535, lowest first"),
        ("tcp:10.0.0.0/33:80", "no valid prefix length: use 1 to 32"),
        ("tcp:[fd00::/129]:80", "no valid prefix length: use 1 to 128"),
        ("tcp:10.0.0.0/:80", "no valid prefix length: use 1 to 32"),
        ("tcp:10.0.0.0/-8:80", "no valid prefix length: use 1 to 32"),
        ("tcp:10.0.0.0/255.0.0.0:80", "no valid prefix length: use 1 to 32"),
        ("tcp:10.0.0.0/8/8:80", "no valid prefix length: use 1 to 32"),
        ("tcp:10.0.0.1/8:80", "write the network, 10.0.0.0/8"),
        ("tcp:[fd00:1::1/32]:80", "write the network, [fd00:1::/32]"),
        ("tcp:0.0.0.0/0:80", "let the sandbox use a proxy, or make the fence permissive"),
        ("tcp:10.0.0.0/0:80", "let the sandbox use a proxy, or make the fence permissive"),
        ("tcp:[::/0]:80", "let the sandbox use a proxy, or make the fence permissive"),
        ("tcp:0.0.0.0/1:80", "contains 0.0.0.0/32, which is no address of a host"),
        ("tcp:128.0.0.0/1:80", "contains 224.0.0.0/4, which is no address of a host"),
        ("udp:239.0.0.0/8:80", "contains 224.0.0.0/4, which is no address of a host"),
        ("udp:240.0.0.0/4:80", "contains 255.255.255.255/32, which is no address of a host"),
        ("tcp:[::/96]:80", "contains ::/128, which is no address of a host"),
        ("udp:[ff02::/16]:80", "contains ff00::/8, which is no address of a host"),
        ("udp:0.0.0.0:80", "is not the address of one host"),
        ("udp:224.0.0.1:80", "is not the address of one host"),
        ("udp:255.255.255.255/32:80-90", "is not the address of one host"),
        ("udp:fd00::/16:53", "is ambiguous: write an IPv6 address in brackets"),
        ("udp:[fd00::]/16:53", "is no IP address"),
        ("udp:[10.0.0.0/8]:53", "is ambiguous: write an IPv6 address in brackets"),
        ("udp:fd00::/16]:53", "is ambiguous: write an IPv6 address in brackets"),
        ("udp:[fe80::%eth0/64]:53", "has a zone"),
        ("tcp:internet.example/8:80", "is no IP address: write one"),
        ('tcp:10.0.0.0/8" accept:80', "no valid prefix length"),
    ],
)
def test_invalid_exception_is_refused_with_its_cause(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        exception(text)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_proxy_is_one_address_with_one_port() -> None:
    for text in ("10.0.0.0/8:3128", "10.0.0.1:3128-3130", "255.255.255.255:3128"):
        with pytest.raises(UsageError):
            endpoint(text)


def test_single_endpoint_and_range_are_separate() -> None:
    exceptions = tuple(
        map(
            exception,
            (
                "udp:[fd00::/16]:53", "tcp:10.0.0.9:443", "tcp:10.0.0.0/8:443",
                "tcp:10.0.0.0/8:443", "tcp:10.0.0.9:443-444", "tcp:10.0.0.0/16:443",
            ),
        )
    )  # fmt: skip
    spec = FenceSpec(sandbox="a", proxies=(endpoint("10.0.0.1:3128"),), exceptions=exceptions)
    assert list(map(str, spec.allowed)) == ["10.0.0.1:3128", "10.0.0.9:443"]
    assert list(map(str, spec.ranges)) == [
        "tcp:10.0.0.0/8:443",
        "tcp:10.0.0.0/16:443",
        "tcp:10.0.0.9:443-444",
        "udp:[fd00::/16]:53",
    ]


_STORED = pydantic.TypeAdapter(FenceSpec)


@given(st.lists(DESTINATIONS, max_size=3).map(tuple))
def test_record_has_the_text_of_each_exception(exceptions: tuple[Destination, ...]) -> None:
    spec = FenceSpec(sandbox="a", proxies=(endpoint("10.0.0.1:3128"),), exceptions=exceptions)
    assert _STORED.validate_json(_STORED.dump_json(spec)) == spec
    stored = _STORED.dump_python(spec, mode="json")["exceptions"]
    assert stored == list(map(str, exceptions))


def test_record_of_an_earlier_version_is_read() -> None:
    stored = {
        "sandbox": "a",
        "proxies": [{"protocol": "tcp", "address": "10.0.0.1", "port": 3128}],
        "exceptions": [
            {"protocol": "udp", "address": "10.0.0.53", "port": 53},
            {"protocol": "tcp", "address": "fd00::1", "port": 443},
        ],
    }
    found = _STORED.validate_python(stored)
    assert list(map(str, found.exceptions)) == ["udp:10.0.0.53:53", "tcp:[fd00::1]:443"]


@pytest.mark.parametrize("stored", [1, None, {}, {"protocol": "tcp", "address": 1, "port": 2}, []])
def test_record_with_another_type_is_damaged(stored: object) -> None:
    with pytest.raises(pydantic.ValidationError, match="must be an exception, such as"):
        _STORED.validate_python({"sandbox": "a", "proxy_uids": [1], "exceptions": [stored]})
