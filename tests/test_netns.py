from __future__ import annotations

import threading
from typing import NoReturn

import pytest

from ocsf_nft import netns
from ocsf_nft.errors import UnsupportedError

pytestmark = pytest.mark.kernel


def test_a_machine_that_takes_no_more_threads_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(UnsupportedError, match="can't be entered: can't start new thread"):
        netns.in_scratch(lambda: None)
