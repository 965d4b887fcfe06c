"""Installation of the CNI plugin on a node: a folder that has nothing but a shell."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.cni.network_file import add_plugin
from ocsf_nft.control_request import SECONDS
from ocsf_nft.errors import SourceError, UsageError
from tests.engines import stub

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

_CHROOT = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin:/bin") or "chroot"
_BRIDGE = {"type": "bridge", "unknown": [1.5]}
_OURS = {"type": "ocsf-nft-cni", "control": "/run/ocsf-nft/control.sock", "timeout": SECONDS}


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Return the root of a node with a shell and the network of flannel."""
    made = tmp_path / "node"
    (made / "bin").mkdir(parents=True)
    found = shutil.which("busybox")
    assert found is not None
    shutil.copy(found, made / "bin/sh")
    _write_network(made, _BRIDGE)
    return made


def _network(node: Path) -> Path:
    return node / "etc/cni/net.d/10-net.conflist"


def _write_network(node: Path, *plugins: dict[str, Any]) -> None:
    path = _network(node)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"cniVersion": "0.3.1", "name": "net", "plugins": list(plugins)}
    whole = node / "whole.conflist"  # a watch must not read a part
    whole.write_text(json.dumps(found), encoding="utf-8")
    whole.replace(path)


def _plugins(node: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_network(node).read_bytes())["plugins"]
    return found


def _command(node: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "ocsf_nft.cni.install", f"--host={node}", *arguments]


def _install(node: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(node, *arguments), capture_output=True, text=True, check=False)


