"""Host names in proxies and exceptions: their syntax, their canonical form, their addresses."""

from __future__ import annotations

import ipaddress
import string

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.config import SandboxConfig
from ocsf_nft.errors import UsageError
from ocsf_nft.fence import host_names, values
from ocsf_nft.fence.host_names import NamedDestination, NamedProxy, ResolvedName, refusal_of
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.values import Destination, Endpoint
from tests.fence.destinations import DESTINATIONS, PORTS

_LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
NAMES = (
    st.lists(_LABELS, min_size=1, max_size=5)
    .map(".".join)
    .filter(lambda name: not name.split(".")[-1].isdigit())
    .filter(lambda name: not name.split(".")[-1].startswith("0x"))
    .filter(lambda name: name.split(".")[-1] != "localhost")
)
#: Pieces of names, of addresses, and of what must not get into a ruleset or a message of DNS.
_PIECES = st.sampled_from(
    [
        *("tcp:", "udp:", "a", "B", "xn--", "-", ".", "..", "*", "_", "localhost", "0x7f", "127"),
        *("10.0.0.1", "[", "]", "::1", "/", "8", ":", "443", "-", "\0", "\n", " ", '"', "{", ";"),
        *("ä", "\u212a", "\u0130", "٨", "。"),
    ]
)
_TEXTS = st.text(max_size=40) | st.lists(_PIECES, max_size=12).map("".join)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("proxy.internal:3128", "proxy.internal:3128"),
        ("Proxy.Internal:03128", "proxy.internal:3128"),
        ("proxy:1", "proxy:1"),
        ("xn--bcher-kva.example:80", "xn--bcher-kva.example:80"),
        ("1.2.3.x:80", "1.2.3.x:80"),
        ("10.0.0.1:3128", "10.0.0.1:3128"),
        ("[FD00::1]:3128", "[fd00::1]:3128"),
    ],
)
def test_proxy_has_a_canonical_form(text: str, shown: str) -> None:
    assert str(host_names.proxy(text)) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tcp:API.example.com:443", "tcp:api.example.com:443"),
        ("udp:db.internal:05432-5440", "udp:db.internal:5432-5440"),
        ("tcp:db.internal:1-1", "tcp:db.internal:1"),
        ("tcp:10.0.0.0/8:443", "tcp:10.0.0.0/8:443"),
    ],
)
def test_exception_has_a_canonical_form(text: str, shown: str) -> None:
    assert str(host_names.exception(text)) == shown


@given(NAMES, PORTS)
def test_canonical_form_is_parsed_again(name: str, ports: list[int]) -> None:
    proxy = NamedProxy(name, ports[0])
    assert host_names.proxy(str(proxy)) == proxy
    assert host_names.proxy(str(proxy).upper()) == proxy
    destination = NamedDestination("udp", name, *ports)
    assert host_names.exception(str(destination)) == destination


@given(DESTINATIONS)
def test_addresses_are_parsed_as_before(destination: Destination) -> None:
    assert host_names.exception(str(destination)) == destination
    if destination.endpoint is not None and destination.protocol == "tcp":
        text = str(destination.endpoint)
        assert host_names.proxy(text) == values.endpoint(text)


