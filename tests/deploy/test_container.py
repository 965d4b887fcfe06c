"""The image's recipe, step by step: to build it whole takes a registry."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.deploy.manifests import EXAMPLE, ROOT, example_pod

if TYPE_CHECKING:
    from pathlib import Path

_DOCKERFILE = ROOT / "deploy/container/Dockerfile"
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


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment made as the image's is, from what is copied into it and nothing else."""
    folder = tmp_path_factory.mktemp("image")
    tree, environment = folder / "src", folder / "environment"
    tree.mkdir()
    for source in _copied():
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, tree / source, ignore=ignored)
        else:
            shutil.copy(ROOT / source, tree / source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python")]
    subprocess.run(
        [*pip, "install", "--quiet", "--constraint", "constraints.txt", "."], cwd=tree, check=True
    )
    return environment


def test_the_environment_is_made_by_the_commands_that_are_tested_here() -> None:
    commands = [rest for word, rest in _instructions() if word == "RUN"]
    making = next(each for each in commands if "venv --without-pip" in each)
    venv, pip = (" ".join(part.split()) for part in making.split("&&"))
    assert venv == "python3 -m venv --without-pip /opt/ocsf-nft"
    assert pip.startswith("pip --python /opt/ocsf-nft/bin/python install ")
    assert pip.endswith(" --constraint constraints.txt .")


def test_what_is_copied_is_there_and_is_all_that_the_build_is_given() -> None:
    copied = _copied()
    assert "ocsf_nft" in copied
    for source in copied:
        assert (ROOT / source).exists()
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
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
    for absent in ("pip", "setuptools", "pytest", "tests", "systemd", "yaml"):
        assert not (packages / absent).exists()


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
    assert ("COPY", f"--from=build {first.removesuffix('/bin')} /opt/ocsf-nft") in _instructions()
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
    instructions = _instructions()
    last = max(place for place, (word, _) in enumerate(instructions) if word == "FROM")
    final = " ".join(rest for word, rest in instructions[last:] if word == "RUN")
    installed = final.partition("--no-install-recommends")[2].partition("&&")[0].split()
    assert installed == ["nftables", "python3"]
