from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.cli import forked

_ROOT = Path(__file__).parents[1]
_COMPILED = ("ocsf_nft/attribution/bpf", "ocsf_nft/conversion/native", "ocsf_nft/fence/bpf")
_DEBIAN = _ROOT / "deploy/debian"

#: Import of the package without the names that CPython lacks on macOS.
_ELSEWHERE = """
import importlib, json, os, pkgutil, select, socket, sys, sysconfig
sysconfig.get_config_vars()  # the standard library's own, for the system that it is on
sys.platform = "darwin"
for module, names in (
    (os, ("memfd_create", "setns", "unshare", "pidfd_open")),
    (socket, ("AF_NETLINK", "AF_PACKET", "SOCK_NONBLOCK", "SO_DOMAIN")),
    (select, ("epoll",)),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.modules["systemd"] = None
sys.modules["_scproxy"] = only_there = type(sys)("_scproxy")
only_there._get_proxy_settings = only_there._get_proxies = dict
import ocsf_nft
for found in pkgutil.walk_packages(ocsf_nft.__path__, "ocsf_nft."):
    if found.name != "ocsf_nft.__main__":
        importlib.import_module(found.name)
from ocsf_nft.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        sys.argv = ["ocsf-nft", *arguments]
        main()
        sys.exit()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("exited with", code, file=sys.stderr)
"""


def test_commands_work_or_name_linux_where_system_is_not_linux(tmp_path: Path) -> None:
    line = (
        "[1.5] ocsf-nft:sb:egress:IN= OUT=e0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 TOS=0x00 "
        "PREC=0x00 TTL=64 ID=1 DF PROTO=UDP SPT=4000 DPT=53 LEN=28 UID=0 GID=0 \n"
    )
    state = ("--sandbox", "a", "--state-dir", str(tmp_path))
    proxy = ("--proxy", "10.0.0.1:3128")
    works = ("convert",)
    needs_linux = (
        ("check",),
        ("install", *state, *proxy),
        ("run", *state, *proxy, "--install"),
        ("verify", *state),
    )
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, json.dumps([works, *needs_linux])],
        input=line,
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"class_uid":4001' in done.stdout
    assert "Traceback" not in done.stderr
    converted, *others, rest = re.split(r"exited with (\d+)\n", done.stderr)
    assert (others[0], rest) == ("0", ""), converted
    results = dict(zip(needs_linux, zip(others[1::2], others[2::2], strict=True), strict=True))
    assert {what: each for what, each in results.items() if each[1] != "3"} == {}
    assert {what: each for what, each in results.items() if "Linux" not in each[0]} == {}