@given(_TEXTS)
def test_accepted_name_is_canonical_and_nothing_else(text: str) -> None:
    for parse in (host_names.proxy, host_names.exception):
        try:
            found = parse(text)
        except UsageError:
            continue
        if isinstance(found, Endpoint | Destination):
            continue
        assert parse(str(found)) == found
        assert not set(found.name) - set(string.ascii_lowercase + string.digits + ".-")
        assert len(found.name) <= 253
        assert all(0 < len(label) < 64 for label in found.name.split("."))
        with pytest.raises(ValueError, match="not appear to be an IPv4 or IPv6 address"):
            ipaddress.ip_address(found.name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("*.example.com", "has a wildcard: DNS does not list the names below a name, so give each"),
        ("bücher.example", "is not ASCII: write the name as DNS has it, with labels such as xn--b"),
        ("\u212aelvin.example", "is not ASCII"),
        ("_dmarc.example.com", "is no host name: use labels of 1 to 63 letters"),
        ("a_b.example.com", "is no host name"),
        ("-a.example", "is no host name"),
        ("a-.example", "is no host name"),
        ("a..example", "is no host name"),
        ("a.example.", "is no host name"),
        (".example", "is no host name"),
        (f"{'a' * 64}.example", "is no host name"),
        (".".join(["a" * 63] * 4), "is no host name"),
        ("a.0x7f", "the last label of a name is not a number"),
        ("0x", "the last label of a name is not a number"),
        ("example.127", "the last label of a name is not a number"),
        ("localhost", "is the machine itself: give the loopback address"),
        ("x.LOCALHOST", "is the machine itself"),
        ("a b.example", "is no host name"),
        ("a\n.example", "is no host name"),
    ],
)
def test_wrong_name_is_refused_with_a_sentence(name: str, sentence: str) -> None:
    for parse, text in ((host_names.proxy, f"{name}:80"), (host_names.exception, f"tcp:{name}:80")):
        with pytest.raises(UsageError) as refusal:
            parse(text)
        assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("proxy.internal", "is no ADDR:PORT"),
        ("proxy.internal:", "is no ADDR:PORT"),
        ("proxy.internal:0", "is out of range: use 1 to 65535"),
        ("proxy.internal:65536", "is out of range: use 1 to 65535"),
        ("proxy.internal:1-2", "is no ADDR:PORT"),
        ("http://proxy.internal:80", "is no IP address: write one"),
        ("1.2.3:80", "is no IP address: write one"),
    ],
)
def test_wrong_proxy_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        host_names.proxy(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("api.example.com:443", "is no exception: write tcp:ADDR:PORT"),
        ("sctp:api.example.com:443", "is no exception: write tcp:ADDR:PORT"),
        ("tcp:api.example.com", "is no exception"),
        ("tcp:api.example.com:2-1", "are out of range: use 1 to 65535, lowest first"),
        ("tcp:api.example.com/24:443", "is no IP address: write one"),
        ("tcp:[api.example.com]:443", "is no IP address: write one"),
    ],
)
def test_wrong_exception_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        host_names.exception(text)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "this host"),
        ("0.1.2.3", "this host"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("169.254.169.254", "link-local"),
        ("224.0.0.251", "multicast"),
        ("255.255.255.255", "reserved"),
        ("240.0.0.1", "reserved"),
        ("::", "this host"),
        ("::1", "loopback"),
        ("::7f00:1", "this host"),
        ("::ffff:10.0.0.1", "IPv4"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "zone"),
        ("fd00::1%eth0", "zone"),
        ("ff02::fb", "multicast"),
        ("64:ff9b::7f00:1", "loopback"),
        ("64:ff9b::a9fe:a9fe", "credentials"),
        ("64:ff9b::a9fe:1", "link-local"),
        ("64:ff9b:1::a9fe:1", "link-local"),
        ("64:ff9b:1:a9fe:0:100::", "link-local"),
        ("64:ff9b:1::7f00:1", "loopback"),
        ("::ffff:0:a9fe:1", "link-local"),
        ("2002:a9fe:1::9", "link-local"),
        ("2002:7f00:1::9", "loopback"),
        ("2001::5601:1", "link-local"),
        ("100.100.100.200", "credentials"),
        ("168.63.129.16", "credentials"),
        ("fd00:ec2::23", "credentials"),
        ("fd20:ce::254", "credentials"),
        ("64:ff9b:1::6464:64c8", "credentials"),
        ("2002:6464:64c8::1", "credentials"),
    ],
)
def test_name_must_not_allow_an_address(address: str, reason: str) -> None:
    assert reason in (refusal_of(ipaddress.ip_address(address)) or "")


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "172.16.0.1", "192.168.1.1", "192.0.2.1", "1.1.1.1", "223.255.255.255",
     "fd00::1", "2001:db8::1", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "64:ff9b:1:a00:0:100::",
     "2002:a00:1::1", "2001::1", "100.100.100.201", "fd00:ec2::1"],
)  # fmt: skip
def test_name_may_allow_other_addresses(address: str) -> None:
    assert refusal_of(ipaddress.ip_address(address)) is None


def _config(**more: object) -> SandboxConfig:
    return SandboxConfig.model_validate({"name": "a", "install": True} | more)


def test_fence_has_the_addresses_of_its_names() -> None:
    config = _config(
        proxy=["proxy.test:3128", "10.0.0.1:3128"],
        allow=["udp:db.test:1-2", "tcp:proxy.test:443", "tcp:10.0.0.0/8:1"],
    )
    assert config.names == ("db.test", "proxy.test")
    four, six = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")
    spec = config.spec({"proxy.test": (four, six), "other.test": (four,)})
    assert list(map(str, spec.proxies)) == [
        "192.0.2.1:3128", "[2001:db8::1]:3128", "10.0.0.1:3128"
    ]  # fmt: skip
    assert list(map(str, spec.exceptions)) == [
        "tcp:192.0.2.1:443", "tcp:[2001:db8::1]:443", "tcp:10.0.0.0/8:1"
    ]  # fmt: skip
    assert spec.resolved == (ResolvedName("db.test"), ResolvedName("proxy.test", (four, six)))
    assert SandboxConfig.model_validate({"name": "a"} | config.given()) == config
    stored = pydantic.TypeAdapter(FenceSpec)
    assert stored.validate_json(stored.dump_json(spec)) == spec


def test_fence_without_a_resolved_name_allows_nothing() -> None:
    spec = _config(proxy=["proxy.test:3128"]).spec({})
    assert (spec.proxies, spec.exceptions, spec.allowed, spec.ranges) == ((), (), (), ())
    assert spec.resolved == (ResolvedName("proxy.test"),)


def test_record_of_an_earlier_version_has_no_names() -> None:
    stored = pydantic.TypeAdapter(FenceSpec)
    found = stored.validate_python({"sandbox": "a", "proxy_uids": [1]})
    assert found.resolved == ()
    with pytest.raises(UsageError, match="is no host name"):
        ResolvedName("a..b")


def test_names_need_a_service_that_installs_the_fence() -> None:
    with pytest.raises(UsageError, match="a host name, which only a running service resolves: giv"):
        _config(proxy=["proxy.test:3128"]).spec()
    with pytest.raises(
        UsageError, match=r"sandbox a has the host name proxy\.test, but not install"
    ):
        _config(install=False, proxy=["proxy.test:3128"]).check()
    _config(proxy=["proxy.test:3128"]).check()
    many = [f"tcp:a{number}.test:1" for number in range(33)]
    with pytest.raises(UsageError, match="sandbox a has 33 host names: give at most 32"):
        _config(proxy=["10.0.0.1:1"], allow=many).check()
    _config(proxy=["10.0.0.1:1"], allow=many[1:]).check()
