from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.errors import UsageError
from ocsf_nft.fence import values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.0.0.1:3128", "10.0.0.1:3128"),
        ("[fd00::1]:3128", "[fd00::1]:3128"),
        ("[FD00:0:0::01]:1", "[fd00::1]:1"),
        ("127.0.0.1:65535", "127.0.0.1:65535"),
    ],
)
def test_endpoint_has_a_canonical_form(text: str, shown: str) -> None:
    assert str(values.endpoint(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:-1",
        "10.0.0.1:+80",
        "10.0.0.1: 80",
        "10.0.0.1:٨٠",
        "010.0.0.1:80",
        "10.0.0:80",
        "fd00::1:80",
        "[10.0.0.1]:80",
        "[fd00::1%eth0]:80",
        "[fd00::1:80",
        "proxy.example:3128",
        "0.0.0.0:80",
        "[::]:80",
        "224.0.0.1:80",
        "10.0.0.1:80 accept",
        '10.0.0.1" accept:80',
        "10.0.0.1\n:80",
    ],
)
def test_invalid_endpoint_is_refused_with_one_line(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        values.endpoint(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a", "sb-1", "a.b_c", "x" * 64])
def test_valid_sandbox_name_is_accepted(name: str) -> None:
    assert values.sandbox_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a:b", "x" * 65, "é", 'a"b', "a\n"])
def test_invalid_sandbox_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        values.sandbox_name(name)


@pytest.mark.parametrize("name", ["lo", "eth0.5", "DPT=22", "UID=0", "veth-a@b", "{x}", "x;y"])
def test_device_names_of_the_kernel_are_accepted(name: str) -> None:
    assert values.device_name(name) == name


@given(st.text(max_size=20))
def test_accepted_device_name_cannot_end_a_quoted_string_or_a_line(name: str) -> None:
    try:
        accepted = values.device_name(name)
    except UsageError:
        return
    assert not set(accepted) & set('"*\\$/: \t\r\n')
    assert accepted.isascii()
    assert accepted.isprintable()


@pytest.mark.parametrize("number", [0, -1, 65536])
def test_nflog_group_fits_16_bits(number: int) -> None:
    assert [values.nflog_group(each) for each in (1, 65535)] == [1, 65535]
    with pytest.raises(UsageError):
        values.nflog_group(number)


@pytest.mark.parametrize(
    ("text", "gateway"),
    [
        ("172.16.0.0/30", "172.16.0.1/30"),
        ("172.16.0.2/30", "172.16.0.2/30"),
        ("172.16.0.0/31", "172.16.0.0/31"),
        ("172.16.0.1/31", "172.16.0.1/31"),
        ("169.254.0.21/30", "169.254.0.21/30"),
        ("fd00:7::/64", "fd00:7::1/64"),
        ("FD00:7:0::5/64", "fd00:7::5/64"),
    ],
)
def test_subnet_has_the_address_of_its_gateway(text: str, gateway: str) -> None:
    assert str(values.subnet(text)) == gateway


@pytest.mark.parametrize(
    "text",
    [
        "",
        "172.16.0.1",
        "172.16.0.1/32",
        "172.16.0.3/30",
        "172.16.0.0/33",
        "172.16.0.0/30 accept",
        "172.16.0.0/255.255.255.252\n",
        "0.0.0.0/0",
        "127.0.0.1/8",
        "224.0.0.1/24",
        "fe80::1/64",
        "fd00::1%tap0/64",
        "fd00::1/128",
        "tap0",
    ],
)
def test_invalid_subnet_of_a_vm_is_refused_with_one_line(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        values.subnet(text)
    assert "\n" not in str(refused.value)


def test_link_address_is_that_of_one_machine() -> None:
    assert values.mac("02:00:00:00:00:0A") == "02:00:00:00:00:0a"
    for text in (
        "",
        "02:00:00:00:00",
        "02-00-00-00-00-0a",
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:01",
        "00:00:00:00:00:00",
        "02:00:00:00:00:0a\n",
        "02:00:00:00:00:\u0660a",
    ):
        with pytest.raises(UsageError):
            values.mac(text)


def test_user_id_fits_32_bits_and_is_not_the_invalid_one() -> None:
    assert values.uid(0) == 0
    assert values.uid(0xFFFFFFFE) == 0xFFFFFFFE
    for number in (-1, 0xFFFFFFFF):
        with pytest.raises(UsageError):
            values.uid(number)
