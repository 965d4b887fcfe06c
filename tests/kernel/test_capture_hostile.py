"""Attribution by capture of a process that tries to imitate another one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.attribution import process_details
from tests.kernel import scripted
from tests.kernel.scripted import PYTHON, START
from tests.kernel.watching import fence, watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.process import Attribution, Process

pytestmark = pytest.mark.kernel

_UDP, _TCP, _ICMP, _ICMPV6 = 17, 6, 1, 58


@pytest.fixture
def run(lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a program in the fenced sandbox to its end; return the pid that it prints."""
    fence(lab, state, monkeypatch)

    def run(program: str, *, by: tuple[str, ...] = scripted.BY) -> int:
        (pid,) = scripted.run(lab, program, by)
        return pid

    return run


async def _sender(lab: Lab, run: Callable[[], int], protocol: int | None) -> tuple[Process, int]:
    async with watching(lab) as watched:
        assert watched.chain.method == "capture", watched.chain.reason
        pid = await asyncio.to_thread(run)
        by, *_ = await watched.until(1, protocol=protocol)
    assert (by.method, by.confidence) == ("capture", "high"), by
    assert by.process is not None
    return by.process, pid


@pytest.mark.parametrize(
    ("protocol", "opened", "used"),
    [
        (_UDP, "udp(); s.connect(TO4)", "s.send(b'x')"),
        (_UDP, "udp(socket.AF_INET6); s.connect(TO6)", "s.send(b'x')"),
        (_UDP, "udp()", "s.sendto(b'x', TO4)"),
        (_TCP, "tcp()", "s.connect(TO4)"),
    ],
    ids=["connected UDP", "connected UDP over IPv6", "UDP", "TCP"],
)
async def test_user_of_an_inherited_socket_is_named(
    lab: Lab, run: Callable[..., int], protocol: int, opened: str, used: str
) -> None:
    program = f"""
        s = {opened}
        if not os.fork():
            print_pid()
            with refused:
                {used}
            os._exit(0)
        os.wait()
    """
    process, pid = await _sender(lab, lambda: run(program), protocol)
    assert process.pid == pid
    assert process.path == PYTHON
    assert process.ancestors[0].path == PYTHON


@pytest.mark.parametrize("connects", [True, False], ids=["connected", "not connected"])
async def test_user_of_a_passed_socket_is_named(
    lab: Lab, run: Callable[..., int], *, connects: bool
) -> None:
    program = f"""
        here, there = socket.socketpair()
        if not os.fork():
            _, (fd,), *_ = socket.recv_fds(there, 1, 1)
            print_pid()
            with refused:
                s = socket.socket(fileno=fd)
                s.send(b'x') if {connects} else s.sendto(b'x', TO4)
            os._exit(0)
        s = udp()
        if {connects}:
            s.connect(TO4)
        socket.send_fds(here, [b'x'], [s.fileno()])
        s.close()
        os.wait()
    """
    process, pid = await _sender(lab, lambda: run(program), _UDP)
    assert process.pid == pid


async def test_process_with_a_later_exec_is_named_with_its_program_at_the_attempt(
    lab: Lab, run: Callable[..., int]
) -> None:
    program = """
        s = tcp()
        s.setblocking(False)
        print_pid()
        with refused:
            s.connect(TO4)
        os.execv("/usr/bin/true", ["innocent"])
    """
    process, pid = await _sender(lab, lambda: run(program), _TCP)
    assert (process.pid, process.path) == (pid, PYTHON)
    assert process.cmd_line is not None
    assert process.cmd_line.startswith(f"{PYTHON} -I -c")


async def test_child_of_a_process_with_a_later_exec_has_the_program_before_as_parent(
    lab: Lab, run: Callable[..., int]
) -> None:
    program = """
        if not os.fork():
            time.sleep(0.2)
            print_pid()
            with refused:
                tcp().connect(TO4)
            os._exit(0)
        os.execv("/usr/bin/sleep", ["innocent", "0.4"])
    """
    process, pid = await _sender(lab, lambda: run(program), _TCP)
    assert (process.pid, process.path) == (pid, PYTHON)
    assert process.ancestors[0].path == PYTHON


