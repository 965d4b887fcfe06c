"""The units and their guide; tests/guest/test_systemd.py boots a system with the units."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import config
from ocsf_nft.cli import options
from tests.cli.parsed import parsed
from tests.deploy.manifests import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_FOLDER = ROOT / "deploy/systemd"
_MACHINE, _HOST = "ocsf-nft.service", "ocsf-nft-host.service"
_UNITS = (_MACHINE, _HOST)
_GUIDE = (_FOLDER / "README.md").read_text(encoding="utf-8")
_PROGRAM = "/usr/bin/ocsf-nft"
#: The unit of the drop-ins below each heading of the guide.
_CHAPTERS = {"A machine that fences itself": _MACHINE, "A host with sandboxes": _HOST}
#: Settings of [Service] that differ between the units because of their tasks.
_DIFFERENT_SETTINGS = frozenset(
    {
        "EnvironmentFile",
        "ExecStartPre",
        "ExecStart",
        "ExecReload",
        "CapabilityBoundingSet",
        "AmbientCapabilities",
        "ImportCredential",
        "RestrictNamespaces",
        # systemd-analyze rates it only for a unit that does not start early.
        "RootDirectory",
        "MountAPIVFS",
        "BindReadOnlyPaths",
        # Only the unit with a file has a control socket. A directory of both would be removed with
        # the first one that stops.
        "RuntimeDirectory",
        "RuntimeDirectoryMode",
        "RuntimeDirectoryPreserve",
    }
)
#: A callback under MemoryDenyWriteExecute= (include/uapi/linux/prctl.h: PR_SET_MDWE).
_CALLBACK_PROGRAM = """
import ctypes, mmap, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:
    sys.exit(print("no MDWE"))
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)
except PermissionError:
    print("refused")
