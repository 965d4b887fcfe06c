"""The steps of the image's Dockerfile; a build of the whole image needs a registry."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.deploy.manifests import EXAMPLE, ROOT, example_pod

if TYPE_CHECKING:
    from pathlib import Path

_DOCKERFILE = ROOT / "deploy/container/Dockerfile"
_GUIDE = (ROOT / "deploy/container/README.md").read_text(encoding="utf-8")
#: The path of the image's Python environment.
_ENVIRONMENT = "/opt/ocsf-nft"
_LINE = (
    "[1.5] ocsf-nft:sb:egress:IN= OUT=e0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 TOS=0x00 "
    "PREC=0x00 TTL=64 ID=1 DF PROTO=UDP SPT=4000 DPT=53 LEN=28 UID=0 GID=0 \n"
)


def _instructions() -> list[tuple[str, str]]:
    """Return the instructions and their arguments, with continued lines joined."""
    text = _DOCKERFILE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined)]


def _copied_sources() -> list[str]:
    """Return the paths that are copied from the tree."""
    found = [shlex.split(rest)[:-1] for word, rest in _instructions() if word == "COPY"]
    return [source for sources in found if "--from=build" not in sources for source in sources]


def _environment_command() -> str:
    """Return the command that creates the environment."""
    commands = [rest for word, rest in _instructions() if word == "RUN"]
    return next(each for each in commands if "venv --without-pip" in each)


def _debian_packages(stage: int) -> str:
    """Return the Debian packages that a stage installs."""
    commands = [rest for word, rest in _instructions() if word == "RUN" and "apt-get" in rest]
    return commands[stage].partition("--no-install-recommends")[2].partition("&&")[0]


def _default_extras() -> str:
    (found,) = (rest for word, rest in _instructions() if word == "ARG" and "EXTRAS" in rest)
    return found.partition("=")[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the image's environment by its command, from the copied files only."""
    folder = tmp_path_factory.mktemp("image")
    tree, environment = folder / "src", folder / "environment"
    tree.mkdir()
    for source in _copied_sources():
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.bpf.o")
            shutil.copytree(ROOT / source, tree / source, ignore=ignored)
        else:
            shutil.copy(ROOT / source, tree / source)
    command = _environment_command().replace(_ENVIRONMENT, str(environment))
    # With the interpreter that runs this test, which may have another name.
    command = command.replace("python3 -m", f"{sys.executable} -m")
    command = command.replace("pip --python", f"{sys.executable} -m pip --quiet --python")
    with_extras = os.environ | {"EXTRAS": _default_extras()}
    subprocess.run(["sh", "-ec", command], cwd=tree, check=True, env=with_extras)
    return environment


@pytest.mark.parametrize(
    ("extras", "requirement"), [("", "."), ("http", ".[http]"), ("nats,kafka", ".[nats,kafka]")]
)
def test_build_argument_selects_the_extras(extras: str, requirement: str) -> None:
    word = _environment_command().split()[-1]
    done = subprocess.run(
        ["sh", "-c", f"printf %s {word}"],
        env={"EXTRAS": extras}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == requirement


def test_extras_of_the_guide_exist_in_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"`EXTRAS=([a-z,]*)`(, the default)?", _GUIDE)
    assert [extras for extras, default in named if default] == [_default_extras()]
    for extras, _ in named:
        assert {*extras.split(",")} - {""} <= project["optional-dependencies"].keys()


def test_copied_files_exist_and_are_the_whole_build_context() -> None:
    copied = _copied_sources()
    assert "ocsf_nft" in copied
    for source in copied:
        assert (ROOT / source).exists()
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    # The build creates these files itself.
    assert "**/*.bpf.o" in lines
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied)


