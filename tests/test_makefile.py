"""Targets of the Makefile: what they install."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def _commands(target: str) -> str:
    """Return what `make` would run for a target on a machine without anything."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=_ROOT,
        # As outside of `make test`, whose environment makes an inner make print more.
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_demo_installs_only_what_it_uses() -> None:
    commands = _commands("demo")
    assert commands.rstrip().endswith("ocsf-nft demo")
    for needed in ("nftables", "clang", "libbpf-dev", "python3-venv", "--editable ."):
        assert needed in commands
    for other in ("qemu", "nats-server", "rsyslog", "librdkafka", "kustomize", "--group", ".["):
        assert other not in commands


def test_tests_install_all_that_they_drive() -> None:
    commands = _commands("test")
    for needed in ("nftables", "qemu-system-x86", "nats-server", "--group test", "nats,kafka"):
        assert needed in commands


def test_slow_tests_install_the_container_engines_and_a_browser() -> None:
    commands = _commands("test-slow")
    for needed in (
        "chromium",
        "docker.io",
        "podman",
        "containerd",
        "containernetworking-plugins",
        "runc",
    ):
        assert needed in commands


def test_each_step_of_an_installation_is_announced_and_shows_progress() -> None:
    commands = _commands("test")
    assert commands.count("minute") == 4  # apt-get and pip, for the demo and for the rest
    for line in commands.replace("\\\n", " ").splitlines():
        if "pip install" in line or "apt-get install" in line:
            assert "quiet" not in line
            assert "| sed -un" in line