def _call(node: Path, command: str, config: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_CHROOT, node, "/opt/cni/bin/ocsf-nft-cni"],
        input=json.dumps(config),
        # As a container runtime does, with a variable that would break another Python.
        env={"CNI_COMMAND": command, "PATH": "/bin", "PYTHONHOME": "/none"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_plugin_needs_no_file_of_the_node_but_a_shell(node: Path) -> None:
    done = _install(node)
    assert done.returncode == 0, done.stderr
    assert _plugins(node) == [_BRIDGE, _OURS]
    version = _call(node, "VERSION", {"cniVersion": "1.0.0"})
    assert json.loads(version.stdout)["cniVersion"] == "1.0.0", version.stderr
    config = {"cniVersion": "1.1.0", "name": "net", "control": "/service.sock"}
    with stub.serving(node / "service.sock") as service:
        status = _call(node, "STATUS", config)
        assert (status.returncode, status.stdout, status.stderr) == (0, "", "")
    assert [each.path for each in service.requests] == ["/v1/status"]
    assert json.loads(_call(node, "STATUS", config).stdout)["code"] == 50


def test_second_installation_changes_nothing_and_a_new_version_removes_older_ones(
    node: Path,
) -> None:
    assert _install(node).returncode == 0
    folder = node / "opt/ocsf-nft-cni"
    (version,) = folder.iterdir()
    modified = version.stat().st_mtime_ns, _network(node).stat().st_mtime_ns
    for name in ("old", "older"):
        (folder / name).mkdir()
    launcher = node / "opt/cni/bin/ocsf-nft-cni"
    launcher.write_text(launcher.read_text("utf-8").replace(version.name, "old"), "utf-8")
    assert _install(node).returncode == 0
    assert (version.stat().st_mtime_ns, _network(node).stat().st_mtime_ns) == modified
    assert {each.name for each in folder.iterdir()} == {version.name, "old"}


def test_settings_of_the_plugin_are_in_the_network(node: Path) -> None:
    done = _install(node, "--control=/c", "--timeout=2", "--policy=strict")
    assert done.returncode == 0, done.stderr
    assert _plugins(node)[1] == {
        "type": "ocsf-nft-cni",
        "control": "/c",
        "timeout": 2.0,
        "policy": "strict",
    }
    assert _install(node).returncode == 0
    assert _plugins(node) == [_BRIDGE, _OURS]


@contextlib.contextmanager
def _watching(node: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(_command(node, "--watch"), stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0


def test_plugin_is_added_again_when_another_program_writes_the_network(node: Path) -> None:
    _network(node).unlink()
    with _watching(node) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ocsf-nft: installed /opt/cni/bin/ocsf-nft-cni\n"
        for _ in range(2):
            temporary = _network(node).with_suffix(".tmp")
            _write_network(node, _BRIDGE)
            added = process.stderr.readline()
            assert added == "ocsf-nft: added the plugin to /etc/cni/net.d/10-net.conflist\n"
            assert _plugins(node) == [_BRIDGE, _OURS]
            assert not temporary.exists()


def test_watch_continues_after_a_network_that_is_written_in_parts(node: Path) -> None:
    _network(node).write_text('{"plugins": [', encoding="ascii")
    with _watching(node) as process:
        assert process.stderr is not None
        process.stderr.readline()
        assert "10-net.conflist can't be read" in process.stderr.readline()
        _write_network(node, _BRIDGE)
        assert "added the plugin" in process.stderr.readline()
        assert _plugins(node) == [_BRIDGE, _OURS]


def test_first_network_counts(node: Path) -> None:
    other = _network(node).with_name("20-other.conflist")
    shutil.copy(_network(node), other)
    before = other.read_bytes()
    assert _install(node).returncode == 0
    assert other.read_bytes() == before
    assert _plugins(node) == [_BRIDGE, _OURS]


def test_mode_of_the_network_stays(node: Path) -> None:
    _network(node).chmod(0o640)
    assert _install(node).returncode == 0
    assert _network(node).stat().st_mode & 0o777 == 0o640
    assert [each.name for each in _network(node).parent.iterdir()] == [_network(node).name]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"type": "bridge"}', '{"plugins": [1]}'])
def test_network_that_is_no_list_of_plugins_is_an_error(node: Path, content: str) -> None:
    _network(node).write_text(content, encoding="ascii")
    with pytest.raises((SourceError, UsageError), match=_network(node).name):
        add_plugin(_network(node), {})
    assert _network(node).read_text("ascii") == content


def test_wrong_network_is_one_sentence_of_the_program(node: Path) -> None:
    _network(node).write_text("{", encoding="ascii")
    done = _install(node)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "10-net.conflist can't be read" in done.stderr


@pytest.mark.parametrize(
    "option",
    [
        "--timeout=nan",
        "--timeout=1000",
        "--control=",
        "--policy=",
        "--networks=etc/cni",
        "--folder=x",
    ],
)
def test_setting_that_the_plugin_would_refuse_is_not_installed(node: Path, option: str) -> None:
    before = _network(node).read_bytes()
    done = _install(node, option)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert _network(node).read_bytes() == before
    assert not (node / "opt").exists()


def test_other_files_and_folders_on_the_node_are_left(node: Path) -> None:
    _network(node).with_name("00.conflist").mkdir()
    program = node / "opt/cni/bin/ocsf-nft-cni"
    program.parent.mkdir(parents=True)
    program.write_bytes(b"\x7fELF\xff")
    other = node / "opt/ocsf-nft-cni/other"
    other.parent.mkdir()
    other.touch()
    assert _install(node).returncode == 0
    assert _plugins(node) == [_BRIDGE, _OURS]
    assert other.exists()


def test_folder_that_can_not_be_used_is_one_sentence(node: Path) -> None:
    for option, sentence in (
        ("--programs=/bin/sh", "the plugin's files can't be written"),
        ("--networks=/bin/sh", "/bin/sh can't be read: Not a directory"),
    ):
        done = _install(node, option)
        assert (done.returncode, "Traceback" in done.stderr) == (3, False)
        assert sentence in done.stderr


def test_missing_network_is_an_error_without_watch(node: Path) -> None:
    _network(node).unlink()
    done = _install(node)
    assert done.returncode == 3
    assert "no network configuration yet" in done.stderr


def test_removal_leaves_nothing(node: Path) -> None:
    before = _network(node).read_bytes()
    assert _install(node).returncode == 0
    assert _install(node, "--remove").returncode == 0
    assert json.loads(_network(node).read_bytes()) == json.loads(before)
    assert not (node / "opt/ocsf-nft-cni").exists()
    assert not list((node / "opt/cni/bin").iterdir())
    assert _install(node, "--remove").returncode == 0


def test_folders_are_not_writable_for_others(node: Path) -> None:
    assert _install(node).returncode == 0
    for folder, _, names in os.walk(node / "opt"):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            assert path.stat().st_mode & 0o022 == 0, path
