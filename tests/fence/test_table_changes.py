"""Whole tables that are deleted, turned off or owned, without nft."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netns
from ocsf_nft.errors import AbsentError, FenceError
from ocsf_nft.fence import table_changes, table_query
from ocsf_nft.fence.spec import TableId
from ocsf_nft.netns import HOST, named
from ocsf_nft.nfnetlink import Nftables, Statement, Table

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.kernel

_TABLES = (TableId("inet", "mine"), TableId("netdev", "mine"))
_TEXT = """
table inet mine {
	counter refused { packets 7 bytes 700 }
	chain output { type filter hook output priority 0; drop; }
}
table netdev mine { }
"""


def _nft(text: str) -> str:
    command = ["nft", "-f", "-"]
    subprocess.run(command, input=text, text=True, check=True)
    return subprocess.run(
        ["nft", "list", "ruleset"], capture_output=True, text=True, check=True
    ).stdout


def test_tables_that_are_turned_off_keep_their_counters_until_they_are_deleted() -> None:
    def check() -> None:
        _nft(_TEXT)
        table_changes.turn_off(HOST, _TABLES)
        found = _nft("")
        assert found.count("\tflags dormant\n") == 2
        assert "packets 7 bytes 700" in found
        table_changes.delete(HOST, _TABLES)
        assert _nft("") == ""

    netns.in_scratch(check)


@pytest.mark.parametrize("change", [table_changes.turn_off, table_changes.delete])
def test_missing_table_is_not_created(change: Callable[..., None]) -> None:
    def check() -> None:
        change(HOST, _TABLES)
        _nft("table inet mine { }")
        change(HOST, _TABLES)
        assert "netdev" not in _nft("")

    netns.in_scratch(check)


@pytest.mark.parametrize("is_persistent", [False, True])
def test_tables_are_deleted_while_other_processes_change_the_ruleset(
    monkeypatch: pytest.MonkeyPatch, *, is_persistent: bool
) -> None:
    """The changes come between the look at the tables and the deletion."""
    commit = Nftables.commit
    interruptions = ["delete table inet mine", "add table inet theirs"]

    def late(nftables: Nftables, statements: list[Statement]) -> None:
        for text in interruptions:
            _nft(text)
        commit(nftables, statements)

    def check() -> None:
        _nft("table inet mine { flags owner,persist; }" if is_persistent else _TEXT)
        with monkeypatch.context() as patched:
            patched.setattr(Nftables, "commit", late)
            assert table_changes.delete(HOST, _TABLES)
        assert "mine" not in _nft("")

    netns.in_scratch(check)


def test_generation_is_unknown_if_another_process_turns_a_table_on_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = Nftables.commit

    def undone(nftables: Nftables, statements: list[Statement]) -> None:
        commit(nftables, statements)
        _nft("add table inet mine")

    def check() -> None:
        _nft(_TEXT)
        with monkeypatch.context() as patched:
            patched.setattr(Nftables, "commit", undone)
            assert table_changes.turn_off(HOST, _TABLES) is None
        assert table_changes.turn_off(HOST, _TABLES) == table_query.generation(HOST)

    netns.in_scratch(check)


@pytest.mark.parametrize("flags", ["", "flags owner,persist;"])
def test_tables_are_turned_on_again(flags: str) -> None:
    def check() -> None:
        before = _nft(f"table inet mine {{ {flags} }}; table netdev mine {{ {flags} }}")
        table_changes.turn_off(HOST, _TABLES)
        assert "dormant" in _nft("")
        table_changes.turn_on(HOST, _TABLES)
        assert _nft("") == before

    netns.in_scratch(check)


def test_persistent_table_is_turned_off_and_deleted_by_another_process() -> None:
    def check() -> None:
        _nft("table inet mine { flags owner,persist; }")
        table_changes.turn_off(HOST, _TABLES)
        assert "flags dormant,persist" in _nft("")
        table_changes.delete(HOST, _TABLES)
        assert _nft("") == ""

    netns.in_scratch(check)


@pytest.mark.parametrize("change", [table_changes.turn_off, table_changes.delete])
def test_table_of_another_owner_is_an_error(change: Callable[..., None]) -> None:
    def check() -> None:
        with Nftables() as other:
            other.commit([table_changes.ownership_statement(_TABLES[0])])
            with pytest.raises(FenceError, match="another process owns them exclusively"):
                change(HOST, _TABLES)

    netns.in_scratch(check)


def test_tables_of_a_missing_namespace_are_an_error() -> None:
    with pytest.raises(AbsentError):
        table_changes.delete(named(f"missing-{os.getpid()}"), _TABLES)


def test_ownership_statement_makes_the_sending_socket_the_owner() -> None:
    def check() -> None:
        with Nftables() as nftables:
            nftables.commit(
                [
                    table_changes.ownership_statement(TableId("inet", "mine")),
                    table_changes.ownership_statement(TableId("netdev", "mine")),
                ]
            )
            for family in ("inet", "netdev"):
                assert nftables.table(family, "mine") == Table(
                    is_dormant=False, is_exclusive=True, is_persistent=True, userdata=b""
                )
            assert nftables.table("inet", "other") is None
            with Nftables() as other, pytest.raises(PermissionError):
                other.commit([table_changes.deletion_statement(TableId("inet", "mine"))])

    netns.in_scratch(check)
