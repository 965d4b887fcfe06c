"""The units and what their guide says; tests/guest/test_systemd.py boots a system with them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from typer.main import get_command

from ocsf_nft import config
from ocsf_nft.cli import app
from tests.deploy.manifests import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_FOLDER = ROOT / "deploy/systemd"
_MACHINE, _HOST = "ocsf-nft.service", "ocsf-nft-host.service"
_UNITS = (_MACHINE, _HOST)
_GUIDE = (_FOLDER / "README.md").read_text(encoding="utf-8")
_PROGRAM = "/usr/bin/ocsf-nft"
#: Which unit the drop-ins below a heading of the guide are for.
_CHAPTERS = {"A machine that fences itself": _MACHINE, "A host with sandboxes": _HOST}
#: Settings of [Service] that the units have for what they do, each in its own way.
_OWN = frozenset(
    {
        "EnvironmentFile",
        "ExecStartPre",
        "ExecStart",
        "ExecReload",
        "CapabilityBoundingSet",
        "AmbientCapabilities",
        "ImportCredential",
        "ProtectKernelTunables",
        "RestrictAddressFamilies",
        "IPAddressDeny",
        "RestrictNamespaces",
    }
)
#: Under MemoryDenyWriteExecute= (include/uapi/linux/prctl.h: PR_SET_MDWE).
_CALLED_BACK = """
import ctypes, mmap, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:
    sys.exit(print("no MDWE"))
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)
except PermissionError:
    print("refused")
