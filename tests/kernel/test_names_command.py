"""Host names in the options of commands."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft.fence import verification
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.lab import INTERNET4
from ocsf_nft.netns import named
from tests.kernel import accounts, command, conftest, namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kernel


@pytest.fixture
def made() -> Iterator[str]:
    """Yield the name of a namespace that exists."""
    with namespaces.names(1) as (name,):
        namespaces.make(name)
        yield name


def _with_files(folder: Path, hosts: str) -> tuple[str, ...]:
    """Return a command that runs others with another hosts file, and without name servers."""
    (folder / "hosts").write_text(hosts, "ascii")
    (folder / "resolv.conf").write_text("", "ascii")
    script = (
        f"mount --bind {folder}/hosts /etc/hosts; mount --bind {folder}/resolv.conf "
        '/etc/resolv.conf; exec "$@"'
    )
    return ("unshare", "-m", "sh", "-c", script, "sh")


def test_run_with_options_takes_names_from_the_hosts_file(made: str, tmp_path: Path) -> None:
    name = made
    under = _with_files(tmp_path, f"10.250.0.1 proxy.test\n{INTERNET4} api.test\n")
    state = tmp_path / "state"
    options = ("--sandbox", name, "--netns", name, "--state-dir", str(state))
    policy = ("--proxy", "proxy.test:3128", "--allow", "tcp:api.test:443", "--install")
    output = tmp_path / "events"
    with command.running(*options, *policy, "--output", str(output), under=under) as running:
        # The addresses may be in the fence before the run is ready.
        accounts.until(lambda: b"added 10.250.0.1" in output.read_bytes())
        found = verification.verify(name, StateDirectory(state), named(name))
        assert found.installed is not None
        assert list(map(str, found.installed.spec.allowed)) == [
            "10.250.0.1:3128", f"{INTERNET4}:443"
        ]  # fmt: skip
        assert command.run("status", "--state-dir", str(state)).code == 0
        code, messages = running.stop(signal.SIGTERM)
        assert code == 0, messages
    events = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    assert any("proxy.test: added 10.250.0.1" in event["message"] for event in events)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_install_refuses_names(made: str, tmp_path: Path, more: tuple[str, ...]) -> None:
    outcome = command.run(
        "install", "--sandbox", made, "--netns", made, "--proxy", "proxy.test:3128",
        "--state-dir", str(tmp_path), *more,
    )  # fmt: skip
    assert outcome.code == 2
    assert outcome.sentence == (
        "ocsf-nft: proxy.test is a host name, which only a running service resolves: give an "
        "address, or use `ocsf-nft run --install` or `ocsf-nft add`"
    )
    assert conftest.nft(named(made), "list", "ruleset") == ""
