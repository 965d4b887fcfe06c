"""Arguments and exit codes of `check`."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import pytest

from ocsf_nft.check.finding import Finding
from ocsf_nft.errors import UsageError
from ocsf_nft.netns import Namespace

#: Untyped: the test calls it with parts of its arguments.
_MODULE: Final[Any] = import_module("ocsf_nft.cli.check")


def test_check_accepts_valid_ports_only() -> None:
    for port in (1, 65_535):
        assert (
            _MODULE._scope(Namespace(), "vmtap-1", [], port=port, proxies=[], is_strict=False).port
            == port
        )
    for port in (0, 65_536):
        with pytest.raises(UsageError, match=f"port {port} is out of range: use 1 to 65535"):
            _MODULE._scope(Namespace(), "vmtap-1", [], port=port, proxies=[], is_strict=False)


def test_check_shows_long_names_in_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    name = "net.netfilter.nf_log_all_netns"
    _MODULE._show([Finding(severity="degraded", name="all-netns", meaning=f"{name} is 0")])
    cells = [line.split("│")[3].strip() for line in capsys.readouterr().err.splitlines()[3:-1]]
    assert "".join(cells).startswith(name)


def test_check_exits_with_1_where_a_leftover_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class _Leftover:
        text = "chain ip filter vmtap-1"

    for reasons, code in (([], 0), ([None, None], 0), (["changed", None], 1)):
        found = [(_Leftover(), reason) for reason in reasons]
        monkeypatch.setattr("ocsf_nft.check.remove_leftovers", lambda _scope, found=found: found)
        assert _MODULE._remove(None, as_json=False) == code, reasons
    assert capsys.readouterr().err.splitlines() == [
        "no leftover was found",
        "removed: chain ip filter vmtap-1", "removed: chain ip filter vmtap-1",
        "not removed (changed): chain ip filter vmtap-1", "removed: chain ip filter vmtap-1",
    ]  # fmt: skip
