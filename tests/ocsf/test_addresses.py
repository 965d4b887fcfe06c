from __future__ import annotations

import pytest
from hypothesis import given

from ocsf_nft.ocsf.addresses import place
from ocsf_nft.ocsf.enums import NetworkScope
from tests.strategies import ADDRESSES4, ADDRESSES6, HOSTILE_TEXT

SCOPES = {
    NetworkScope.INTERNAL: [
        "10.0.0.1", "172.31.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "127.0.0.1",
        "224.0.0.251", "239.1.2.3", "255.255.255.255", "::1", "fd00::1", "fe80::1", "ff02::fb",
        "ff15::1", "::ffff:10.0.0.1",
    ],
    # Addresses of documentation stand for the internet wherever they are used.
    NetworkScope.EXTERNAL: [
        "8.8.8.8", "172.32.0.1", "203.0.113.7", "224.1.2.3", "2001:db8::7", "2606:4700::1",
        "ff0e::1", "::ffff:8.8.8.8", "64:ff9b::808:808",
    ],
    None: ["0.0.0.0", "240.0.0.1", "::"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "scope"), [(text, scope) for scope, texts in SCOPES.items() for text in texts]
)
def test_an_address_says_where_it_is(text: str, scope: NetworkScope | None) -> None:
    where = place(text)
    assert where is not None
    assert where.scope is scope


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
    ],
)
def test_cloud_metadata_is_known_in_each_of_its_forms(text: str) -> None:
    where = place(text)
    assert where is not None
    assert where.is_cloud_metadata


@pytest.mark.parametrize("text", [None, "", "example", "fe80::1%eth0", "1.2.3", "1.2.3.4\n"])
def test_what_is_no_address_has_no_place(text: str | None) -> None:
    assert place(text) is None


@given(text=ADDRESSES4 | ADDRESSES6 | HOSTILE_TEXT)
def test_no_text_is_too_odd(text: str) -> None:
    where = place(text)
    assert where is None or where.text == text
