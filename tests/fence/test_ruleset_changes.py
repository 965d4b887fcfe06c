from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft import netlink
from ocsf_nft.fence.replace_keeping_counters import Place
from ocsf_nft.fence.ruleset_changes import Changes, Transaction
from ocsf_nft.nfnetlink import SUBSYSTEM

if TYPE_CHECKING:
    from collections.abc import Sequence

INET, NETDEV = Place("inet", "ocsf_nft"), Place("netdev", "ocsf_nft")
_FAMILIES = {"inet": 1, "netdev": 5, "ip": 2}
_NAME = {3: 3, 5: 3}


def told(kind: int, table: str, name: str = "", *, generation: int = 7, port: int = 9) -> bytes:
    """A message about something in a table, ``family name``."""
    family, _, table_name = table.partition(" ")
    payload = struct.pack("!BBH", _FAMILIES[family], 0, generation & 0xFFFF)
    payload += netlink.attribute(1, table_name.encode() + b"\0")
    if name:
        payload += netlink.attribute(_NAME.get(kind, 2), name.encode() + b"\0")
    return _message(kind, payload, port)


def ended(*, generation: int = 7, pid: int = 123, comm: bytes = b"nft\0", port: int = 9) -> bytes:
    payload = struct.pack("!BBH", 0, 0, generation & 0xFFFF)
    payload += netlink.attribute(1, struct.pack("!I", generation))
    payload += netlink.attribute(2, struct.pack("!I", pid)) + netlink.attribute(3, comm)
    return _message(15, payload, port)


def _message(kind: int, payload: bytes, port: int) -> bytes:
    length = 16 + len(payload)
    return struct.pack("=IHHII", length, SUBSYSTEM | kind, 0, 1, port) + payload


def read(*datagrams: bytes, changes: Changes | None = None) -> list[Transaction]:
    changes = changes or Changes([INET, NETDEV])
    return [each for datagram in datagrams for each in changes.read(memoryview(datagram))]


def words(*messages: bytes) -> str:
    (found,) = read(b"".join(messages), ended())
    return found.changes


def test_a_transaction_is_told_with_who_made_it() -> None:
    (found,) = read(told(2, "inet ocsf_nft"), ended(generation=7, pid=4711, comm=b"firewalld\0"))
    assert found == Transaction(
        generation=7,
        port=9,
        pid=4711,
        comm="firewalld",
        changes="table inet ocsf_nft was deleted",
        made=frozenset(),
    )


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([told(6, "inet ocsf_nft", "output")],
         "a rule was put into chain output of table inet ocsf_nft"),
        ([told(8, "inet ocsf_nft", "output")] * 3,
         "3 rules were taken out of chain output of table inet ocsf_nft"),
        ([told(12, "inet ocsf_nft", "allowed4")],
         "an element was put into set allowed4 of table inet ocsf_nft"),
        ([told(14, "netdev ocsf_nft", "allowed6")] * 2,
         "2 elements were taken out of set allowed6 of table netdev ocsf_nft"),
        ([told(3, "inet ocsf_nft", "foreign")],
         "chain foreign was made or changed in table inet ocsf_nft"),
        ([told(5, "netdev ocsf_nft", "egress")],
         "chain egress was deleted, or taken off an interface in table netdev ocsf_nft"),
        ([told(9, "inet ocsf_nft", "m")], "set m was made in table inet ocsf_nft"),
        ([told(20, "inet ocsf_nft", "refused_egress")],
         "object refused_egress was deleted in table inet ocsf_nft"),
        ([told(11, "inet ocsf_nft", "m")], "set m was deleted in table inet ocsf_nft"),
        ([told(18, "inet ocsf_nft", "refused_egress")],
         "object refused_egress was made or changed in table inet ocsf_nft"),
        ([told(22, "inet ocsf_nft", "f")],
         "flowtable f was made or changed in table inet ocsf_nft"),
        ([told(24, "inet ocsf_nft", "f")], "flowtable f was deleted in table inet ocsf_nft"),
        ([told(2, "inet ocsf_nft"), told(2, "ip nat"), told(0, "ip nat")],
         "table inet ocsf_nft was deleted"),
        ([told(2, "inet ocsf_nft"), told(0, "netdev ocsf_nft"), told(2, "ip nat")],
         "table inet ocsf_nft was deleted; table netdev ocsf_nft was made or changed"),
        ([told(8, "inet ocsf_nft", "output"), told(2, "inet ocsf_nft"),
          told(6, "netdev ocsf_nft", "e")],
         "table inet ocsf_nft was deleted; a rule was put into chain e of table netdev ocsf_nft"),
        ([told(0, "inet ocsf_nft")], "table inet ocsf_nft was made or changed"),
        ([told(2, "inet ocsf_nft"), told(2, "netdev ocsf_nft")],
         "table inet ocsf_nft was deleted; table netdev ocsf_nft was deleted"),
        ([told(2, "inet ocsf_nft"), told(2, "ip nat")], "the whole ruleset was flushed"),
        ([told(2, "inet ocsf_nft"), told(0, "inet ocsf_nft")],
         "table inet ocsf_nft was deleted and made anew"),
        ([told(8, "inet ocsf_nft", "output")] * 300 + [told(2, "inet ocsf_nft")],
         "table inet ocsf_nft was deleted"),
    ],
)  # fmt: skip
def test_what_was_done_is_told_in_words(messages: Sequence[bytes], expected: str) -> None:
    assert words(*messages) == expected


