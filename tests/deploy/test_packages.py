"""Packages of `make package`, installed as users do: by pip, and by apt in a new Debian 13."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.deploy import debian_root
from tests.deploy.manifests import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.deploy.debian_root import DebianRoot

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.kernel]

_VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "version"
]
_BUILD_OUTPUT = shutil.ignore_patterns(
    ".*", "__pycache__", "*.bpf.o", "*.egg-info", "build", "dist"
)
_UNITS = ("ocsf-nft.service", "ocsf-nft-host.service")
#: Fence a namespace, remove the package, and list what the namespace has then.
_PURGE_BEHIND_A_FENCE = """
ip netns add agent
ocsf-nft install --sandbox agent --netns agent --proxy 10.0.0.1:3128
apt-get purge --yes ocsf-nft
ip netns exec agent nft list tables
"""
#: A unit that removes its fence when it stops; systemd itself does not run here.
_REMOVAL_WITH_A_RUNNING_UNIT = """
for name in agent other; do
    ip netns add $name
    ocsf-nft install --sandbox $name --netns $name --proxy 10.0.0.1:3128
done
mkdir -p /run/systemd/system '/var/lib/ocsf-nft/bad name'
touch '/var/lib/ocsf-nft/bad name/fence.json'
printf '%s\\n' '#!/bin/sh' 'exec ocsf-nft remove --sandbox agent' >/usr/bin/deb-systemd-invoke
OCSF_NFT_LOG_FORMAT=wrong apt-get remove --yes ocsf-nft 2>&1
"""
#: The candidates that bash-completion gets for a started word.
_COMPLETE = """
. /usr/share/bash-completion/completions/ocsf-nft
COMP_WORDS=(ocsf-nft "$1") COMP_CWORD=1
_ocsf_nft_completion ocsf-nft
echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `make package` in a copy of the tree, which other tests read at the same time."""
    folder = tmp_path_factory.mktemp("package")
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=_BUILD_OUTPUT)
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        # With the environment of this tree, which is set up.
        ["make", "-C", tree, "-o", ".venv/ready", f"BIN={sys.prefix}/bin", f"DIST={folder}/dist",
         "package"],
        env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return folder / "dist"


@pytest.fixture(scope="module")
def package(dist: Path) -> Path:
    """Return the Debian package."""
    (found,) = dist.glob("*.deb")
    return found


@pytest.fixture(scope="module")
def minimal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the folder of a minimal Debian; it is too large to stay after the tests."""
    root = tmp_path_factory.mktemp("debian") / "minimal"
    debian_root.bootstrap(root)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def installed(
    minimal: Path, package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DebianRoot]:
    """Yield a system with the installed package."""
    folder = tmp_path_factory.mktemp("installed")
    system = debian_root.first(folder, minimal)
    system.install(package)
    yield system
    shutil.rmtree(folder)


def test_make_package_builds_three_files_of_the_project_s_version(dist: Path) -> None:
    machine = platform.machine()
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert {path.name for path in dist.iterdir()} == {
        f"ocsf_nft-{_VERSION}.tar.gz",
        f"ocsf_nft-{_VERSION}-py3-none-linux_{machine}.whl",
        f"ocsf-nft_{_VERSION}-1_{architecture}.deb",
    }