async def test_process_with_an_exited_parent_keeps_its_ancestors(
    lab: Lab, run: Callable[..., int]
) -> None:
    program = """
        if not os.fork():
            if not os.fork():
                time.sleep(0.2)
                print(os.getpid(), flush=True)
                with refused:
                    tcp().connect(TO4)
            os._exit(0)
        os.wait()
        time.sleep(0.4)
    """
    process, pid = await _sender(lab, lambda: run(program), _TCP)
    assert process.pid == pid
    # Its parent, the program that the test started, and the test.
    paths = [each.path for each in process.ancestors[:2]]
    assert paths == [PYTHON, PYTHON]
    assert os.getpid() in {each.pid for each in process.ancestors}


_RENAMES = {
    "JSON": '","uid":"0"},"x":{"',
    "lines": "a\nb\r\n\x1b[2J\x07",
    "another's": "sshd",
    "no text": "\udcff\udcfe",
}


@pytest.mark.parametrize("name", _RENAMES.values(), ids=_RENAMES)
async def test_renamed_process_keeps_its_program_and_arguments(
    lab: Lab, run: Callable[..., int], name: str
) -> None:
    program = f"""
        libc = ctypes.CDLL(None)
        name = {os.fsencode(name)!r}
        libc.prctl(15, name, 0, 0, 0)
        stat = open("/proc/self/stat", "rb").read().rpartition(b")")[2].split()
        start, end = int(stat[45]), int(stat[46])  # proc(5): arg_start, arg_end
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, name, len(name))
        print_pid()
        with refused:
            tcp().connect(TO4)
    """
    process, pid = await _sender(lab, lambda: run(program), _TCP)
    assert (process.pid, process.path) == (pid, PYTHON)
    assert process.cmd_line is not None
    assert process.cmd_line.startswith(f"{PYTHON} -I -c")
    assert process.name is not None
    assert process.name.encode("utf-8", "surrogateescape")  # it is text


async def test_chosen_first_argument_does_not_change_the_program(
    lab: Lab, run: Callable[..., int]
) -> None:
    process, pid = await _sender(
        lab,
        lambda: run(
            "print_pid()\nwith refused: tcp().connect(TO4)",
            by=("/usr/bin/bash", "-c", f'exec -a "$1" {PYTHON} -I -c "$2"', "sh", '/bin/"ls\n'),
        ),
        _TCP,
    )
    assert (process.pid, process.path) == (pid, PYTHON)
    assert process.cmd_line is not None
    assert process.cmd_line.startswith('/bin/"ls\n ')


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_deleted_program_has_its_former_path(
    lab: Lab, run: Callable[..., int], tmp_path: Path, how: str
) -> None:
    copy = tmp_path / "implant"
    shutil.copy(PYTHON, copy)
    program = f"""
        os.unlink({str(copy)!r})
        if {how == "replaced"}:
            open({str(copy)!r}, "w").close()
        print_pid()
        if not os.fork():  # a process without an earlier event
            with refused:
                tcp().connect(TO4)
            os._exit(0)
        os.wait()
    """
    process, pid = await _sender(lab, lambda: run(program, by=(str(copy), "-I", "-c")), _TCP)
    assert process.ancestors[0].pid == pid
    assert (process.path, process.is_deleted) == (str(copy), True)


async def test_memfd_program_is_reported_as_such(lab: Lab, run: Callable[..., int]) -> None:
    program = f"""
        fd = os.memfd_create("cat /etc/passwd")
        os.write(fd, open("{PYTHON}", "rb").read())
        os.execve(fd, ["ls", "-I", "-c", sys.argv[0] or SOURCE], os.environ)
    """
    inner = f"{START}\nprint_pid()\nwith refused: tcp().connect(TO4)"
    process, pid = await _sender(
        lab, lambda: run(program.replace("sys.argv[0] or SOURCE", repr(inner))), _TCP
    )
    assert process.pid == pid
    assert (process.path, process.is_deleted) == ("memfd:cat /etc/passwd", True)


