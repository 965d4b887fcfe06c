from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft import netlink
from ocsf_nft.fence.ruleset_changes import ChangeReader, Transaction
from ocsf_nft.fence.spec import TableId
from ocsf_nft.nfnetlink import SUBSYSTEM

if TYPE_CHECKING:
    from collections.abc import Sequence

INET, NETDEV = TableId("inet", "ocsf_nft"), TableId("netdev", "ocsf_nft")
_FAMILIES = {"inet": 1, "netdev": 5, "ip": 2}
_NAME = {3: 3, 5: 3}


def notice(kind: int, table: str, name: str = "", *, generation: int = 7, port: int = 9) -> bytes:
    """Return a notice about an object in a table, ``family name``."""
    family, _, table_name = table.partition(" ")
    payload = struct.pack("!BBH", _FAMILIES[family], 0, generation & 0xFFFF)
    payload += netlink.attribute(1, table_name.encode() + b"\0")
    if name:
        payload += netlink.attribute(_NAME.get(kind, 2), name.encode() + b"\0")
    return _message(kind, payload, port)


def end_notice(
    *, generation: int = 7, pid: int = 123, comm: bytes = b"nft\0", port: int = 9
) -> bytes:
    payload = struct.pack("!BBH", 0, 0, generation & 0xFFFF)
    payload += netlink.attribute(1, struct.pack("!I", generation))
    payload += netlink.attribute(2, struct.pack("!I", pid)) + netlink.attribute(3, comm)
    return _message(15, payload, port)


def _message(kind: int, payload: bytes, port: int) -> bytes:
    length = 16 + len(payload)
    return struct.pack("=IHHII", length, SUBSYSTEM | kind, 0, 1, port) + payload


def read(*datagrams: bytes, changes: ChangeReader | None = None) -> list[Transaction]:
    changes = changes or ChangeReader([INET, NETDEV])
    return [each for datagram in datagrams for each in changes.read(memoryview(datagram))]


def description(*messages: bytes) -> str:
    (found,) = read(b"".join(messages), end_notice())
    return found.changes


def test_transaction_has_its_process() -> None:
    (found,) = read(
        notice(2, "inet ocsf_nft"), end_notice(generation=7, pid=4711, comm=b"firewalld\0")
    )
    assert found == Transaction(
        generation=7,
        port=9,
        pid=4711,
        comm="firewalld",
        changes="table inet ocsf_nft was deleted",
        created=frozenset(),
    )


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([notice(6, "inet ocsf_nft", "output")],
         "a rule was added to chain output of table inet ocsf_nft"),
        ([notice(8, "inet ocsf_nft", "output")] * 3,
         "3 rules were removed from chain output of table inet ocsf_nft"),
        ([notice(12, "inet ocsf_nft", "allowed4")],
         "an element was added to set allowed4 of table inet ocsf_nft"),
        ([notice(14, "netdev ocsf_nft", "allowed6")] * 2,
         "2 elements were removed from set allowed6 of table netdev ocsf_nft"),
        ([notice(3, "inet ocsf_nft", "foreign")],
         "chain foreign was created or changed in table inet ocsf_nft"),
        ([notice(5, "netdev ocsf_nft", "egress")],
         "chain egress was deleted, or detached from an interface in table netdev ocsf_nft"),
        ([notice(9, "inet ocsf_nft", "m")], "set m was created in table inet ocsf_nft"),
        ([notice(20, "inet ocsf_nft", "refused_egress")],
         "object refused_egress was deleted in table inet ocsf_nft"),
        ([notice(11, "inet ocsf_nft", "m")], "set m was deleted in table inet ocsf_nft"),
        ([notice(18, "inet ocsf_nft", "refused_egress")],
         "object refused_egress was created or changed in table inet ocsf_nft"),
        ([notice(22, "inet ocsf_nft", "f")],
         "flowtable f was created or changed in table inet ocsf_nft"),
        ([notice(24, "inet ocsf_nft", "f")], "flowtable f was deleted in table inet ocsf_nft"),
        ([notice(2, "inet ocsf_nft"), notice(2, "ip nat"), notice(0, "ip nat")],
         "table inet ocsf_nft was deleted"),
        ([notice(2, "inet ocsf_nft"), notice(0, "netdev ocsf_nft"), notice(2, "ip nat")],
         "table inet ocsf_nft was deleted; table netdev ocsf_nft was created or changed"),
        ([notice(8, "inet ocsf_nft", "output"), notice(2, "inet ocsf_nft"),
          notice(6, "netdev ocsf_nft", "e")],
         "table inet ocsf_nft was deleted; a rule was added to chain e of table netdev ocsf_nft"),
        ([notice(0, "inet ocsf_nft")], "table inet ocsf_nft was created or changed"),
        ([notice(2, "inet ocsf_nft"), notice(2, "netdev ocsf_nft")],
         "table inet ocsf_nft was deleted; table netdev ocsf_nft was deleted"),
        ([notice(2, "inet ocsf_nft"), notice(2, "ip nat")], "the whole ruleset was flushed"),
        ([notice(2, "inet ocsf_nft"), notice(0, "inet ocsf_nft")],
         "table inet ocsf_nft was deleted and created again"),
        ([notice(8, "inet ocsf_nft", "output")] * 300 + [notice(2, "inet ocsf_nft")],
         "table inet ocsf_nft was deleted"),
    ],
)  # fmt: skip
def test_changes_are_described(messages: Sequence[bytes], expected: str) -> None:
    assert description(*messages) == expected


