"""The image's recipe, step by step: to build it whole takes a registry."""

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
#: Where the image has its environment.
_ENVIRONMENT = "/opt/ocsf-nft"
_LINE = (
    "[1.5] ocsf-nft:sb:egress:IN= OUT=e0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 TOS=0x00 "
    "PREC=0x00 TTL=64 ID=1 DF PROTO=UDP SPT=4000 DPT=53 LEN=28 UID=0 GID=0 \n"
)


def _instructions() -> list[tuple[str, str]]:
    """The instructions and what they say, with continued lines joined."""
    text = _DOCKERFILE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined)]


def _copied() -> list[str]:
    """What is copied from the tree."""
    found = [shlex.split(rest)[:-1] for word, rest in _instructions() if word == "COPY"]
    return [source for sources in found if "--from=build" not in sources for source in sources]


def _making() -> str:
    """The command that makes the environment."""
    commands = [rest for word, rest in _instructions() if word == "RUN"]
    return next(each for each in commands if "venv --without-pip" in each)


def _installing(stage: int) -> str:
    """The packages of Debian's that a stage installs."""
    commands = [rest for word, rest in _instructions() if word == "RUN" and "apt-get" in rest]
    return commands[stage].partition("--no-install-recommends")[2].partition("&&")[0]


def _default_extras() -> str:
    (found,) = (rest for word, rest in _instructions() if word == "ARG" and "EXTRAS" in rest)
    return found.partition("=")[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's environment: its command, given what is copied for it and nothing else."""
    folder = tmp_path_factory.mktemp("image")
    tree, environment = folder / "src", folder / "environment"
    tree.mkdir()
    for source in _copied():
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.bpf.o")
            shutil.copytree(ROOT / source, tree / source, ignore=ignored)
        else:
            shutil.copy(ROOT / source, tree / source)
    command = _making().replace(_ENVIRONMENT, str(environment))
    # Of the interpreter that runs this, which need not be called so.
    command = command.replace("python3 -m", f"{sys.executable} -m")
    command = command.replace("pip --python", f"{sys.executable} -m pip --quiet --python")
    with_extras = os.environ | {"EXTRAS": _default_extras()}
    subprocess.run(["sh", "-ec", command], cwd=tree, check=True, env=with_extras)
    return environment


@pytest.mark.parametrize(
    ("extras", "requirement"), [("", "."), ("http", ".[http]"), ("nats,kafka", ".[nats,kafka]")]
)
def test_extras_are_chosen_by_an_argument(extras: str, requirement: str) -> None:
    word = _making().split()[-1]
    told = subprocess.run(
        ["sh", "-c", f"printf %s {word}"],
        env={"EXTRAS": extras}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout == requirement


def test_the_guides_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"`EXTRAS=([a-z,]*)`(, the default)?", _GUIDE)
    assert [extras for extras, default in named if default] == [_default_extras()]
    for extras, _ in named:
        assert {*extras.split(",")} - {""} <= project["optional-dependencies"].keys()


def test_what_is_copied_is_there_and_is_all_that_the_build_is_given() -> None:
    copied = _copied()
    assert "ocsf_nft" in copied
    for source in copied:
        assert (ROOT / source).exists()
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    # Made by the build from what it is given.
    assert "**/*.bpf.o" in lines
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied)


def test_the_installed_program_runs_without_the_tree(installed: Path, tmp_path: Path) -> None:
    program = installed / "bin/ocsf-nft"
    helped = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    assert "Commands:" in helped.stdout
    converted = subprocess.run(
        [program, "convert"], input=_LINE, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(converted.stdout)["class_uid"] == 4001


def test_every_ruleset_is_installed_and_nothing_that_only_tests_need(installed: Path) -> None:
    (packages,) = installed.glob("lib/python3*/site-packages")
    rulesets = {path.name for path in (ROOT / "rules").glob("*.nft")}
    assert {path.name for path in packages.glob("ocsf_nft/rules/*.nft")} == rulesets
    absent = ("pip", "setuptools", "pytest", "tests", "systemd", "yaml", "nats", "pyarrow")
    assert not [name for name in absent if (packages / name).exists()]


def test_the_programs_that_name_processes_are_compiled_for_it(installed: Path) -> None:
    assert "clang libbpf-dev " in _installing(0)
    (packages,) = installed.glob("lib/python3*/site-packages")
    found = (packages / "ocsf_nft/attribution/bpf").glob("*.bpf.o")
    assert {path.name for path in found} == {"plain.bpf.o", "types.bpf.o"}


def test_sinks_that_speak_http_are_in_it(installed: Path, tmp_path: Path) -> None:
    path = tmp_path / "ocsf-nft.toml"
    path.write_text(
        'host_log = "kmsg"\nlisten = "127.0.0.1:9469"\n'
        '[[sink]]\ntype = "http"\nurl = "https://siem.example/"\n'
    )
    program = installed / "bin/ocsf-nft"
    told = subprocess.run(
        [program, "config", path], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert told.returncode == 0, told.stderr


def test_what_is_installed_is_pinned(installed: Path) -> None:
    (packages,) = installed.glob("lib/python3*/site-packages")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("-", "_")
    for found in packages.glob("*.dist-info"):
        name, version = found.name.removesuffix(".dist-info").rsplit("-", 1)
        if name != "ocsf_nft":
            assert f"{name}=={version}".lower().replace("-", "_") in pinned.splitlines()


def test_the_program_that_starts_and_the_one_that_is_probed_are_the_installed_one(
    installed: Path,
) -> None:
    said = dict(_instructions())
    assert json.loads(said["ENTRYPOINT"]) == ["ocsf-nft"]
    first = said["ENV"].removeprefix("PATH=").split(":")[0]
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


def test_the_final_stage_gets_no_tools_to_build_with() -> None:
    installed = _installing(-1).split()
    assert installed == ["ca-certificates", "libbpf1", "nftables", "python3"]


def test_it_is_nobody_unless_somebody_says_otherwise() -> None:
    user, group = dict(_instructions())["USER"].split(":")
    # Numbers: runtimes that are to keep root out don't look a name up.
    assert int(user) == int(group) > 0
    assert f"As user {user}" in _GUIDE
    # Who loads rules in a pod says that he is root himself, whatever the image has.
    for name in ("fence-install", "fence"):
        security = example_pod()[name].security
        assert (security["runAsUser"], security["runAsNonRoot"]) == (0, False)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_guides_health_command_fails_when_the_run_is_stuck(
    installed: Path, status: int, code: int
) -> None:
    asked: list[str] = []

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Nothing: a test's output is for failures."""

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            assert _health(installed, server.server_port) == code
        finally:
            server.shutdown()
    assert asked == ["/healthz"]


def test_the_guides_health_command_fails_when_nobody_answers(installed: Path) -> None:
    with socket.socket() as sock:  # that nobody listens on
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
