"""Resolver of host names, against a name server on loopback."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import dns.message
import dns.resolver
import dns.rrset
import pytest

from ocsf_nft.delivery import name_resolver
from ocsf_nft.delivery.name_resolver import NameResolver, ResolverFiles, require_library
from ocsf_nft.errors import UnsupportedError
from tests.name_server import name_server, resolver_files

if TYPE_CHECKING:
    from pathlib import Path

# Port 53 is for root.
pytestmark = pytest.mark.kernel

_HOSTS = """\
127.0.0.1 localhost
# 192.0.2.9 proxy.test
192.0.2.5\tOther Listed.test listed  # 192.0.2.6 listed.test
nonsense listed.test
fd00::5 listed.test
fe80::1%lo scoped.test
"""


#: The library has no types for it.
_absent: Any = dns.resolver.NXDOMAIN


def _found(*addresses: str, ttl: int = 1) -> dict[str, Any]:
    return {"addresses": list(addresses), "ttl": ttl}


async def test_both_versions_of_ip_are_asked_and_addresses_are_sorted(tmp_path: Path) -> None:
    zone = {"proxy.test": ["192.0.2.10", "192.0.2.9", "2001:db8::1"]}
    async with name_server(zone) as server:
        resolver = NameResolver(resolver_files(tmp_path, server))
        found = await resolver.resolve("proxy.test")
        server.zone["proxy.test"].reverse()
        assert await resolver.resolve("proxy.test") == found
    assert found == {"4": _found("192.0.2.9", "192.0.2.10"), "6": _found("2001:db8::1")}
    assert set(server.asked) == {("proxy.test", "A"), ("proxy.test", "AAAA")}


async def test_shortest_ttl_of_a_chain_of_aliases_counts(tmp_path: Path) -> None:
    async with name_server({"c.test": ["192.0.2.1"]}) as server:
        server.aliases = {"a.test": "b.test", "b.test": "c.test"}
        server.ttl = 77
        resolver = NameResolver(resolver_files(tmp_path, server))
        found = await resolver.resolve("a.test")
    assert found == {"4": _found("192.0.2.1", ttl=77), "6": _found(ttl=77)}


async def test_name_that_does_not_exist_is_absent(tmp_path: Path) -> None:
    async with name_server({"empty.test": []}) as server:
        server.ttl = 9
        resolver = NameResolver(resolver_files(tmp_path, server))
        missing = await resolver.resolve("missing.test")
        empty = await resolver.resolve("empty.test")
    assert missing["4"] == missing["6"] == _found(ttl=9) | {"is_absent": True}
    assert empty["4"] == empty["6"] == _found(ttl=9)


async def test_many_addresses_come_over_tcp_and_are_limited(tmp_path: Path) -> None:
    many = [f"192.0.{each >> 8}.{each & 255}" for each in range(600)]
    async with name_server({"many.test": many}) as server:
        found = await NameResolver(resolver_files(tmp_path, server)).resolve("many.test")
    assert len(found["4"]["addresses"]) == name_resolver.MAX_ADDRESSES
    assert found["4"]["addresses"][:2] == ["192.0.0.0", "192.0.0.1"]


async def test_name_in_the_hosts_file_wins(tmp_path: Path) -> None:
    async with name_server({"listed.test": ["192.0.2.99"]}) as server:
        files = resolver_files(tmp_path, server, hosts=_HOSTS)
        resolver = NameResolver(files)
        listed = await resolver.resolve("listed.test")
        assert not server.asked
        proxy = await resolver.resolve("proxy.test")
        scoped = await resolver.resolve("scoped.test")
        files.hosts.write_text("192.0.2.7 proxy.test\n", "ascii")
        changed = await resolver.resolve("proxy.test")
        files.hosts.unlink()
        assert (await resolver.resolve("listed.test"))["4"] == _found("192.0.2.99")
    assert listed == {"4": _found("192.0.2.5", ttl=60), "6": _found("fd00::5", ttl=60)}
    assert proxy["4"]["is_absent"]
    assert scoped["6"]["addresses"] == ["fe80::1%lo"]
    assert changed == {"4": _found("192.0.2.7", ttl=60), "6": _found(ttl=60)}


async def test_resolv_conf_is_read_again_after_a_change(tmp_path: Path) -> None:
    async with name_server() as first, name_server({"a.test": ["192.0.2.1"]}) as second:
        resolver = NameResolver(resolver_files(tmp_path, first))
        assert (await resolver.resolve("a.test"))["4"]["is_absent"]
        resolver_files(tmp_path, second)
        assert (await resolver.resolve("a.test"))["4"] == _found("192.0.2.1")
    (tmp_path / "resolv.conf").unlink()
    found = await resolver.resolve("a.test")
    assert found["4"]["error"] == "the name servers can't be asked: No such file or directory"


async def test_failure_of_one_type_leaves_the_other(tmp_path: Path) -> None:
    async with name_server({"a.test": ["192.0.2.1"]}) as server:
        server.mode, server.only = "fail", "AAAA"
        found = await NameResolver(resolver_files(tmp_path, server)).resolve("a.test")
    assert found["4"] == _found("192.0.2.1")
    assert "SERVFAIL" in found["6"]["error"]


@pytest.mark.parametrize("mode", ["silent", "garbage"])
async def test_server_without_a_usable_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    monkeypatch.setattr(name_resolver, "_SECONDS", 0.5)
    async with name_server({"a.test": ["192.0.2.1"]}) as server:
        server.mode = mode
        found = await NameResolver(resolver_files(tmp_path, server)).resolve("a.test")
    for each in found.values():
        assert set(each) == {"error"}


async def test_second_server_answers_if_the_first_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_resolver, "_SERVER_SECONDS", 0.2)
    async with name_server() as first, name_server({"a.test": ["192.0.2.1"]}) as second:
        first.mode = "silent"
        found = await NameResolver(resolver_files(tmp_path, first, second)).resolve("a.test")
    assert found["4"] == _found("192.0.2.1")


def _answers(*records: tuple[str, str, str]) -> dns.message.Message:
    """Return an answer about ``a.test`` with records: their names, types and values."""
    answer = dns.message.make_response(dns.message.make_query("a.test.", "A"))
    for name, kind, value in records:
        answer.answer.append(dns.rrset.from_text(name, 60, "IN", kind, value))
    return dns.message.from_wire(answer.to_wire())


async def test_absent_name_with_an_endless_chain_of_aliases_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a.test.", *(f"{number}.test." for number in range(30))]
    chain = [(name, "CNAME", other) for name, other in pairwise(names)]

    class Stub:
        async def resolve(self, *_: object, **__: object) -> NoReturn:
            responses = {"a.test.": _answers(*chain)}
            raise _absent(qnames=["a.test."], responses=responses)

    resolver = NameResolver(ResolverFiles(tmp_path / "none", tmp_path / "none"))
    monkeypatch.setattr(resolver, "_present", Stub)
    found = await resolver.resolve("a.test")
    assert [set(each) for each in found.values()] == [{"error"}, {"error"}]


async def test_answer_with_a_record_of_another_type_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = _answers(("a.test.", "CNAME", "b.test.")).answer[0]

    class Stub:
        async def resolve(self, *_: object, **__: object) -> Any:
            return SimpleNamespace(rrset=records)

    resolver = NameResolver(ResolverFiles(tmp_path / "none", tmp_path / "none"))
    monkeypatch.setattr(resolver, "_present", Stub)
    found = await resolver.resolve("a.test")
    assert found["4"] == {"error": "an answer can't be used: AttributeError"}


def test_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    require_library()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnsupportedError, match=r"need the extra ocsf-nft\[names\]: install it$"):
        require_library()


def test_files_are_those_of_the_system() -> None:
    assert str(ResolverFiles()) == (
        "ResolverFiles(resolv_conf=PosixPath('/etc/resolv.conf'), hosts=PosixPath('/etc/hosts'))"
    )