def test_first_of_many_changes_are_described_and_the_others_counted() -> None:
    found = description(*(notice(3, "inet ocsf_nft", f"c{number}") for number in range(1000)))
    assert found.startswith("chain c0 was created")
    assert found.endswith("; 992 more changes were made")
    assert found.count("chain c") == 8
    one_more = description(*(notice(3, "inet ocsf_nft", f"c{number}") for number in range(9)))
    assert one_more.endswith("; 1 more change was made")
    assert len(found) < 1000


def test_contents_of_a_deleted_table_are_not_counted() -> None:
    inside = [notice(5, "inet ocsf_nft", f"c{number}") for number in range(20)]
    assert description(*inside, notice(2, "inet ocsf_nft")) == "table inet ocsf_nft was deleted"


@pytest.mark.parametrize(
    "message",
    [
        notice(6, "inet ocsf_nft_vm", "output"),
        notice(6, "ip ocsf_nft", "output"),
        notice(2, "ip nat"),
        notice(28, "inet ocsf_nft"),
    ],
)
def test_changes_to_other_tables_are_ignored(message: bytes) -> None:
    assert read(message, end_notice()) == []


def test_transaction_names_the_tables_that_it_created() -> None:
    (found,) = read(notice(0, "inet ocsf_nft"), notice(2, "netdev ocsf_nft"), end_notice())
    assert found.created == {INET}


def test_transaction_without_its_last_message_has_no_process() -> None:
    changes = ChangeReader([INET])
    assert read(notice(2, "inet ocsf_nft", generation=7), changes=changes) == []
    assert changes.is_incomplete
    (unfinished,) = read(notice(2, "ip nat", generation=8), changes=changes)
    assert (unfinished.generation, unfinished.port, unfinished.pid, unfinished.comm) == (
        None,
        9,
        None,
        None,
    )
    assert unfinished.changes == "table inet ocsf_nft was deleted"
    assert not changes.is_incomplete


def test_changes_reads_each_transaction_of_a_datagram() -> None:
    one, other = (
        notice(2, f"{family} ocsf_nft", generation=number)
        + end_notice(generation=number, pid=number)
        for family, number in (("inet", 7), ("netdev", 8))
    )
    assert [each.pid for each in read(one + other)] == [7, 8]


def test_last_message_of_another_transaction_names_no_process() -> None:
    (found,) = read(notice(2, "inet ocsf_nft", generation=7), end_notice(generation=9))
    assert found.pid is None


