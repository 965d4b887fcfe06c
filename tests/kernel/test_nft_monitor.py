"""What is told of a fence's tables, and the socket that changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netlink
from ocsf_nft.fence import load_ruleset, ruleset, ruleset_batch
from ocsf_nft.fence.nft_monitor import NftMonitor
from ocsf_nft.nfnetlink import Nftables, Statement
from tests.kernel import conftest

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel


@pytest.fixture
def post(fenced: Lab, spec: FenceSpec) -> Iterator[NftMonitor]:
    made = NftMonitor(fenced.sandbox_namespace, load_ruleset.fence_table_ids(spec))
    yield made
    made.close()


@pytest.fixture
def whole(installed: InstalledFence) -> tuple[Statement, ...]:
    """The fence, which nobody owns."""
    text = ruleset.fence(installed.spec, installed.around, installed.transport)
    return ruleset_batch.compile_ruleset(installed.namespace, text)


def _owned(installed: InstalledFence) -> None:
    """Have the tables be such as may be somebody's own."""
    text = "".join(
        f"delete table {family} ocsf_nft\ntable {family} ocsf_nft {{ {ruleset.EXCLUSIVE_FLAGS} }}\n"
        for family in ("inet", "netdev")
    )
    conftest.load(installed.namespace, text)


def test_what_others_did_before_it_was_put_back_has_been_put_right(
    fenced: Lab, post: NftMonitor, whole: tuple[Statement, ...]
) -> None:
    ns = fenced.sandbox_namespace
    conftest.nft(ns, "delete", "table", "inet", "ocsf_nft")
    (before,) = post.read()
    assert not post.has_put_right(before)
    post.mend(whole)
    conftest.nft(ns, "delete", "table", "netdev", "ocsf_nft")
    (after,) = post.read()  # and nothing of our own
    assert post.has_put_right(before)
    assert not post.has_put_right(after)


def test_what_puts_nothing_back_puts_nothing_right(
    fenced: Lab, post: NftMonitor, whole: tuple[Statement, ...]
) -> None:
    """Chains that are hung on one link more."""
    ns = fenced.sandbox_namespace
    conftest.nft(ns, "delete", "table", "inet", "ocsf_nft")
    post.commit(ruleset_batch.attach_statements(whole, ["late0"]))
    (before,) = post.read()
    assert not post.has_put_right(before)


class _Late:
    """The notices of a post, whose second datagram is not there at once."""

    def __init__(self, notices: socket.socket) -> None:
        self._notices = notices
        self.reads = 0

    def fileno(self) -> int:
        return self._notices.fileno()

    def recvfrom(self, size: int) -> object:
        self.reads += 1
        if self.reads == 2:
            raise BlockingIOError
        return self._notices.recvfrom(size)


def test_post_waits_for_the_rest_of_a_transaction(
    fenced: Lab, post: NftMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = "\n".join(f"tcp dport {port} accept" for port in range(1, 500))
    conftest.load(
        fenced.sandbox_namespace, f"table inet ocsf_nft {{ chain more {{ {rules}\n }}\n }}"
    )
    late = _Late(post.notices)
    monkeypatch.setattr(post, "notices", late)
    assert len(post.read()) == 1
    assert late.reads > 3
    assert post.read() == []


def test_a_ruleset_that_is_another_one_by_now_is_not_changed(fenced: Lab, post: NftMonitor) -> None:
    ns = fenced.sandbox_namespace
    with ns.call(Nftables) as nftables:
        generation = nftables.generation()
        conftest.nft(ns, "add", "table", "ip", "theirs")
        with pytest.raises(OSError, match="restarted"):
            post.commit([ruleset_batch.ownership_statement("inet", "ours")], generation)
        post.commit([ruleset_batch.ownership_statement("inet", "ours")], generation + 1)
        assert nftables.generation() == generation + 2


@pytest.mark.parametrize("missing", ["inet", "netdev"])
def test_tables_are_held_all_or_none(
    fenced: Lab, installed: InstalledFence, post: NftMonitor, missing: str
) -> None:
    ns = fenced.sandbox_namespace
    _owned(installed)
    conftest.nft(ns, "delete", "table", missing, "ocsf_nft")
    post.own()
    assert [post.owns] == [False]
    assert "owner" not in conftest.nft(ns, "list", "tables")
    assert f"table {missing} ocsf_nft" not in conftest.nft(ns, "list", "tables")
    conftest.load(ns, f"table {missing} ocsf_nft {{ {ruleset.EXCLUSIVE_FLAGS} }}\n")
    post.own()
    assert post.owns
    assert conftest.nft(ns, "list", "ruleset").count("flags owner,persist") == 2


def test_tables_that_another_holds_are_not_taken(
    fenced: Lab, installed: InstalledFence, post: NftMonitor
) -> None:
    _owned(installed)
    with fenced.sandbox_namespace.call(Nftables) as other:
        other.commit([ruleset_batch.ownership_statement("netdev", "ocsf_nft")])
        with pytest.raises(PermissionError):
            post.own()
        assert [post.owns] == [False]
    post.own()
    assert post.owns


def test_who_changes_the_ruleset_all_the_time_keeps_nobody_from_holding_or_mending(
    fenced: Lab, installed: InstalledFence, post: NftMonitor
) -> None:
    """Each number of a ruleset that is asked for is an old one by the time that it is used."""
    _owned(installed)
    with fenced.sandbox_namespace.call(Nftables) as other:
        ask = post._nftables.generation

        def asked_too_early() -> int:
            found = ask()
            other.commit([ruleset_batch.ownership_statement("inet", "theirs")])
            other.commit([Statement(2, 0, b"\1\0\0\0" + netlink.attribute(1, b"theirs\0"))])
            return found

        post._nftables.generation = asked_too_early  # type: ignore[method-assign]
        post.own()
        assert post.owns
        assert conftest.nft(fenced.sandbox_namespace, "list", "ruleset").count("owner,persist") == 2
        post.mend([ruleset_batch.ownership_statement("inet", "ocsf_nft")])