def test_of_very_many_changes_the_first_are_told_and_the_rest_counted() -> None:
    found = words(*(told(3, "inet ocsf_nft", f"c{number}") for number in range(1000)))
    assert found.startswith("chain c0 was made")
    assert found.endswith("; 992 more changes were made")
    assert found.count("chain c") == 8
    one_more = words(*(told(3, "inet ocsf_nft", f"c{number}") for number in range(9)))
    assert one_more.endswith("; 1 more change was made")
    assert len(found) < 1000


def test_of_a_table_that_was_deleted_nothing_is_counted_that_went_with_it() -> None:
    inside = [told(5, "inet ocsf_nft", f"c{number}") for number in range(20)]
    assert words(*inside, told(2, "inet ocsf_nft")) == "table inet ocsf_nft was deleted"


@pytest.mark.parametrize(
    "message",
    [
        told(6, "inet ocsf_nft_vm", "output"),
        told(6, "ip ocsf_nft", "output"),
        told(2, "ip nat"),
        told(28, "inet ocsf_nft"),
    ],
)
def test_what_others_do_to_other_tables_is_nothing(message: bytes) -> None:
    assert read(message, ended()) == []


def test_a_table_that_was_made_is_one_to_doubt() -> None:
    (found,) = read(told(0, "inet ocsf_nft"), told(2, "netdev ocsf_nft"), ended())
    assert found.made == {INET}


def test_a_transaction_whose_end_was_lost_is_told_without_its_maker() -> None:
    changes = Changes([INET])
    assert read(told(2, "inet ocsf_nft", generation=7), changes=changes) == []
    assert changes.is_open
    (lost,) = read(told(2, "ip nat", generation=8), changes=changes)
    assert (lost.generation, lost.port, lost.pid, lost.comm) == (None, 9, None, None)
    assert lost.changes == "table inet ocsf_nft was deleted"
    assert not changes.is_open


def test_changes_reads_each_transaction_of_a_datagram() -> None:
    one, other = (
        told(2, f"{family} ocsf_nft", generation=number) + ended(generation=number, pid=number)
        for family, number in (("inet", 7), ("netdev", 8))
    )
    assert [each.pid for each in read(one + other)] == [7, 8]


def test_the_end_of_another_transaction_names_nobody() -> None:
    (found,) = read(told(2, "inet ocsf_nft", generation=7), ended(generation=9))
    assert found.pid is None


def test_the_number_of_a_ruleset_is_compared_as_far_as_it_is_told() -> None:
    (found,) = read(told(2, "inet ocsf_nft", generation=0x1_2345), ended(generation=0x1_2345))
    assert found.generation == 0x1_2345


def test_a_name_is_cut_where_its_maker_ended_it_and_where_it_is_too_long() -> None:
    (found,) = read(told(2, "inet ocsf_nft"), ended(comm=b"a\nb\xff\0hidden\0"))
    assert found.comm == "a\nb\ufffd"
    assert words(told(3, "inet ocsf_nft", "x" * 65)).startswith(f"chain {'x' * 63}… was")
    assert words(told(3, "inet ocsf_nft", "x" * 64)).startswith(f"chain {'x' * 64} was")


_MESSAGES = st.builds(
    _message,
    st.sampled_from([0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 18, 20, 22, 24, 99]),
    st.builds(
        lambda family, number, attributes: struct.pack("!BBH", family, 0, number) + attributes,
        st.sampled_from([0, 1, 2, 5]),
        st.integers(0, 3),
        st.lists(
            st.builds(
                netlink.attribute,
                st.integers(0, 6),
                st.sampled_from([b"ocsf_nft\0", b"x\0", b"\0\0\0\1", b""]) | st.binary(max_size=40),
            ),
            max_size=5,
        ).map(b"".join),
    ),
    st.integers(0, 2),
)


@given(st.lists(st.binary(max_size=200) | st.lists(_MESSAGES, max_size=6).map(b"".join)))
def test_whatever_comes_is_read_and_what_is_told_is_bounded(datagrams: list[bytes]) -> None:
    changes = Changes([INET, NETDEV])
    found = read(*datagrams, changes=changes)
    found += changes.rest()
    assert not changes.is_open
    for each in found:
        assert each.changes
        assert len(each.changes) < 3000
        assert each.made <= {INET, NETDEV}


_WHOLE = told(6, "inet ocsf_nft", "output")


@given(st.integers(0, len(_WHOLE) - 1))
def test_a_message_that_is_cut_short_is_not_taken_for_another(cut: int) -> None:
    assert read(_WHOLE[:cut], ended()) == []


def test_changes_skips_a_message_without_a_whole_header() -> None:
    short = _message(2, b"", 9)
    (found,) = read(short + told(2, "inet ocsf_nft") + short, ended())
    assert found.changes == "table inet ocsf_nft was deleted"
