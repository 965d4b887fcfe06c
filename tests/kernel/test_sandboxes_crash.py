"""Kills and stops of a service in the middle of calls: the last answered call counts."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import orjson
import pytest

from ocsf_nft.control.http_call import call, sandbox_target
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import verification
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import named
from tests.kernel import command, namespaces, written
from tests.kernel.conftest import nft
from tests.kernel.test_crash import stored

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.kernel

#: Exceptions that a call may ask for; None is a release.
_Policy: TypeAlias = tuple[str, ...] | None
_POLICIES: Final[tuple[_Policy, ...]] = (
    (), ("tcp:203.0.113.7:1",), ("tcp:203.0.113.7:2", "udp:203.0.113.7:2"), None,
)  # fmt: skip
_MAX_SECONDS: Final = 0.25


@dataclass
class _Caller:
    """Thread that makes one call after another for a sandbox, until the service is killed."""

    control: Path
    name: str
    seed: int
    #: Policy by the last answered call, and by the call without an answer, if any.
    answered: _Policy = None
    pending: list[_Policy] = field(default_factory=list)

    def run(self, killed: threading.Event) -> None:
        choose = random.Random(self.seed)
        while not killed.is_set():
            policy = choose.choice(_POLICIES)
            if policy is None and self.answered is None:
                continue
            self.pending = [policy]
            try:
                self._call(policy)
            except OcsfNftError:
                assert killed.wait(10)
                return
            self.answered, self.pending = policy, []

    def _call(self, policy: _Policy) -> None:
        target = sandbox_target(self.name)
        if policy is None:
            call(self.control, "DELETE", target)
        else:
            body = {"netns": self.name, "proxy": [namespaces.PROXY], "allow": list(policy)}
            call(self.control, "PUT", target, body)

    def note_result(self, found: _Policy) -> None:
        assert found in {self.answered, *self.pending}
        self.answered, self.pending = found, []


def _policies(control: Path) -> dict[str, tuple[str, ...]]:
    found = call(control, "GET", "/v1/sandboxes")["sandboxes"]
    assert {each["state"] for each in found} <= {"active"}, found
    return {each["name"]: tuple(each["policy"].get("allow", ())) for each in found}


def _check(name: str, policy: _Policy, state: StateDirectory) -> None:
    """Check that the fence in the kernel, its record and its folder are what the policy says."""
    if policy is None:
        assert nft(named(name), "list", "ruleset") == ""
        assert not state.directory(name).exists()
        return
    found = verification.verify(name, state)
    assert (found.verdict, found.difference) == ("as installed", "")
    assert found.installed is not None
    allowed = map(str, found.installed.spec.exceptions)
    assert tuple(allowed) == policy


def _kill(running: command.Running) -> None:
    running.process.kill()
    running.process.wait()


def _stop(running: command.Running) -> None:
    code, messages = running.stop(15)
    assert code == 0, messages


def _crash(folder: Path, kills: int, end: Callable[[command.Running], None]) -> None:
    control, state = folder / "control.sock", StateDirectory(folder / "state")
    config = folder / "config.toml"
    config.write_text(
        f'control = "{control}"\nstate_dir = "{state.path}"\noutput = "{folder / "events"}"\n'
    )
    choose = random.Random(kills)
    with namespaces.names(3) as names:
        for name in names:
            namespaces.make(name)
        callers = [_Caller(control, name, 0) for name in names]
        for number in range(kills + 1):
            with command.running("--config", str(config)) as running:
                found = _policies(control)
                for each in callers:
                    each.note_result(found.get(each.name))
                    _check(each.name, each.answered, state)
                if number == kills:
                    for each in callers:
                        each._call(())
                        each._call(None)
                    code, messages = running.stop(15)
                    assert code == 0, messages
                    break
                killed = threading.Event()
                threads = []
                for each in callers:
                    each.seed = choose.getrandbits(32)
                    threads.append(threading.Thread(target=each.run, args=(killed,)))
                    threads[-1].start()
                time.sleep(choose.uniform(0.0, _MAX_SECONDS))
                end(running)
                killed.set()
                for thread in threads:
                    thread.join()
        # The database of the sinks has a directory of its own.
        left = [each.name for each in state.path.iterdir() if each.is_dir()]
        assert not [each for each in left if not each.endswith(".delivery")]
    # A sink may get an event again after a kill, but with the same content. The store has it once.
    events = written.events(folder / "events")
    contents = {orjson.dumps(event) for event in events}
    uids = [event["metadata"]["uid"] for event in stored(state)]
    assert len(set(uids)) == len(uids)
    assert len(contents) == len({event["metadata"]["uid"] for event in events})
    assert {event["metadata"]["uid"] for event in events} <= set(uids)
    assert end is _kill or len(events) == len(contents)


def test_service_is_killed_in_the_middle_of_calls(tmp_path: Path) -> None:
    _crash(tmp_path, 5, _kill)


def test_service_is_stopped_in_the_middle_of_calls(tmp_path: Path) -> None:
    _crash(tmp_path, 5, _stop)


@pytest.mark.slow
@pytest.mark.long
def test_service_is_killed_a_hundred_times_in_the_middle_of_calls(tmp_path: Path) -> None:
    _crash(tmp_path, 100, _kill)