from ocsf_nft.attribution.libbpf import _SAMPLER
_SAMPLER(lambda *_: print("called back"))(None, None, 0)
"""


def _settings(unit: str, section: str = "Service") -> dict[str, list[str]]:
    """What a unit says in a section, by key, in turn."""
    found: dict[str, list[str]] = defaultdict(list)
    current = ""
    for line in (_FOLDER / unit).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif "=" in line and not line.startswith("#") and current == section:
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


def _blocks(language: str) -> list[tuple[str, str]]:
    """The blocks of the guide that are in a language, each with the heading that it is below."""
    chapters = re.split(r"^## (.*)$", _GUIDE, flags=re.MULTILINE)[1:]
    pairs = zip(chapters[::2], chapters[1::2], strict=True)
    return [
        (heading, block)
        for heading, text in pairs
        for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    ]


_DROP_INS = [
    (_CHAPTERS[heading], block) for heading, block in _blocks("ini") if "Requires=" not in block
]


def _placed(folder: Path, unit: str, drop_in: str = "") -> Path:
    """A unit, and what is dropped in, with a program that is there on every machine."""
    place = folder / unit
    text = (_FOLDER / unit).read_text(encoding="utf-8")
    place.write_text(text.replace(_PROGRAM, "/bin/true"), encoding="utf-8")
    if drop_in:
        beside = folder / f"{unit}.d"
        beside.mkdir()
        (beside / "own.conf").write_text(drop_in.replace(_PROGRAM, "/bin/true"), encoding="utf-8")
    return place


def _complaints(place: Path) -> str:
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", place],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return told.stderr if told.stderr or told.returncode == 0 else f"exit {told.returncode}"


def _exposure(place: Path) -> float:
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", place],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told.stdout)
    assert found is not None, told.stdout
    return float(found[1])


@pytest.mark.parametrize("unit", _UNITS)
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path, unit: str) -> None:
    assert _complaints(_placed(tmp_path, unit)) == ""


@pytest.mark.parametrize(("unit", "drop_in"), _DROP_INS)
def test_systemd_finds_nothing_wrong_with_what_the_guide_has_dropped_in(
    tmp_path: Path, unit: str, drop_in: str
) -> None:
    assert _complaints(_placed(tmp_path, unit, drop_in)) == ""


def test_a_setting_that_systemd_does_not_know_would_be_found(tmp_path: Path) -> None:
    place = _placed(tmp_path, _MACHINE, "[Service]\nWatchdogSeconds=60\n")
    assert "WatchdogSeconds" in _complaints(place)


def test_a_workload_may_require_the_unit_as_the_guide_has_it(tmp_path: Path) -> None:
    (block,) = (block for _, block in _blocks("ini") if "Requires=" in block)
    _placed(tmp_path, _MACHINE)
    workload = tmp_path / "workload.service"
    workload.write_text(f"{block}[Service]\nExecStart=/bin/true\n", encoding="utf-8")
    assert _complaints(workload) == ""
    assert block.count(_MACHINE) == 2


@pytest.mark.parametrize("unit", _UNITS)
def test_a_unit_is_not_more_exposed_than_the_guide_says(tmp_path: Path, unit: str) -> None:
    (stated,) = re.findall(rf"^\| `{unit}` \|.*\| ([0-9.]+) \|$", _GUIDE, re.MULTILINE)
    assert _exposure(_placed(tmp_path, unit)) <= float(stated)


def test_the_hosts_unit_is_less_exposed_without_sandboxes_elsewhere(tmp_path: Path) -> None:
    (drop_in,) = (block for unit, block in _DROP_INS if unit == _HOST)
    (stated,) = re.findall(r"\(exposure ([0-9.]+)\)", _GUIDE)
    as_it_is = _exposure(_placed(tmp_path, _HOST))
    assert _exposure(_placed(tmp_path, _HOST, drop_in)) <= float(stated) < as_it_is


@pytest.mark.parametrize("unit", _UNITS)
def test_a_unit_has_no_capability_that_its_user_does_not_get(unit: str) -> None:
    service = _settings(unit)
    assert service["User"] == ["ocsf-nft"]
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"]


@pytest.mark.parametrize("unit", _UNITS)
def test_a_unit_lets_a_run_capture_calls(unit: str) -> None:
    service = _settings(unit)
    assert {"CAP_BPF", "CAP_PERFMON"} <= set(service["AmbientCapabilities"][0].split())
    # @privileged, which is taken away before, has this one.
    assert "bpf" in service["SystemCallFilter"][-1].split()
    # As good as root; who has to find another process's namespace is that already.
    ptrace = "CAP_SYS_PTRACE" in service["AmbientCapabilities"][0].split()
    assert ptrace is (unit == _HOST)


def test_what_libbpf_calls_back_is_made_where_no_memory_may_be_written_and_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CALLED_BACK], capture_output=True, text=True, check=False
    )
    if "no MDWE" in done.stdout:
        pytest.skip("this kernel can't refuse it by prctl (Linux 6.3)")
    assert done.stdout.splitlines() == ["refused", "called back"], done.stderr


@pytest.mark.parametrize("unit", _UNITS)
def test_what_comes_after_a_unit_waits_for_the_run_to_be_ready(unit: str) -> None:
    service = _settings(unit)
    assert (service["Type"], service["NotifyAccess"]) == (["notify"], ["main"])
    # It may be killed at any time, and nothing that requires it is.
    assert (service["Restart"], service["RestartMode"]) == (["always"], ["direct"])
    assert _settings(unit, "Unit")["StartLimitIntervalSec"] == ["0"]
    assert float(service["WatchdogSec"][0]) > 0


def test_the_units_differ_in_what_they_do_and_in_nothing_else() -> None:
    machine, host = (
        {key: value for key, value in _settings(unit).items() if key not in _OWN} for unit in _UNITS
    )
    assert machine == host


def test_the_machines_unit_has_nothing_to_do_with_the_network() -> None:
    service = _settings(_MACHINE)
    assert service["RestrictAddressFamilies"] == ["AF_NETLINK AF_UNIX"]
    assert service["IPAddressDeny"] == ["any"]


@pytest.mark.parametrize("unit", _UNITS)
def test_the_command_line_takes_each_command(unit: str) -> None:
    # By the settings that the guide shows.
    (text,) = re.findall(r"fence\.env <<'\.'\n(.*?)\n\.", _GUIDE, re.DOTALL)
    variables = dict(line.partition("=")[::2] for line in shlex.split(text))
    service = _settings(unit)
    commands = [
        line
        for key in ("ExecStartPre", "ExecStart", "ExecReload")
        for line in service[key]
        if line.startswith(_PROGRAM)
    ]
    found = []
    for line in commands:
        words = re.sub(r"\$([A-Z_]+)", lambda name: variables[name[1]], line).split()
        parsed = _parsed(words[1], words[2:])
        # Whatever is watched is on record where the unit may write.
        assert str(parsed.get("state_dir", "/var/lib/ocsf-nft")) == "/var/lib/ocsf-nft"
        found.append(words[1])
    assert found == {_MACHINE: ["install", "run"], _HOST: ["run", "config"]}[unit]


def test_a_configuration_as_the_guide_shows_it_is_taken(tmp_path: Path) -> None:
    text, attribution = (block for _, block in _blocks("toml"))
    path = tmp_path / "ocsf-nft.toml"
    path.write_text(text + attribution, encoding="utf-8")
    found = config.load(path)
    assert found.sandbox[0].install
    assert (found.attribution.method, found.attribution.hash_max_bytes) == ("user", 64 << 20)
    token = tomllib.loads(text)["sink"][0]["token"]["credential"]
    # What the unit imports, and what the guide has written.
    assert _settings(_HOST)["ImportCredential"] == ["ocsf-nft.*"]
    assert token.startswith("ocsf-nft.")
    assert f"/etc/credstore/{token}" in _GUIDE


def test_the_user_and_the_group_of_readers_are_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", _FOLDER / "ocsf-nft.sysusers.conf"],
        check=True, capture_output=True,
    )  # fmt: skip
    name, _, uid, gid, _, home, shell = (tmp_path / "etc/passwd").read_text().strip().split(":")
    assert (name, home, shell) == ("ocsf-nft", "/var/lib/ocsf-nft", "/usr/sbin/nologin")
    assert 0 < int(uid) < 1000
    assert (tmp_path / "etc/group").read_text() == f"ocsf-nft:x:{gid}:\n"


def _parsed(command: str, arguments: list[str]) -> dict[str, Any]:
    """The parameters that a command would be called with; raises when it doesn't take them."""
    commands = getattr(get_command(app), "commands")  # noqa: B009 - typer's group has no public type
    parsed: dict[str, Any] = commands[command].make_context(command, list(arguments)).params
    return parsed