def test_wheel_names_processes_on_a_machine_without_clang(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    programs = os.environ | {"PATH": f"{environment}/bin"}
    assert shutil.which("clang", path=programs["PATH"]) is None
    subprocess.run(
        [environment / "bin/pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt",
         wheel],
        env=programs, check=True,
    )  # fmt: skip
    program = environment / "bin/ocsf-nft"
    version = subprocess.run(
        [program, "--version"], env=programs, check=True, capture_output=True, text=True
    )
    assert version.stdout == f"ocsf-nft {_VERSION}\n"
    done = subprocess.run(
        [program, "demo"], env=programs, cwd=tmp_path, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r'"method":\s*"capture"', done.stdout), done.stdout


def test_lintian_reports_no_error_and_no_warning(package: Path) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on=error,warning", package],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_debian_package_has_no_warning_in_its_manual_pages(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    pages = sorted(tmp_path.glob("usr/share/man/man1/*"))
    assert pages
    for page in pages:
        done = subprocess.run(
            ["man", "--warnings", "--local-file", "--troff-device=utf8", "--ditroff", page],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert done.stderr == ""
        # The name and the summary, as apropos(1) finds them.
        name = page.name.removesuffix(".1.gz")
        index = subprocess.run(["lexgrog", page], check=True, capture_output=True, text=True)
        assert f': "{name} - ' in index.stdout


def test_debian_package_has_a_manual_page_for_each_command(installed: DebianRoot) -> None:
    overview = installed.run("ocsf-nft", "--help").stdout.partition("Commands:\n")[2]
    commands = re.findall(r"^  ([a-z]+) ", overview, re.MULTILINE)
    assert "install" in commands
    pages = installed.run("ls", "/usr/share/man/man1").stdout.split()
    programs = ("cni", "oci")
    expected = {"ocsf-nft.1.gz", *(f"ocsf-nft-{name}.1.gz" for name in (*commands, *programs))}
    assert {page for page in pages if page.startswith("ocsf-nft")} == expected


def test_debian_package_completes_commands(installed: DebianRoot) -> None:
    assert "events" in installed.run("bash", "-c", _COMPLETE, "-", "eve").stdout.split()
    for shell, path in (
        ("zsh", "zsh/vendor-completions/_ocsf-nft"),
        ("fish", "fish/vendor_completions.d/ocsf-nft.fish"),
    ):
        assert (
            f"_OCSF_NFT_COMPLETE={shell}_complete"
            in installed.run("cat", f"/usr/share/{path}").stdout
        )


def test_debian_package_names_processes_in_its_demo(installed: DebianRoot) -> None:
    assert "clang" not in installed.run("ls", "/usr/bin").stdout.split()
    done = installed.run("ocsf-nft", "demo")
    assert re.search(r'"method":\s*"capture"', done.stdout), done.stdout


def test_debian_package_enables_no_unit_and_makes_their_user(installed: DebianRoot) -> None:
    for unit in _UNITS:
        state = installed.run("systemctl", "is-enabled", unit, check=False).stdout
        assert state == "disabled\n"
    user = installed.run("getent", "passwd", "ocsf-nft").stdout
    assert user.endswith(":/var/lib/ocsf-nft:/usr/sbin/nologin\n")


def test_debian_package_has_valid_examples(installed: DebianRoot) -> None:
    folder = "/usr/share/doc/ocsf-nft/examples"
    installed.run("ocsf-nft", "config", f"{folder}/ocsf-nft.toml")
    variables = f". {folder}/fence.env; ocsf-nft install --dry-run $OCSF_NFT_FENCE"
    ruleset = installed.run("sh", "-euc", variables).stdout
    assert "table inet ocsf_nft" in ruleset


def test_upgrade_replaces_all_files_and_leaves_state(
    installed: DebianRoot, package: Path, tmp_path: Path
) -> None:
    system = debian_root.copied(tmp_path / "system", installed)
    system.run("sh", "-c", "mkdir -p /var/lib/ocsf-nft/agent; touch /var/lib/ocsf-nft/agent/stored")
    system.install(_newer(package, tmp_path))
    status = system.run("dpkg-query", "--show", "--showformat=${Version} ${Status}", "ocsf-nft")
    assert status.stdout == f"{_VERSION}-2 install ok installed"
    assert system.run("ocsf-nft", "--version").stdout == f"ocsf-nft {_VERSION}\n"
    # Neither a module that the newer version has not, nor its bytecode.
    assert system.run("find", "/usr", "-path", "*ocsf_nft/demo*").stdout == ""
    system.run("test", "-e", "/var/lib/ocsf-nft/agent/stored")


def _newer(package: Path, folder: Path) -> Path:
    """Return the package with a higher version, and without the modules of the demo."""
    tree, newer = folder / "tree", folder / "newer.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    text = control.read_text(encoding="utf-8")
    control.write_text(text.replace(f"Version: {_VERSION}-1\n", f"Version: {_VERSION}-2\n"))
    shutil.rmtree(tree / "usr/lib/python3/dist-packages/ocsf_nft/demo")
    subprocess.run(["dpkg-deb", "--build", tree, newer], check=True, capture_output=True)
    return newer


def test_removal_names_a_sandbox_whose_fence_the_units_remove(
    installed: DebianRoot, tmp_path: Path
) -> None:
    system = debian_root.copied(tmp_path, installed)
    output = system.run("sh", "-euc", _REMOVAL_WITH_A_RUNNING_UNIT).stdout
    assert "has removed the fence of sandbox agent: nothing restricts this sandbox" in output
    assert "the fence of sandbox other stays active" in output
    assert "bad" not in output  # a directory whose name is no sandbox's


def test_purge_names_an_active_fence_and_leaves_no_file(
    installed: DebianRoot, tmp_path: Path
) -> None:
    system = debian_root.copied(tmp_path, installed)
    system.run("sh", "-c", "touch /etc/ocsf-nft/fence.env; mkdir -m 0750 /var/log/ocsf-nft")
    output = system.run("sh", "-euc", _PURGE_BEHIND_A_FENCE).stdout
    assert "the fence of sandbox agent stays active" in output
    assert "ocsf-nft remove --sandbox agent" in output
    # The last command's output: the fence is active without the package.
    assert output.endswith("table inet ocsf_nft\ntable netdev ocsf_nft\n")
    assert "not empty" not in output
    found = system.run("find", "/", "-xdev", "-name", "*ocsf*", "-not", "-path", "/proc/*").stdout
    assert found == ""
