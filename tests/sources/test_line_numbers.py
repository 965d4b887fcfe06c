"""Tests that equal lines have different numbers, also if another process counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.sources.replay import line_numbers
from ocsf_nft.sources.replay.line_numbers import LineNumbers, is_counted

if TYPE_CHECKING:
    import pytest

_LINES = st.lists(st.sampled_from([b"IN=1", b"IN=2", b"{", b"NFLOG group=1", b"other", b""]))


def test_number_of_lines_that_are_stored_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_numbers, "MAX_COUNTED_LINES", 10)
    numbers = LineNumbers()
    for each in range(50):
        assert numbers.count_line(b"%d" % each) == 1
        assert numbers.count_line(b"first") == each + 1
    assert len(numbers._seen) == 10
    assert numbers.count_line(b"41") == 2
    assert numbers.count_line(b"3") == 1


@given(st.lists(_LINES))
def test_process_uses_the_numbers_that_another_one_counted(blocks: list[list[bytes]]) -> None:
    one, first, second = LineNumbers(), LineNumbers(), LineNumbers()
    for lines in blocks:
        second.use_counted(first.count_lines(b"".join(line + b"\r\n" for line in lines)))
        for line in filter(is_counted, lines):
            assert second.count_line(line) == one.count_line(line)


def test_first_field_of_a_journal_entry_is_no_line() -> None:
    numbers = LineNumbers()
    assert numbers.count_lines(b"__CURSOR=IN=\n" * 3) == b""
    assert numbers.count_line(b"__CURSOR=IN=") == 1
