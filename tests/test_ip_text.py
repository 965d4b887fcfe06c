from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.ip_text import packed, text_of
from tests.strategies import ADDRESSES4, ADDRESSES6, HOSTILE_TEXT

#: Texts that are nearly an address, and some that are one.
NEARLY = st.text(st.sampled_from("0123456789abcdefF:.%/ \0"), max_size=24) | st.builds(
    lambda address, at, put: f"{address[:at]}{put}{address[at + 1 :]}",
    ADDRESSES4 | ADDRESSES6 | st.sampled_from(["::ffff:1.2.3.4", "1:2:3:4:5:6:7:8", "1::8"]),
    st.integers(0, 40),
    st.sampled_from(["", "0", "00", "1", "f", ":", "::", ".", "%", "\0", "\u0661"]),
)


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


@given(text=ADDRESSES4 | ADDRESSES6 | NEARLY | HOSTILE_TEXT)
def test_address_is_valid_if_python_accepts_it(text: str) -> None:
    address = address_of(text)
    assert packed(text) == (None if address is None else address.packed)


@given(number=st.integers(0, (1 << 32) - 1))
def test_ipv4_address_is_written_as_by_python(number: int) -> None:
    assert text_of(number.to_bytes(4)) == str(IPv4Address(number))


@given(
    number=st.integers(0, (1 << 128) - 1)
    | st.integers(0, 1 << 50)  # the C library writes some of these with an IPv4 address in them
    | st.builds(lambda ones, shift: ones << shift, st.integers(0, 1 << 40), st.integers(0, 88))
)
def test_ipv6_address_is_written_as_by_python(number: int) -> None:
    assert text_of(number.to_bytes(16)) == str(IPv6Address(number))


def test_bytes_of_another_length_are_no_address() -> None:
    with pytest.raises(ValueError, match="address"):
        text_of(bytes(5))
