"""Description of a change that another process made to a fence."""

from __future__ import annotations

from ocsf_nft.fence.fence_change import FenceChange
from ocsf_nft.fence.ruleset_changes import Transaction


def test_fence_change_counts_the_changes_after_the_first() -> None:
    flushed = Transaction(changes="the whole ruleset was flushed", comm="nft")
    for number, expected in (
        (1, "the whole ruleset was flushed"),
        (2, "the whole ruleset was flushed; 1 more change followed"),
        (3, "the whole ruleset was flushed; 2 more changes followed"),
    ):
        found = FenceChange.of([flushed] * number, 0)
        assert (found.changes, found.comm, found.process) == (expected, "nft", None)
