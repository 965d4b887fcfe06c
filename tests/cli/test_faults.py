"""Messages of the commands about impossible requests and failures of the system."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ocsf_nft.check.finding import Finding
from ocsf_nft.errors import UnsupportedError, UsageError
from ocsf_nft.fence.spec import Tap
from ocsf_nft.fence.values import subnet
from ocsf_nft.netns import Namespace, of_process
from tests.cli import forked
from tests.standing import INSTALLED

_REJECT = "ocsf-nft:sb:egress:hello\n"


def test_contradictory_or_incomplete_command_is_bad_usage() -> None:
    for arguments, sentence in (
        (("run",), "name what to watch: --config FILE, or --sandbox NAME"),
        (
            ("status", "--json", "--metrics"),
            "--json and --metrics can't be combined: give one of them",
        ),
        (
            ("check", "--netns", "a", "--pid", "1"),
            "--netns and --pid both name the namespace: give one of them",
        ),
    ):
        done = forked.run(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"ocsf-nft: {sentence}\n")


def test_convert_reports_why_unparsed_lines_can_not_be_written(tmp_path: Path) -> None:
    absent = tmp_path / "none" / "unparsed"
    for path, reason in (
        (absent, "No such file or directory"),
        (Path("/dev/full"), "No space left on device"),
    ):
        done = forked.run("convert", "--rejects", path, input=_REJECT)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr == f"ocsf-nft: {path} can't be written: {reason}\n"


def test_explain_reports_why_a_line_with_our_prefix_is_no_record() -> None:
    done = forked.run("explain", _REJECT.strip())
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("malformed: it begins like our prefix and is not ocsf-nft:<sandbox>:")
    assert second == "this line is neither a record of a packet nor an event"


def test_check_takes_the_namespace_of_a_process() -> None:
    check = import_module("ocsf_nft.cli.check")
    assert check._namespace(None, 1) == of_process(1) != Namespace()
    assert check._namespace(None, None) == Namespace()
    with pytest.raises(UsageError):
        check._namespace("a", 1)


def test_check_prints_each_command_once_and_below_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    plain = Finding(name="plain", severity="ok", meaning="it is well", remedy="nothing")
    first = Finding(
        name="first",
        severity="blocked",
        meaning="a rule drops it",
        remedy="accept it",
        commands=("nft insert rule inet a b accept", "nft insert rule inet a c accept"),
    )
    second = replace(first, name="second", remedy=None, commands=(first.commands[1], "ufw allow"))
    import_module("ocsf_nft.cli.check")._show([plain, first, second])
    shown = capsys.readouterr()
    assert shown.out == ""
    rows = [line for line in shown.err.splitlines() if "(commands below)" in line]
    assert ["accept it (commands below)" in row for row in rows] == [True, False]
    assert ["first" in row for row in rows] == [True, False]
    assert shown.err.splitlines()[-3:] == [
        f"    {command}" for command in (*first.commands, "ufw allow")
    ]


def test_install_reports_if_other_rules_can_not_be_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fence = import_module("ocsf_nft.cli.fence")
    tap = Tap(device="tap0", subnets=(subnet("10.0.0.1/24"),))
    missing: Any = replace(
        INSTALLED,
        spec=replace(INSTALLED.spec, tap=tap),
        namespace=Namespace(Path("/run/netns/no-such")),
    )
    fence._show_blocking_rules(missing)
    shown = capsys.readouterr().err
    assert shown.startswith(
        "blocks the VM: the rules here can't be read, so it is unknown which traffic they drop "
        "(there is no network namespace at /run/netns/no-such"
    )
    fence._show_blocking_rules(INSTALLED)
    assert capsys.readouterr().err == ""


def test_run_with_listen_needs_the_extra_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ocsf_nft.http_server", None)
    run: Any = import_module("ocsf_nft.cli.run")
    with pytest.raises(UnsupportedError, match=r"listen needs the extra ocsf-nft\[http\]: install"):
        run._serving(None, None)
