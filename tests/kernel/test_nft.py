"""Failures of the nft program other than an error about a ruleset."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import privileges
from ocsf_nft.errors import FenceError, UnsupportedError
from ocsf_nft.fence import nft
from ocsf_nft.netns import Namespace
from tests.kernel import conftest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ocsf_nft.errors import OcsfNftError
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

HERE = Namespace()


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace nft with a shell script."""
    monkeypatch.setattr(nft, "TRUSTED", (tmp_path,))

    def plant(script: str) -> None:
        file = tmp_path / "nft"
        file.unlink(missing_ok=True)  # the kernel runs no file that is open for writing
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    return plant


def test_nft_failure_is_an_error_with_its_words(planted: Callable[[str], None]) -> None:
    cases: tuple[tuple[str, type[OcsfNftError], str], ...] = (
        ("exit 1", FenceError, "nft failed: no error message"),
        (r"printf 'out of\n  memory\n' >&2; exit 1", FenceError, "nft failed: out of memory"),
        ("echo Operation not permitted >&2; exit 1", UnsupportedError, "run as root, or with CAP_"),
        ("echo 'x: Unable to initialize Netlink socket' >&2; exit 1", UnsupportedError, "as root"),
    )
    for script, kind, sentence in cases:
        planted(script)
        with pytest.raises(kind, match=sentence):
            nft.list_table(HERE, "inet", "ocsf_nft")
        with pytest.raises(kind, match=sentence):
            nft.load(HERE, "")
    planted("echo 'Error: No such file or directory' >&2; exit 1")
    assert nft.list_table(HERE, "inet", "ocsf_nft") is None


def test_nft_without_an_answer_is_ended_and_is_an_error(
    planted: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft, "_TIMEOUT_SECONDS", 0.2)
    planted("exec sleep 30")
    started = time.monotonic()
    with pytest.raises(FenceError, match=r"no answer in 0\.2 s, .*run `ocsf-nft verify`"):
        nft.load(HERE, "")
    assert time.monotonic() - started < 20


def test_nft_has_a_process_group_of_its_own(planted: Callable[[str], None]) -> None:
    """Ctrl-C in a terminal ends the processes of its group."""
    planted("read -r _ _ _ _ group _ </proc/$$/stat; echo $group $$")
    group, pid = (nft.list_table(HERE, "inet", "ocsf_nft") or "").split()
    assert group == pid


def test_nft_has_30_seconds_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(FenceError, match="nft gave no answer in 30 s, ") as raised:
        nft.list_table(HERE, "inet", "ocsf_nft")
    assert isinstance(raised.value.__cause__, subprocess.TimeoutExpired)
    assert raised.value.__cause__.timeout == 30


def test_nft_without_the_privilege_is_an_error_with_the_remedy(lab: Lab) -> None:
    def without() -> None:
        privileges.keep_only(frozenset())
        with pytest.raises(UnsupportedError, match="with CAP_NET_ADMIN over this network namespac"):
            nft.load(HERE, "table inet ocsf_nft")
        with pytest.raises(UnsupportedError, match="with CAP_NET_ADMIN over this network namespac"):
            nft.list_table(HERE, "inet", "ocsf_nft")

    lab.sandbox_namespace.call(without)


def test_listing_of_several_tables_omits_those_that_are_missing(lab: Lab) -> None:
    ns = lab.sandbox_namespace
    conftest.nft(ns, "add table inet one { counter a { }; }; add table netdev one")
    tables = [("inet", "one"), ("netdev", "one"), ("inet", "three")]
    found = nft.list_tables(ns, tables)
    assert [*found] == tables[:2]
    assert "counter a" in found["inet", "one"]
    assert "counter a" not in found["netdev", "one"]
    assert found == {each: nft.list_table(ns, *each) for each in tables[:2]}