async def test_process_in_a_pid_namespace_has_both_its_numbers(
    lab: Lab, run: Callable[..., int]
) -> None:
    by = ("/usr/bin/unshare", "--pid", "--fork", "--mount-proc", PYTHON, "-I", "-c")
    program = """
        if not os.fork():
            print_pid()
            with refused:
                tcp().connect(TO4)
            os._exit(0)
        os.wait()
    """
    process, pid = await _sender(lab, lambda: run(program, by=by), _TCP)
    assert (process.namespace_pid, pid) == (pid, 2)
    assert process.pid != pid
    init, above, *_ = process.ancestors
    assert (init.namespace_pid, init.path) == (1, PYTHON)
    assert above.path == by[0]  # its own init hides no ancestor


_ECHO4 = "struct.pack('!BBHHH', 8, 0, 0, 7, 1)"
_ECHO6 = "struct.pack('!BBHHH', 128, 0, 0, 7, 1)"
_FRAME = "bytes.fromhex('020000000001020000000002') + b'\\x88\\xb5' + bytes(50)"
_ACTIONS: dict[str, tuple[int | None, str]] = {
    "mapped TCP": (_TCP, "tcp(socket.AF_INET6).connect(MAPPED)"),
    "mapped UDP": (_UDP, "udp(socket.AF_INET6).sendto(b'x', MAPPED)"),
    "mapped, connected": (_UDP, "s = udp(socket.AF_INET6); s.connect(MAPPED); s.send(b'x')"),
    "connected elsewhere": (_UDP, "s = udp(); s.connect(('8.8.8.8', 53)); s.sendto(b'x', TO4)"),
    "write": (_UDP, "s = udp(); s.connect(TO4); os.write(s.fileno(), b'x')"),
    "ping": (_ICMP, f"socket.socket(2, socket.SOCK_DGRAM, 1).sendto({_ECHO4}, TO4)"),
    "ping, IPv6": (_ICMPV6, f"socket.socket(10, socket.SOCK_DGRAM, 58).sendto({_ECHO6}, TO6)"),
    "raw ICMP": (_ICMP, f"socket.socket(2, socket.SOCK_RAW, 1).sendto({_ECHO4}, (TO4[0], 0))"),
    "raw, IPv6": (253, "socket.socket(10, socket.SOCK_RAW, 253).sendto(b'x', (TO6[0], 0))"),
    "UDP-Lite": (136, "socket.socket(2, socket.SOCK_DGRAM, 136).sendto(b'x', TO4)"),
    "a frame": (None, f"s = socket.socket(17, 3); s.bind(('sb0', 0x88b5)); s.send({_FRAME})"),
}


@pytest.mark.parametrize(("protocol", "action"), _ACTIONS.values(), ids=_ACTIONS)
async def test_sender_is_named_for_each_kind_of_socket(
    lab: Lab, run: Callable[..., int], protocol: int | None, action: str
) -> None:
    lab.sandbox_namespace.call(
        lambda: Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 99", encoding="ascii")
    )
    program = f"print_pid()\nwith refused:\n    {action}"
    async with watching(lab) as watched:
        pid = await asyncio.to_thread(run, program)

        def mine() -> list[Attribution]:
            return [
                by
                for record, by in watched.found
                if (record.rule == "link" if protocol is None else record.protocol == protocol)
                and record.uid == 0
            ]

        await watched.wait_for(lambda: any(by.process is not None for by in mine()))
        await asyncio.sleep(0.1)
    assert [by.process.pid for by in mine() if by.process is not None] == [pid]
    assert mine()[0].method == "capture"