#: Sources that clang compiles, and their objects.
_SOURCES = {
    f"{folder}/{path.name}" for folder in _COMPILED for path in (_ROOT / folder).glob("*.[ch]")
}
_OBJECTS = {
    "ocsf_nft/attribution/bpf/plain.bpf.o",
    "ocsf_nft/attribution/bpf/types.bpf.o",
    "ocsf_nft/fence/bpf/gate.bpf.o",
}
_LIBRARY = "ocsf_nft/conversion/native/libconverter.so.1"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of the files in git: a build writes files to its tree."""
    made = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.bpf.o", "*.so.1")
    for name in ("ocsf_nft", "rules"):
        shutil.copytree(_ROOT / name, made / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(_ROOT / name, made)
    return made


def _wheel(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel, next to the tree."""
    return subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tree.parent, tree],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_wheel_contains_rulesets_types_and_all_that_clang_compiles_with_sources(
    tree: Path,
) -> None:
    done = _wheel(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tree.parent.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"ocsf_nft/rules/sandbox.nft", "ocsf_nft/rules/guard.nft", "ocsf_nft/py.typed"} <= names
    modules = {str(path.relative_to(tree)) for path in (tree / "ocsf_nft").rglob("*.py")}
    assert modules <= names
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    assert "ocsf_nft/attribution/bpf/capture.bpf.c" in _SOURCES
    assert names >= _SOURCES | _OBJECTS | {_LIBRARY}
    # An object has the format that its loader reads on either kernel: ELF, for BPF (elf.h, EM_BPF).
    with zipfile.ZipFile(wheel) as archive:
        for name in _OBJECTS:
            content = archive.read(name)
            assert content[:4] == b"\x7fELF"
            assert int.from_bytes(content[18:20], sys.byteorder) == 247
        (tags,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: false" in archive.read(tags).decode().splitlines()
    # The byte order is the machine's. No module is of one version of Python.
    assert wheel.stem.endswith(f"-py3-none-linux_{platform.machine()}")


def test_wheel_without_extensions_has_no_library(tree: Path) -> None:
    done = _wheel(tree, OCSF_NFT_NO_EXTENSIONS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tree.parent.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= _OBJECTS
    assert _LIBRARY not in names


def test_source_distribution_has_all_inputs_and_no_output_of_a_build(
    tree: Path,
) -> None:
    for name in _OBJECTS | {_LIBRARY}:  # as left by an earlier build
        (tree / name).write_bytes(b"")
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--outdir", tree.parent, tree],
        check=True,
        capture_output=True,
    )
    (archive,) = tree.parent.glob("*.tar.gz")
    with tarfile.open(archive) as found:
        names = {name.partition("/")[2] for name in found.getnames()}
    assert {"setup.py", "pyproject.toml", "MANIFEST.in", "rules/sandbox.nft"} <= names
    assert names >= _SOURCES
    assert not [name for name in names if name.endswith((".o", ".so.1"))]


def test_debian_package_has_the_version_of_the_project() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (_DEBIAN / "changelog").read_text(encoding="utf-8")
    assert re.findall(r"^ocsf-nft \((.*)-\d+\)", changelog) == [project["version"]]


def test_makefile_installs_all_build_dependencies_of_the_debian_package() -> None:
    control = (_DEBIAN / "control").read_text(encoding="utf-8")
    depends = control.partition("\nBuild-Depends:\n")[2].partition("\nStandards-Version:")[0]
    needed = set(re.findall(r"^ ([a-z0-9-]+)", depends, re.MULTILINE))
    makefile = (_ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    lists = re.findall(r"^(?:DEMO_PACKAGES|PACKAGES|PACKAGING) := (.*)$", makefile, re.MULTILINE)
    # Names that other packages provide: debhelper, dh-python. Debian's Python comes with theirs.
    provided = {"debhelper-compat", "dh-sequence-installsysusers", "dh-sequence-python3", "python3"}
    assert needed - provided == needed & set(" ".join(lists).split())


def test_scripts_of_the_debian_package_have_no_finding_of_shellcheck() -> None:
    scripts = [_DEBIAN / "build-deb", _DEBIAN / "generate", *_DEBIAN.glob("ocsf-nft.p*")]
    subprocess.run(["shellcheck", *scripts], check=True)


@pytest.mark.parametrize(
    ("clang", "sentence"),
    [
        (None, "clang is missing, which compiles the BPF programs"),
        ("echo 'bpf_helpers.h: not found' >&2; exit 1", "(is libbpf-dev there?): bpf_helpers.h"),
    ],
)
def test_failed_compilation_is_reported_with_its_cause(
    tree: Path, clang: str | None, sentence: str
) -> None:
    folder = tree.parent / "bin"
    folder.mkdir()
    if clang is not None:
        (folder / "clang").write_text(f"#!/bin/sh\n{clang}\n")
        (folder / "clang").chmod(0o755)
    done = _wheel(tree, PATH=str(folder))
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr
    assert not list(tree.parent.glob("*.whl"))


def test_objects_of_clang_are_not_in_git() -> None:
    ignored = (_ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"*.bpf.o", "*.so.1"} <= set(ignored)
    if shutil.which("git") is None or not (_ROOT / ".git").exists():
        return
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={_ROOT}", "ls-files", "*.o", "*.so.1"],
        cwd=_ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert listed.stdout == ""


def test_help_imports_no_slow_library_and_no_module_of_a_command() -> None:
    program = (
        "import sys; from ocsf_nft.cli import main; sys.argv[1:] = ['--help']\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    imported = set(done.stderr.split())
    assert "click" in imported
    assert imported & {"asyncio", "orjson", "pydantic", "rich", "structlog"} == set()
    ours = {name.partition(".cli.")[2] for name in imported if name.startswith("ocsf_nft.cli.")}
    assert ours == {"lazy_command", "output", "program", "without_plugins"}


def test_help_shows_an_example_for_each_command() -> None:
    overview = subprocess.run(
        [sys.executable, "-m", "ocsf_nft", "--help"], capture_output=True, text=True, check=True
    ).stdout
    commands = [line.split()[0] for line in overview.partition("Commands:")[2].splitlines()[1:] if (
        line.startswith("  ") and line.strip() and not line.startswith("  Try"))]  # fmt: skip
    assert len(commands) == 21
    assert "..." not in overview.partition("Commands:")[2], "a summary does not fit 80 columns"
    helped = {each: forked.run(each, "--help", check=True).stdout for each in commands}
    examples = "Example: ocsf-nft ", "Example: dmesg | ocsf-nft"
    assert [each for each, text in helped.items() if not any(map(text.count, examples))] == []


def test_version_is_the_package_s_and_h_is_short_for_help() -> None:
    assert (
        forked.run("--version", check=True).stdout == f"ocsf-nft {metadata.version('ocsf-nft')}\n"
    )
    for command in ((), ("events",), ("run",)):
        helped = forked.run(*command, "--help", check=True).stdout
        assert forked.run(*command, "-h", check=True).stdout == helped


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_completes_commands_and_options(shell: str) -> None:
    sourced = os.environ | {"_OCSF_NFT_COMPLETE": f"{shell}_source"}
    script = forked.run(env=sourced, check=True).stdout
    assert "_OCSF_NFT_COMPLETE" in script
    for typed, completed in (("ocsf-nft eve", "events"), ("ocsf-nft events --foll", "--follow")):
        asked = {
            "_OCSF_NFT_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": typed,
            # fish gives the word, the others its number.
            "COMP_CWORD": typed.split()[-1] if shell == "fish" else str(typed.count(" ")),
        }
        done = forked.run(env=os.environ | asked, check=False)
        assert completed in done.stdout, done.stderr


@pytest.mark.kernel  # for the packets, which Linux's sockets send
def test_readme_has_the_number_of_escape_attempts() -> None:
    from tests.kernel.escapes import ESCAPES  # noqa: PLC0415 - imports on Linux alone

    readme = (_ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"(\d+) ways past the usual ruleset", readme) == [str(len(ESCAPES))]