from ocsf_nft.libbpf import _SAMPLER
_SAMPLER(lambda *_: print("called back"))(None, None, 0)
"""


def _settings(unit: str, section: str = "Service") -> dict[str, list[str]]:
    """Return the settings in a section of a unit: the values of each key, in order."""
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
    """Return the heading and the text of each block of the guide in this language."""
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


#: The drop-ins for more privileges: the unit, and the file.
_EXTENSIONS = [
    (f"{path.parent.name.removesuffix('.d')}", path)
    for path in sorted((_FOLDER / "examples").glob("*.service.d/*.conf"))
]
#: Largest exposure of a unit without drop-ins.
_MAX_EXPOSURE = 1.5


def _write_unit(folder: Path, unit: str, drop_in: str = "") -> Path:
    """Write a unit and a drop-in, with a program that exists on every machine."""
    path = folder / unit
    text = (_FOLDER / unit).read_text(encoding="utf-8")
    path.write_text(text.replace(_PROGRAM, "/bin/true"), encoding="utf-8")
    if drop_in:
        drop_ins = folder / f"{unit}.d"
        drop_ins.mkdir()
        (drop_ins / "own.conf").write_text(drop_in.replace(_PROGRAM, "/bin/true"), encoding="utf-8")
    return path


def _findings(path: Path) -> str:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stderr if done.stderr or done.returncode == 0 else f"exit {done.returncode}"


def _exposure(path: Path) -> float:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


@pytest.mark.parametrize("unit", _UNITS)
def test_systemd_verifies_each_unit(tmp_path: Path, unit: str) -> None:
    assert _findings(_write_unit(tmp_path, unit)) == ""


def test_unit_of_a_host_makes_the_folder_of_the_default_control_socket() -> None:
    found = _settings(_HOST)
    assert options.DEFAULT_CONTROL.parent.relative_to("/run").parts == tuple(
        found["RuntimeDirectory"]
    )
    assert found["RuntimeDirectoryMode"] == ["0755"]
    assert found["RuntimeDirectoryPreserve"] == ["restart"]
    assert "RuntimeDirectory" not in _settings(_MACHINE)


@pytest.mark.parametrize(("unit", "drop_in"), _DROP_INS)
def test_systemd_verifies_each_drop_in_of_the_guide(
    tmp_path: Path, unit: str, drop_in: str
) -> None:
    assert _findings(_write_unit(tmp_path, unit, drop_in)) == ""


def test_systemd_finds_an_unknown_setting(tmp_path: Path) -> None:
    path = _write_unit(tmp_path, _MACHINE, "[Service]\nWatchdogSeconds=60\n")
    assert "WatchdogSeconds" in _findings(path)


def test_workload_may_require_the_unit_as_in_the_guide(tmp_path: Path) -> None:
    (block,) = (block for _, block in _blocks("ini") if "Requires=" in block)
    _write_unit(tmp_path, _MACHINE)
    workload = tmp_path / "workload.service"
    workload.write_text(f"{block}[Service]\nExecStart=/bin/true\n", encoding="utf-8")
    assert _findings(workload) == ""
    assert block.count(_MACHINE) == 2


@pytest.mark.parametrize("unit", _UNITS)
def test_exposure_of_a_unit_is_at_most_the_documented_one(tmp_path: Path, unit: str) -> None:
    (documented,) = re.findall(rf"^\| `{unit}` \|.*\| ([0-9.]+) \|$", _GUIDE, re.MULTILINE)
    assert _exposure(_write_unit(tmp_path, unit)) <= float(documented)


@pytest.mark.parametrize("unit", _UNITS)
def test_exposure_of_a_unit_is_at_most_1_5(tmp_path: Path, unit: str) -> None:
    assert _exposure(_write_unit(tmp_path, unit)) <= _MAX_EXPOSURE


def test_lost_restriction_raises_the_exposure_above_the_limit(tmp_path: Path) -> None:
    path = _write_unit(tmp_path, _HOST, "[Service]\nProtectKernelLogs=no\n")
    assert _exposure(path) > _MAX_EXPOSURE


@pytest.mark.parametrize(("unit", "path"), _EXTENSIONS, ids=lambda each: getattr(each, "name", ""))
def test_drop_in_for_more_privileges_is_verified_and_has_the_documented_exposure(
    tmp_path: Path, unit: str, path: Path
) -> None:
    extended = _write_unit(tmp_path, unit, path.read_text(encoding="utf-8"))
    assert _findings(extended) == ""
    (documented,) = re.findall(
        rf"^\| `{path.name}` \|.*\| ([0-9.]+) \|$"
        if unit == _HOST
        else rf"`examples/{unit}.d/{path.name}` is for the other unit \(([0-9.]+)\)",
        _GUIDE,
        re.MULTILINE,
    )
    assert _exposure(extended) == float(documented)


def test_exposure_with_all_drop_ins_is_the_documented_one(tmp_path: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for unit, path in _EXTENSIONS if unit == _HOST]
    assert len(texts) == 3
    assert f"exposure is {_exposure(_write_unit(tmp_path, _HOST, ''.join(texts)))}." in _GUIDE


def test_hosts_unit_is_less_exposed_without_sandboxes_in_other_namespaces(tmp_path: Path) -> None:
    (drop_in,) = (block for unit, block in _DROP_INS if unit == _HOST)
    (documented,) = re.findall(r"\(exposure ([0-9.]+)\)", _GUIDE)
    unchanged = _exposure(_write_unit(tmp_path, _HOST))
    assert _exposure(_write_unit(tmp_path, _HOST, drop_in)) <= float(documented) < unchanged


@pytest.mark.parametrize("unit", _UNITS)
def test_unit_has_only_capabilities_that_its_user_gets(unit: str) -> None:
    service = _settings(unit)
    assert service["User"] == ["ocsf-nft"]
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"]


@pytest.mark.parametrize("unit", _UNITS)
def test_unit_allows_a_run_to_capture_calls(unit: str) -> None:
    service = _settings(unit)
    assert {"CAP_BPF", "CAP_PERFMON"} <= set(service["AmbientCapabilities"][0].split())
    # @privileged, which an earlier line removes, includes this call.
    assert "bpf" in service["SystemCallFilter"][-1].split()
    # Equivalent to root: only with a drop-in.
    assert "CAP_SYS_PTRACE" not in service["AmbientCapabilities"][0].split()


@pytest.mark.parametrize("unit", _UNITS)
def test_unit_may_write_no_sysctls_but_those_of_the_network(unit: str) -> None:
    service = _settings(unit)
    assert service["ProtectKernelTunables"] == ["yes"]
    # Without "+", systemd ignores it in a unit with RootDirectory=.
    assert service["ReadWritePaths"] == ["+/proc/sys/net"]


@pytest.mark.parametrize("unit", _UNITS)
def test_unit_allows_a_run_to_restrict_itself(unit: str) -> None:
    # seccomp(2) and Landlock's calls are in no other group.
    assert "@sandbox" in _settings(unit)["SystemCallFilter"][-1].split()


def test_libbpf_callback_works_without_writable_executable_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CALLBACK_PROGRAM], capture_output=True, text=True, check=False
    )
    if "no MDWE" in done.stdout:
        pytest.skip("this kernel can't refuse it by prctl (Linux 6.3)")
    assert done.stdout.splitlines() == ["refused", "called back"], done.stderr


@pytest.mark.parametrize("unit", _UNITS)
def test_later_units_wait_until_the_run_is_ready(unit: str) -> None:
    service = _settings(unit)
    assert (service["Type"], service["NotifyAccess"]) == (["notify"], ["main"])
    # A kill of the run does not stop the units that require it.
    assert (service["Restart"], service["RestartMode"]) == (["always"], ["direct"])
    assert _settings(unit, "Unit")["StartLimitIntervalSec"] == ["0"]
    assert float(service["WatchdogSec"][0]) > 0


def test_units_differ_only_in_settings_of_their_tasks() -> None:
    machine, host = (
        {key: value for key, value in _settings(unit).items() if key not in _DIFFERENT_SETTINGS}
        for unit in _UNITS
    )
    assert machine == host


@pytest.mark.parametrize("unit", _UNITS)
def test_unit_has_no_network_access(unit: str) -> None:
    service = _settings(unit)
    assert service["RestrictAddressFamilies"] == ["AF_NETLINK AF_UNIX"]
    assert service["IPAddressDeny"] == ["any"]


@pytest.mark.parametrize("unit", _UNITS)
def test_command_line_accepts_each_command(unit: str) -> None:
    # With the settings of the guide.
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
        given = parsed(words[1], words[2:])
        # The state directory is one that the unit may write.
        directory = given.get("state_dir") or options.DEFAULT_STATE_DIR
        assert str(directory) == "/var/lib/ocsf-nft"
        found.append(words[1])
    assert found == {_MACHINE: ["install", "run"], _HOST: ["run", "config"]}[unit]


def test_configuration_of_the_guide_is_accepted(tmp_path: Path) -> None:
    text, attribution = (block for _, block in _blocks("toml"))
    path = tmp_path / "ocsf-nft.toml"
    path.write_text(text + attribution, encoding="utf-8")
    found = config.load(path)
    assert found.sandbox[0].install
    assert (found.attribution.method, found.attribution.hash_max_bytes) == ("user", 64 << 20)
    token = tomllib.loads(text)["sink"][0]["token"]["credential"]
    # The unit imports the credential, and the guide writes it.
    assert _settings(_HOST)["ImportCredential"] == ["ocsf-nft.*"]
    assert token.startswith("ocsf-nft.")
    assert f"/etc/credstore/{token}" in _GUIDE


def test_sysusers_creates_the_user_and_the_group_of_readers(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", _FOLDER / "ocsf-nft.sysusers.conf"],
        check=True, capture_output=True,
    )  # fmt: skip
    name, _, uid, gid, _, home, shell = (tmp_path / "etc/passwd").read_text().strip().split(":")
    assert (name, home, shell) == ("ocsf-nft", "/var/lib/ocsf-nft", "/usr/sbin/nologin")
    assert 0 < int(uid) < 1000
    assert (tmp_path / "etc/group").read_text() == f"ocsf-nft:x:{gid}:\n"


def test_tmpfiles_makes_the_root_directory_of_the_hosts_unit(tmp_path: Path) -> None:
    subprocess.run(
        ["systemd-tmpfiles", "--create", f"--root={tmp_path}", _FOLDER / "ocsf-nft.tmpfiles.conf"],
        check=True, capture_output=True,
    )  # fmt: skip
    (path,) = _settings(_HOST)["RootDirectory"]
    made = tmp_path / path.lstrip("/")
    assert made.is_dir()
    assert made.stat().st_mode & 0o777 == 0o755
    # The settings of a configuration and the programs are there.
    seen = _settings(_HOST)["BindReadOnlyPaths"][0].split()
    assert {"/usr", "/etc", "/run"} <= set(seen)