async def test_process_with_a_reused_number_is_not_taken_for_the_sender(
    lab: Lab, run: Callable[..., int]
) -> None:
    """The kernel reuses the number at once, for a process with another program."""
    program = """
        for _ in range(100):  # other programs start processes too
            first = os.fork()
            if not first:
                with refused:
                    tcp().connect(TO4)
                os._exit(0)
            os.waitpid(first, 0)
            with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                last.write(str(first - 1))
            second = os.posix_spawn("/usr/bin/sleep", ["sleep", "0.5"], os.environ)
            if first == second:
                print(first, flush=True)
            else:
                os.kill(second, signal.SIGKILL)
            os.waitpid(second, 0)
            if first == second:
                break
    """
    async with watching(lab) as watched:
        pid = await asyncio.to_thread(run, program)
        await watched.wait_for(
            lambda: pid in {by.process.pid for by in watched.of(_TCP) if by.process}
        )
    for by in watched.of(_TCP):
        assert (by.method, by.confidence) == ("capture", "high"), by
        assert by.process is not None
        assert by.process.path == PYTHON


async def test_permissive_fence_names_no_unseen_sender(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allowed packets are not reported; a process may pass on the socket that it connected."""
    fence(lab, state, monkeypatch, is_permissive=True)
    program = START + textwrap.dedent("""
        s = udp()
        s.connect(TO4)
        if not os.fork():
            s.send(b'x')
            os._exit(0)
        os.wait()
    """)
    async with watching(lab) as watched:
        await asyncio.to_thread(
            lab.sandbox_namespace.call,
            lambda: subprocess.run([PYTHON, "-I", "-c", program], check=True),
        )
        (by,) = await watched.until(1, protocol=_UDP)
    assert by.process is None
    assert by.confidence in {"low", "high"}
    assert all(each.calls is None for each in by.seen)


async def test_hash_is_of_the_running_program_and_not_of_a_later_one(
    lab: Lab, run: Callable[..., int], tmp_path: Path
) -> None:
    copy = tmp_path / "implant"
    shutil.copy(PYTHON, copy)
    is_read = tmp_path / "is read"
    stays = f"""
        print_pid()
        with refused: tcp().connect(TO4)
        while not os.path.exists({str(is_read)!r}): time.sleep(0.01)
    """
    execs = f"""
        os.unlink({str(copy)!r})
        print_pid()
        with refused:
            tcp().connect(TO4)
        open({str(copy)!r}, "wb").write(open("/usr/bin/sleep", "rb").read())
        os.chmod({str(copy)!r}, 0o755)
        os.execv({str(copy)!r}, ["implant", "0.5"])
    """
    async with watching(lab, hashed_bytes=1 << 30, wait_seconds=60) as watched:
        by = (str(copy), "-I", "-c")
        staying = asyncio.create_task(asyncio.to_thread(run, stays, by=by))
        await watched.until(1, protocol=_TCP)
        is_read.touch()
        await staying
        await asyncio.to_thread(run, execs, by=by)
        first, second = await watched.until(2, protocol=_TCP)
    expected = hashlib.sha256(Path(PYTHON).read_bytes()).hexdigest()  # noqa: ASYNC240 - a test
    assert first.process is not None
    assert (first.process.path, first.process.sha256) == (str(copy), expected)
    assert second.process is not None
    assert second.process.sha256 in {None, expected}


async def test_process_that_ended_before_its_program_was_read_is_named_without_a_hash(
    lab: Lab, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, awaited = process_details.read, []

    def after_its_end(pid: int, **options: Any) -> Process | None:
        if options.get("hashes") is not None:
            awaited.append(pid)
            end = time.monotonic() + 20
            while Path(f"/proc/{pid}").exists():
                assert time.monotonic() < end
                time.sleep(0.005)
        return real(pid, **options)

    monkeypatch.setattr(process_details, "read", after_its_end)
    async with watching(lab, hashed_bytes=1 << 30, wait_seconds=30) as watched:
        program = "print_pid()\nwith refused: tcp().connect(TO4)"
        pid = await asyncio.to_thread(run, program)
        (by,) = await watched.until(1, protocol=_TCP)
    assert awaited == [pid]
    assert by.process is not None
    assert (by.process.pid, by.process.sha256) == (pid, None)
