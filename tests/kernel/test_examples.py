"""The examples of supervisors, each with a service, in namespaces of the test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.netns import named
from tests.docs.commands import ROOT
from tests.kernel import namespaces
from tests.kernel.command import run, running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

_EXAMPLES: Final = ROOT / "examples"
_COMMANDS: Final = {"supervisor.py": (sys.executable,), "supervisor.sh": ("sh",)}
#: A program that is refused until its supervisor has allowed the destination, and then ends with 7.
_PROGRAM: Final = """
import socket, sys, time
for attempt in range(200):
    with socket.socket() as sock:
        sock.settimeout(0.3)
        try:
            sock.connect(("203.0.113.7", int(sys.argv[1])))
        except ConnectionRefusedError:
            if len(sys.argv) > 2:
                break
            time.sleep(0.1)
        except TimeoutError:
            sys.exit(7)
sys.exit(3)
"""


class Host:
    """A throw-away namespace as the host's, with a service in it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.namespace = named(name)
        self.control = folder / "control.sock"
        self.config = folder / "ocsf-nft.toml"
        self.config.write_text(
            f'control = "{self.control}"\nstate_dir = "{folder}/state"\n'
            f'output = "{folder}/events.jsonl"\n'
        )

    def supervise(self, example: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an example with a program inside the namespace."""
        command = [
            *_COMMANDS[example], str(_EXAMPLES / example), sys.executable, "-c", _PROGRAM,
            *arguments,
        ]  # fmt: skip
        return self.namespace.call(
            lambda: subprocess.run(
                command, env=os.environ | {"OCSF_NFT_CONTROL": str(self.control)},
                capture_output=True, text=True, check=False, timeout=120,
            )
        )  # fmt: skip


@pytest.fixture
def host() -> Iterator[Host]:
    with namespaces.names(1) as (name,), tempfile.TemporaryDirectory(prefix="s") as folder:
        namespaces.make(name)
        yield Host(name, Path(folder))


@pytest.mark.parametrize("example", _COMMANDS)
def test_example_runs_a_program_shows_its_attempts_and_allows_one(host: Host, example: str) -> None:
    before = _names()
    with running("--config", str(host.config), inside=host.namespace) as service:
        done = host.supervise(example, "443")
        assert (done.returncode, done.stderr) == (7, ""), done.stdout
        # The kernel itself sends packets too.
        shown, last = done.stdout.splitlines()[:-1], done.stdout.splitlines()[-1]
        (first, *_) = (number for number, line in enumerate(shown) if ":443 (https)" in line)
        assert shown[first].startswith("Blocked TCP connection from python3")
        assert shown.index("allow: added tcp:203.0.113.7:443") > first
        assert re.fullmatch(r"job-\d+: \d+ packets refused", last)
        refused = host.supervise(example, "444", "once")
        assert refused.returncode == 3, refused.stderr
        assert "to 203.0.113.7:444" in refused.stdout
        listed = run("list", "--control", str(host.control))
        assert "the service has no sandbox" in listed.stderr
        assert service.process.poll() is None
    assert _names() == before


@pytest.mark.parametrize("example", _COMMANDS)
def test_example_starts_no_program_without_a_service(host: Host, example: str) -> None:
    before = _names()
    done = host.supervise(example, "443")
    assert "Blocked" not in done.stdout
    assert done.returncode == {"supervisor.py": 1, "supervisor.sh": 3}[example]
    assert str(host.control) in done.stderr
    assert _names() == before


def _names() -> set[str]:
    folder = Path("/run/netns")
    return {path.name for path in folder.glob("job-*")}


def test_shell_example_has_no_finding_of_shellcheck() -> None:
    assert shutil.which("shellcheck") is not None
    subprocess.run(["shellcheck", _EXAMPLES / "supervisor.sh"], check=True)
