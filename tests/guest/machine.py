"""A machine under QEMU with software emulation: its boot and requests to it, with timeouts."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.netns import Namespace
    from tests.guest.kernel import Kernel

#: A step that takes longer than this hangs, even on a busy machine.
TIMEOUT_SECONDS: Final = 900
_LINES_OF_CONSOLE: Final = 60
#: Its tests are the longest chain, and it needs only one core.
_ARGUMENTS: Final = (
    *("nice", "--adjustment=-10", "qemu-system-x86_64"),
    *("-accel", "tcg", "-cpu", "qemu64,+rdrand", "-display", "none", "-nodefaults", "-no-reboot"),
)
#: Without mitigations and the zeroing of memory, the emulation takes a sixth less of the CPU.
_COMMAND_LINE: Final = "console=ttyS0 panic=-1 quiet net.ifnames=0 mitigations=off init_on_alloc=0"


class HungError(AssertionError):
    """Timeout of the machine, with the last lines of its console."""


@dataclass
class Machine:
    """A running machine. ``first_result`` is the result that its agent sent first."""

    process: subprocess.Popen[bytes]
    console: Path
    port: socket.socket
    first_result: str = ""
    _unread: bytes = b""
    _last_id: int = 0

    def ask(self, call: str, *arguments: Any, seconds: float = 930, **options: Any) -> Any:
        """Call the agent's function and return its result; raise AssertionError with its error."""
        self._last_id += 1
        request = {"id": self._last_id, "call": call, "with": arguments, "options": options}
        self.port.sendall(json.dumps(request).encode() + b"\n")
        answer = self._answer(f"{call}{arguments}", seconds)
        assert answer["id"] == self._last_id, answer
        assert "error" not in answer, f"{call}{arguments} in the guest: {answer['error']}"
        return answer["result"]

    def console_text(self) -> str:
        """Return the text of its console."""
        return self.console.read_text("utf-8", "replace")

    def wait_for_agent(self, seconds: float) -> None:
        """Wait until the agent has started."""
        answer = self._answer("the boot", seconds)
        assert answer["id"] == 0, answer
        self.first_result = answer["result"]

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the machine has powered itself off."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self._hung("turning itself off", seconds) from None

    def _answer(self, what: str, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            self.port.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                received = self.port.recv(1 << 16)
            except TimeoutError:
                raise self._hung(what, seconds) from None
            if not received:
                raise self._hung(what, seconds)
            self._unread += received
        line, self._unread = self._unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _hung(self, what: str, seconds: float) -> HungError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.5)  # it may be ending
        lines = self.console_text().splitlines()[-_LINES_OF_CONSOLE:]
        state = "runs" if self.process.poll() is None else f"ended ({self.process.returncode})"
        return HungError(
            f"{what} took the guest more than {seconds} s, or it ended; it {state}. Console:\n"
            + "\n".join(lines)
        )


@contextlib.contextmanager
def running(
    of: Kernel,
    initramfs: Path,
    namespace: Namespace,
    *,
    tap: str,
    command_line: str = "",
    mac: str = "02:00:00:00:00:02",
    megabytes: int = 640,
) -> Iterator[Machine]:
    """Boot a machine whose network card is a TAP device of a namespace; kill it at the end.

    Its console is a file, and its agent's port a socket.
    """
    # The path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="guest."))
    console, port = folder / "console", folder / "port"
    command = [
        *_ARGUMENTS,
        *("-m", str(megabytes), "-kernel", str(of.image), "-initrd", str(initramfs)),
        *("-append", f"{_COMMAND_LINE} {command_line}", "-serial", f"file:{console}"),
        *("-netdev", f"tap,id=net,ifname={tap},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=net,mac={mac},romfile="),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=port,path={port},server=on,wait=off"),
        *("-device", "virtserialport,chardev=port,nr=1"),
    ]
    process = namespace.call(
        lambda: subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    )
    try:
        with _connected(port, process) as sock:
            yield Machine(process, console, sock)
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder)


@contextlib.contextmanager
def _connected(path: Path, process: subprocess.Popen[bytes]) -> Iterator[socket.socket]:
    deadline = time.monotonic() + 120
    with socket.socket(socket.AF_UNIX) as sock:
        while True:
            try:
                sock.connect(str(path))
            except OSError:
                if process.poll() is not None:
                    errors = process.communicate()[1].decode(errors="replace")
                    raise AssertionError(f"QEMU did not start: {errors}") from None
                assert time.monotonic() < deadline, "QEMU did not open the guest's port"
                time.sleep(0.02)
            else:
                break
        yield sock