def test_installed_program_runs_without_the_tree(installed: Path, tmp_path: Path) -> None:
    program = installed / "bin/ocsf-nft"
    helped = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    assert "Commands:" in helped.stdout
    converted = subprocess.run(
        [program, "convert"], input=_LINE, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(converted.stdout)["class_uid"] == 4001


def test_installation_has_each_ruleset_and_no_test_dependencies(installed: Path) -> None:
    (packages,) = installed.glob("lib/python3*/site-packages")
    rulesets = {path.name for path in (ROOT / "rules").glob("*.nft")}
    assert {path.name for path in packages.glob("ocsf_nft/rules/*.nft")} == rulesets
    absent = ("pip", "setuptools", "pytest", "tests", "systemd", "yaml", "nats", "pyarrow")
    assert not [name for name in absent if (packages / name).exists()]


def test_bpf_programs_that_name_processes_are_compiled(installed: Path) -> None:
    assert "clang libbpf-dev " in _debian_packages(0)
    (packages,) = installed.glob("lib/python3*/site-packages")
    found = (packages / "ocsf_nft").rglob("*.bpf.o")
    assert {path.name for path in found} == {"plain.bpf.o", "types.bpf.o", "gate.bpf.o"}


def test_image_has_http_sinks(installed: Path, tmp_path: Path) -> None:
    path = tmp_path / "ocsf-nft.toml"
    path.write_text(
        'host_log = "kmsg"\nlisten = "127.0.0.1:9469"\n'
        '[[sink]]\ntype = "http"\nurl = "https://siem.example/"\n'
    )
    program = installed / "bin/ocsf-nft"
    done = subprocess.run(
        [program, "config", path], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_installed_distributions_are_pinned(installed: Path) -> None:
    (packages,) = installed.glob("lib/python3*/site-packages")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("-", "_")
    for found in packages.glob("*.dist-info"):
        name, version = found.name.removesuffix(".dist-info").rsplit("-", 1)
        if name != "ocsf_nft":
            assert f"{name}=={version}".lower().replace("-", "_") in pinned.splitlines()


def test_entry_point_and_health_probe_use_the_installed_program(
    installed: Path,
) -> None:
    instructions = dict(_instructions())
    assert json.loads(instructions["ENTRYPOINT"]) == ["ocsf-nft"]
    first = instructions["ENV"].removeprefix("PATH=").split(":")[0]
    assert first == f"{_ENVIRONMENT}/bin"
    assert ("COPY", f"--from=build {_ENVIRONMENT} {_ENVIRONMENT}") in _instructions()
    assert (installed / "bin/ocsf-nft").exists()
    assert example_pod()["fence"].probe("startupProbe")[0] == "ocsf-nft"


def test_versions_are_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = next(rest for word, rest in _instructions() if word == "LABEL")
    assert f'org.opencontainers.image.version="{project["version"]}"' in labels
    assert f'org.opencontainers.image.description="{project["description"]}"' in labels
    example = yaml.safe_load((EXAMPLE / "kustomization.yaml").read_text(encoding="utf-8"))
    assert {"name": "ocsf-nft", "newTag": project["version"]} in example["images"]


def test_final_stage_has_no_build_tools() -> None:
    installed = _debian_packages(-1).split()
    assert installed == ["ca-certificates", "libbpf1", "nftables", "python3"]


def test_image_runs_as_an_unprivileged_user_by_default() -> None:
    user, group = dict(_instructions())["USER"].split(":")
    # Numbers, because runtimes that refuse root do not look up names.
    assert int(user) == int(group) > 0
    assert f"as user {user}" in _GUIDE.lower()
    # Containers of a pod that load rules set root themselves, in place of the image's user.
    for name in ("fence-install", "fence"):
        security = example_pod()[name].security
        assert (security["runAsUser"], security["runAsNonRoot"]) == (0, False)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_guides_health_command_fails_when_the_run_is_stuck(
    installed: Path, status: int, code: int
) -> None:
    requested: list[str] = []

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
            """Log nothing, because a test's output is for failures."""

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            assert _health(installed, server.server_port) == code
        finally:
            server.shutdown()
    assert requested == ["/healthz"]


def test_guides_health_command_fails_without_a_server(installed: Path) -> None:
    with socket.socket() as sock:  # without a listener
        sock.bind(("127.0.0.1", 0))
        assert _health(installed, sock.getsockname()[1]) == 1


def _health(installed: Path, port: int) -> int:
    (command,) = re.findall(r"--health-cmd '(.*?)' ", _GUIDE)
    assert ":9469/" in command
    done = subprocess.run(
        ["sh", "-c", command.replace(":9469/", f":{port}/")],
        env={"PATH": f"{installed}/bin:/usr/bin:/bin"}, stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return done.returncode
