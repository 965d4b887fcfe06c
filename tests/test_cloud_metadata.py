"""Addresses of metadata services, in each form of an IPv6 address that contains one of IPv4."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft import cloud_metadata
from ocsf_nft.cloud_metadata import EXACT_FORMS, FREE_FORMS, SERVICES, Ipv4Form, is_metadata
from ocsf_nft.fence.host_names import refusal_of
from ocsf_nft.ip_text import text_of
from ocsf_nft.ocsf.addresses import packed_address_kind

_FORMS: Final = (*EXACT_FORMS, *FREE_FORMS.values())
_IPV4: Final = sorted(each.packed for each in SERVICES if each.version == 4)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (EXACT_FORMS[0], "::169.254.169.254"),
        (EXACT_FORMS[1], "::ffff:169.254.169.254"),
        (EXACT_FORMS[2], "::ffff:0:169.254.169.254"),
        (EXACT_FORMS[3], "64:ff9b::169.254.169.254"),
        # The examples of RFC 6052, 2.4 have these places.
        (FREE_FORMS["local48"], "64:ff9b:1:a9fe:a9:fe00::"),
        (FREE_FORMS["local56"], "64:ff9b:1:a9:fe:a9fe::"),
        (FREE_FORMS["local64"], "64:ff9b:1:0:a9:fea9:fe00:0"),
        (FREE_FORMS["local96"], "64:ff9b:1::169.254.169.254"),
        (FREE_FORMS["6to4"], "2002:a9fe:a9fe::"),
        (FREE_FORMS["teredo"], "2001::5601:5601"),
    ],
)
def test_form_has_the_places_of_its_standard(form: Ipv4Form, text: str) -> None:
    found = form.address_of(ipaddress.IPv4Address("169.254.169.254").packed)
    assert found == ipaddress.IPv6Address(text).packed


@given(
    form=st.sampled_from(_FORMS),
    ipv4=st.sampled_from(_IPV4),
    others=st.binary(min_size=16, max_size=16),
)
def test_each_form_of_each_address_is_recognised(
    form: Ipv4Form, ipv4: bytes, others: bytes
) -> None:
    made = form.address_of(ipv4)
    address = bytes(
        a | (b & ~bits & 0xFF) for a, b, bits in zip(made, others, form.mask, strict=True)
    )
    assert form.ipv4(address) == ipv4
    assert is_metadata(address)
    assert packed_address_kind(address).is_cloud_metadata
    assert refusal_of(ipaddress.ip_address(address)) is not None


@given(address=st.binary(min_size=16, max_size=16) | st.binary(min_size=4, max_size=4))
def test_table_of_kinds_agrees_about_any_address(address: bytes) -> None:
    assert packed_address_kind(address).is_cloud_metadata == is_metadata(address)


@pytest.mark.parametrize("service", SERVICES)
def test_neighbours_of_a_service_are_no_service(service: cloud_metadata.Address) -> None:
    assert is_metadata(service.packed)
    assert packed_address_kind(service.packed).is_cloud_metadata
    assert refusal_of(service) is not None
    for other in (service + 1, service - 1):
        assert not is_metadata(other.packed)
        assert not packed_address_kind(other.packed).is_cloud_metadata


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.123", "169.254.169.253", "::1", "::", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9ff",
        "64:ff9b:1::a00:1", "64:ff9b:2::a9fe:a9fe", "2002:a9fe:a9ff::", "2001:1::5601:5601",
        "2001:db8::a9fe:a9fe", "fd00:ec2::253", "fd00:ec2::123",
    ],
)  # fmt: skip
def test_other_address_is_no_metadata_service(text: str) -> None:
    assert not is_metadata(ipaddress.ip_address(text).packed)


def test_exact_addresses_are_those_with_one_address() -> None:
    found = list(cloud_metadata.exact_addresses())
    assert len(found) == len(set(found)) == len(SERVICES) + len(EXACT_FORMS) * len(_IPV4)
    assert all(map(is_metadata, found))


def test_page_names_each_service() -> None:
    page = Path("docs/reference/policies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([0-9a-f.:]+)` \| (.+) \|$", page, re.MULTILINE)
    assert dict(rows) == {text_of(each.packed): clouds for each, clouds in SERVICES.items()}
