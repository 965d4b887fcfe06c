"""A guest without some requirements of a fence: modules, programs, settings."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.guest import image, kernel
from tests.guest.machine import TIMEOUT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guest.machine import Machine

GUEST_INIT: Final = f"/{image.GUEST_INIT}"
NO_FENCE: Final = "guest-init: there is no fence: the workload must not start"
_EVENTS: Final = "/var/log/ocsf-nft/events.jsonl"
_STATE: Final = "/run/state"
_REMOVED: Final = ("nf_tables", "nft_reject_inet", "nft_fib_inet", "nft_limit", "nft_log")


class Outcome(NamedTuple):
    """The exit code of guest-init and the lines that it printed."""

    code: int
    lines: list[str]


class Stripped:
    """A machine without a fence, state or events. Its kernel lacks all modules of a fence."""

    def __init__(self, running: Machine, modules: str) -> None:
        self.machine = running
        self._modules = modules
        self.missing = set(_REMOVED)
        self._remove_fence()
        for name in _REMOVED:
            self.machine.ask("move", self._path(name), f"/tmp/{name}.ko")  # noqa: S108 - the guest's

    def give(self, *names: str) -> None:
        """Put missing modules into the folder that modprobe reads."""
        for name in names:
            self.missing.remove(name)
            self.machine.ask("move", f"/tmp/{name}.ko", self._path(name))  # noqa: S108 - the guest's

    def guest_init(self, *arguments: str) -> Outcome:
        done = self.machine.ask("shell", GUEST_INIT, *arguments)
        return Outcome(done["code"], done["stderr"].splitlines())

    @contextlib.contextmanager
    def without(self, path: str) -> Iterator[None]:
        """Move a file away until the context ends."""
        self.machine.ask("move", path, f"{path}.aside")
        try:
            yield
        finally:
            self.machine.ask("move", f"{path}.aside", path)

    @contextlib.contextmanager
    def written(self, path: str, text: str) -> Iterator[None]:
        """Replace a file until the context ends."""
        with self.without(path):
            self.machine.ask("write", path, text)
            yield

    def _remove_fence(self) -> None:
        """End the processes that guest-init started, and unload the modules that it loaded."""
        for words in (GUEST_INIT, "ocsf-nft run"):
            self._repeat("terminate", words, until=lambda ended: ended == 0)
        for path in (_EVENTS, _STATE):
            self.machine.ask("move", path, f"{path}.of-the-first-fence")
        self.machine.ask("shell", "nft", "flush", "ruleset")
        # Another module may still use one of them, and the kernel removes rules with a delay.
        unload = f"modprobe -r {' '.join(reversed(kernel.FENCE))}; lsmod"
        self._repeat(
            "shell", "sh", "-c", unload, until=lambda answer: "nf_" not in answer["stdout"]
        )

    def _repeat(self, *call: str, until: Callable[[Any], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not until(answer := self.machine.ask(*call)):
            assert time.monotonic() < deadline, (call, answer)
            time.sleep(0.2)

    def _path(self, name: str) -> str:
        return f"{self._modules}/kernel/net/netfilter/{name}.ko"