def test_ruleset_number_is_compared_by_the_bits_of_the_notice() -> None:
    (found,) = read(
        notice(2, "inet ocsf_nft", generation=0x1_2345), end_notice(generation=0x1_2345)
    )
    assert found.generation == 0x1_2345


def test_name_is_cut_at_its_end_and_at_the_limit() -> None:
    (found,) = read(notice(2, "inet ocsf_nft"), end_notice(comm=b"a\nb\xff\0hidden\0"))
    assert found.comm == "a\nb\ufffd"
    cut = f'chain "{"x" * 63}…" was'
    assert description(notice(3, "inet ocsf_nft", "x" * 65)).startswith(cut)
    forged = description(notice(3, "inet ocsf_nft", "x was deleted by sshd"))
    assert forged.startswith('chain "x was deleted by sshd" was')
    assert description(notice(3, "inet ocsf_nft", "x" * 64)).startswith(f"chain {'x' * 64} was")


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
def test_reader_accepts_any_input_and_its_output_is_bounded(datagrams: list[bytes]) -> None:
    changes = ChangeReader([INET, NETDEV])
    found = read(*datagrams, changes=changes)
    found += changes.take_unfinished()
    assert not changes.is_incomplete
    for each in found:
        assert each.changes
        assert len(each.changes) < 3000
        assert each.created <= {INET, NETDEV}


_WHOLE = notice(6, "inet ocsf_nft", "output")


@given(st.integers(0, len(_WHOLE) - 1))
def test_truncated_message_is_ignored(cut: int) -> None:
    assert read(_WHOLE[:cut], end_notice()) == []


def test_changes_skips_a_message_without_a_whole_header() -> None:
    short = _message(2, b"", 9)
    (found,) = read(short + notice(2, "inet ocsf_nft") + short, end_notice())
    assert found.changes == "table inet ocsf_nft was deleted"


def test_structure_of_another_table_is_noted_with_its_process() -> None:
    changes = ChangeReader([INET])
    assert read(notice(3, "ip nat", "out"), changes=changes) == []
    assert (changes.awaits_end, changes.is_incomplete) == (True, False)
    assert read(end_notice(pid=4711, comm=b"iptables\0"), changes=changes) == []
    assert (changes.awaits_end, changes.is_incomplete) == (False, False)
    (found,) = changes.take_foreign()
    assert (found.port, found.pid, found.comm) == (9, 4711, "iptables")
    assert changes.take_foreign() == ()


def test_sender_of_another_table_is_noted_however_often_others_change_theirs() -> None:
    """The process behind a change must not be named if there are several."""
    changes = ChangeReader([INET])
    for pid in (4711, *[4712] * 100):
        read(notice(3, "ip nat", "out"), end_notice(pid=pid, comm=b"nft\0"), changes=changes)
    assert [each.pid for each in changes.take_foreign()] == [4711, 4712]
    for pid in range(100):
        read(notice(3, "ip nat", "out"), end_notice(pid=pid, comm=b"nft\0"), changes=changes)
    assert 2 <= len(changes.take_foreign()) < 20


def test_transaction_without_an_end_counts_as_another_sender() -> None:
    changes = ChangeReader([INET])
    read(notice(3, "ip nat", "out"), end_notice(pid=4711, comm=b"nft\0"), changes=changes)
    read(notice(3, "ip nat", "out"), notice(3, "ip nat", "in", generation=8), changes=changes)
    assert [each.pid for each in changes.take_foreign()] == [4711, None]


def test_elements_of_another_table_are_not_noted() -> None:
    changes = ChangeReader([INET])
    assert read(notice(12, "ip nat", "peers"), end_notice(), changes=changes) == []
    assert changes.take_foreign() == ()


def test_structure_of_another_table_without_an_end_has_no_process() -> None:
    changes = ChangeReader([INET])
    read(notice(3, "ip nat", "out"), notice(3, "ip nat", "in", generation=8), changes=changes)
    (found,) = changes.take_foreign()
    assert found.pid is None
