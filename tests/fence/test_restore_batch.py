from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft import netlink, netns
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import restore_batch
from ocsf_nft.netns import Namespace
from ocsf_nft.nfnetlink import Nftables, Statement

if TYPE_CHECKING:
    from collections.abc import Callable

_RULE = "----------------\t------------------\n"
#: Output of nft 1.1.3 with libmnl 1.0.5 for a new table, including the messages around it.
_OUTPUT = (
    _RULE
    + "|  0000000020  |\t| message length |\n| 02576 | R--- |\t|  type | flags  |\n"
    + "|  0000000000  |\t| sequence number|\n|  0000000000  |\t|     port ID    |\n"
    + _RULE
    + "| 00 00 00 00  |\t|  extra header  |\n"
    + _RULE
    + _RULE
    + "|  0000000020  |\t| message length |\n| 00016 | R--- |\t|  type | flags  |\n"
    + "|  0000000000  |\t| sequence number|\n|  0000000000  |\t|     port ID    |\n"
    + _RULE
    + "| 00 00 00 0a  |\t|  extra header  |\n"
    + _RULE
    + _RULE
    + "|  0000000036  |\t| message length |\n| 02560 | R--- |\t|  type | flags  |\n"
    + "|  0000000001  |\t| sequence number|\n|  0000000000  |\t|     port ID    |\n"
    + _RULE
    + "| 01 00 00 00  |\t|  extra header  |\n"
    + "|\x1b[1;31m00006\x1b[0m|\x1b[1;32m--\x1b[0m|\x1b[1;34m00001\x1b[0m|\t|len |flags| type|\n"
    + "| 74 00 00 00  |\t|      data      |\t t      \n"
    + "|\x1b[1;31m00008\x1b[0m|\x1b[1;32mN-\x1b[0m|\x1b[1;34m00002\x1b[0m|\t|len |flags| type|\n"
    + "| 00 00 00 7c  |\t|      data      |\t       |\n"
    + _RULE
)


def test_parsed_message_is_the_one_that_nft_sends() -> None:
    (found,) = restore_batch.parse_messages(_OUTPUT)
    payload = b"\1\0\0\0" + netlink.attribute(1, b"t\0")
    payload += netlink.attribute(2 | 0x8000, struct.pack("!I", 0x7C))
    assert found == Statement(0, 0, payload)


def test_parsed_ends_with_the_transaction() -> None:
    begin, table = _OUTPUT.index("| 00016 |"), _OUTPUT.rindex(_RULE + "|  0000000036")
    end = _OUTPUT[:begin].rindex(_RULE), _OUTPUT[begin:table].replace("| 00016 |", "| 00017 |")
    after = _OUTPUT[end[0] : begin] + end[1] + _OUTPUT[table:]
    assert list(restore_batch.parse_messages(_OUTPUT + after)) == list(
        restore_batch.parse_messages(_OUTPUT)
    )


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("| 00016 |", "| 02571 |", "doesn't show what it sends"),
        ("0000000036", "0000000040", "truncated or in an unknown format"),
        ("| 74 00 00 00  |\t|      data      |\t t      \n", "", "truncated"),
        ("| 02560 |", "| 02599 |", "of an unknown type: 2599"),
    ],
)
def test_unknown_format_is_an_error(old: str, new: str, sentence: str) -> None:
    assert old in _OUTPUT
    with pytest.raises(FenceError, match=sentence):
        list(restore_batch.parse_messages(_OUTPUT.replace(old, new)))


@given(st.text(alphabet="|- \t\n0123456789abcdefR\x1b[];m", max_size=300))
def test_any_other_text_is_an_error(text: str) -> None:
    with pytest.raises(FenceError):
        list(restore_batch.parse_messages(text))


def _chain(*hook: bytes, family: int = 5) -> Statement:
    payload = struct.pack("!BBH", family, 0, 0) + netlink.attribute(1, b"t\0")
    payload += netlink.attribute(3, b"egress\0") + netlink.attribute(4 | 0x8000, b"".join(hook))
    return Statement(3, 0x400, payload)


def test_attach_statements_replace_the_links_of_a_netdev_chain() -> None:
    number = netlink.attribute(1, struct.pack("!I", 1))
    one = netlink.attribute(3, b"sb0\0")
    several = netlink.attribute(4 | 0x8000, netlink.attribute(1, b"late0\0"))
    found = restore_batch.attach_statements(
        [_chain(number, one), _chain(number, family=1), Statement(6, 0, b"\5\0\0\0")], ["late0"]
    )
    assert found == (_chain(number, several),)


def test_attach_statements_leave_the_policy_of_a_chain_unchanged() -> None:
    """The existing chain may belong to a fence of the other mode."""
    number = netlink.attribute(1, struct.pack("!I", 1))
    chain = _chain(number, netlink.attribute(3, b"sb0\0"))
    policy = netlink.attribute(5, struct.pack("!I", 1))
    with_policy = chain._replace(payload=chain.payload + policy)
    assert restore_batch.attach_statements(
        [with_policy], ["late0"]
    ) == restore_batch.attach_statements([chain], ["late0"])


def test_attach_statements_have_as_many_links_as_the_kernel_accepts() -> None:
    chain = _chain(netlink.attribute(1, struct.pack("!I", 1)))
    names = [f"interface{number}" for number in range(5_000)]
    found = restore_batch.attach_statements([chain], names)
    assert found == tuple(
        each
        for start in range(0, len(names), 128)
        for each in restore_batch.attach_statements([chain], names[start : start + 128])
    )
    assert len(found) == 40


def test_attach_statements_attach_a_chain_with_several_statements_once() -> None:
    number = netlink.attribute(1, struct.pack("!I", 1))
    chains = [_chain(number, netlink.attribute(3, name)) for name in (b"sb0\0", b"sb1\0")]
    found = restore_batch.attach_statements(chains, ["late0"])
    assert found == restore_batch.attach_statements(chains[:1], ["late0"])
    assert len(found) == 1


def test_attach_statements_without_links_are_none() -> None:
    assert restore_batch.attach_statements([_chain()], []) == ()


_TABLE = """table inet t {
    comment "ours"
    counter used { }
    counter removed { }
    set addresses { type ipv4_addr; elements = { 10.0.0.1, 10.0.0.2 } }
    set removed { type inet_service; flags dynamic, timeout; timeout 1m; size 9; }
    chain removed { }
    chain output {
        type filter hook output priority -5; policy drop;
        ip daddr @addresses tcp dport 443 counter name used accept
        log prefix "x" group 7 snaplen 128
        reject with icmpx admin-prohibited
    }
    chain emptied { counter; accept; }
}
"""
_CHANGE = """flush chain inet t emptied
delete chain inet t removed
delete set inet t removed
delete counter inet t removed
add rule inet t emptied meta skuid 7 return
table inet u {
    chain c { }
}
delete table inet u
"""


@pytest.mark.kernel
def test_compiled_statements_make_the_ruleset_that_nft_makes() -> None:
    def listed(load: Callable[[str], None]) -> str:
        load(_TABLE)
        load(_TABLE.replace("tcp dport 443", "udp dport 53") + _CHANGE)
        command = ["nft", "list", "ruleset"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def by_nft(text: str) -> None:
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)

    def by_statements(text: str) -> None:
        with Nftables() as nftables:
            nftables.commit(restore_batch.compile_ruleset(Namespace(), text))

    expected = netns.in_scratch(lambda: listed(by_nft))
    assert "udp dport 53" in expected
    assert "set removed" not in expected
    assert netns.in_scratch(lambda: listed(by_statements)) == expected
