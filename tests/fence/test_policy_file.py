"""Insertion of values into the text of a policy file."""

from __future__ import annotations

import pytest

from ocsf_nft.fence import policy_file


def test_policy_file_that_lacks_or_repeats_a_definition_is_refused() -> None:
    for text, times in (("", 0), ("define links = a\ndefine links = b\n", 2)):
        with pytest.raises(AssertionError, match=f"must define links once, not {times} times"):
            policy_file.define(text, "links", "c")
