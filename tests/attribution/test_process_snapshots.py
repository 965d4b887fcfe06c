"""Tests of process details from snapshots, also after the process has exited."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attribution import process_snapshots
from ocsf_nft.attribution.bpf_capture import UNKNOWN_IMAGE, ProcessImage, ProcessSnapshot
from ocsf_nft.attribution.process_snapshots import ProcessSnapshots
from ocsf_nft.process import Process
from tests.attribution.calling import SECOND, call, image


@dataclass
class Names:
    """Fake names: each user and group has its number as name, once it is ``known``."""

    missing: set[tuple[str, int]] = field(default_factory=set)
    known: bool = True

    def cached(self, kind: str, number: int) -> str | None:
        if self.known:
            return f"{kind}{number}"
        self.missing.add((kind, number))
        return None


def snapshot(
    number: int | ProcessImage, parent: int | ProcessImage = UNKNOWN_IMAGE, **facts: Any
) -> ProcessSnapshot:
    known = ProcessSnapshot(
        image=image(number) if isinstance(number, int) else number,
        parent=image(parent) if isinstance(parent, int) else parent,
        namespace_pid=number if isinstance(number, int) else number.pid,
        is_deleted=False,
        is_child=True,
        uid=1000,
        gid=100,
        inode=1,
        comm=b"comm",
        path=(b"curl", b"bin", b"usr", b"/"),
        directory=(b"/",),
        cgroup=(b"",),
        arguments=b"curl\0-v\0",
    )
    return known._replace(**facts)


def known(*snapshots: ProcessSnapshot, names: Names | None = None) -> ProcessSnapshots:
    found = ProcessSnapshots(names or Names())  # type: ignore[arg-type]
    for each in snapshots:
        found.add(each)
    return found


def process_7(seven: ProcessSnapshot) -> Process:
    """Return process 7 by its snapshot."""
    return known(seven).process(call(7, 0))


def test_process_has_all_details_of_its_snapshot() -> None:
    now_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    seven = snapshot(7, directory=(b"agent", b"home", b"/"), namespace_pid=2)
    by = call(7, 0, tid=8, comm=b"worker", uid=1, gid=2, owner=3)
    found = known(seven).process(by)
    assert found.created_ns is not None
    assert abs(found.created_ns - now_ns - 7 * SECOND) < SECOND
    assert found == Process(
        pid=7,
        tid=8,
        name="worker",
        path="/usr/bin/curl",
        is_deleted=False,
        cmd_line="curl -v",
        working_directory="/home/agent",
        created_ns=found.created_ns,
        namespace_pid=2,
        uid=1,
        user_name="user1",
        gid=2,
        group_name="group2",
    )


def test_call_of_several_threads_has_the_name_of_the_process() -> None:
    found = known(snapshot(7, comm=b"first")).process(call(7, 0, tid=0, comm=b"worker"))
    assert (found.pid, found.tid, found.name) == (7, None, "first")


def test_child_has_the_arguments_of_the_exec_of_its_ancestor() -> None:
    """A process could overwrite its arguments and fork: its child's arguments would be forged."""
    forged = snapshot(8, 7, arguments=b"sshd\0")
    begun = snapshot(7, 6, arguments=b"implant\0")
    other = snapshot(6, image(5)._replace(execs=0), arguments=b"sh\0")
    for each in ((begun, forged, other), (forged, other, begun)):
        assert known(*each).process(call(8, 0)).cmd_line == "sh"
    # A process with an exec since, another program's, and one with an unknown parent.
    execs = image(7)._replace(execs=0)
    assert known(snapshot(execs), snapshot(8, execs)).process(call(8, 0)).cmd_line == "curl -v"
    assert known(forged, begun._replace(inode=2)).process(call(8, 0)).cmd_line == "sshd"
    assert known(forged).process(call(8, 0)).cmd_line == "sshd"
    adopted = snapshot(8, 7, arguments=b"sshd\0", is_child=False)
    assert known(begun, adopted).process(call(8, 0)).cmd_line == "sshd"


def test_child_has_its_own_arguments_if_those_of_its_parent_are_unknown() -> None:
    """The kernel reports a parent that began before the capture without its arguments."""
    child, parent = snapshot(8, 7), snapshot(7, 6, arguments=b"")
    assert known(child, parent).process(call(8, 0)).cmd_line == "curl -v"
    above = snapshot(6, arguments=b"sh\0")
    assert known(child, parent, above).process(call(8, 0)).cmd_line == "sh"


def test_process_that_is_reported_again_has_its_first_arguments() -> None:
    """The kernel reports a process again if it has evicted it. It may call itself another by then.

    It reports no arguments of the parent of a process.
    """
    as_parent = snapshot(7, arguments=b"", directory=(b"srv", b"/"))
    begun, forged = snapshot(7, arguments=b"implant\0"), snapshot(7, arguments=b"sshd\0")
    for each in ((begun, forged), (as_parent, begun, forged), (begun, as_parent, forged)):
        assert known(*each).process(call(7, 0)).cmd_line == "implant"
    assert known(begun, as_parent).process(call(7, 0)).working_directory == "/srv"


def test_process_without_a_snapshot_has_the_details_of_the_call() -> None:
    found = known().process(call(7, 0))
    assert found.created_ns is not None
    assert (found.pid, found.tid, found.name, found.uid) == (7, 7, "x", 1000)
    assert (found.path, found.is_deleted, found.cmd_line, found.ancestors) == (None, None, None, ())
    assert process_7(snapshot(7)).namespace_pid is None  # it is in no other namespace
    plain = ProcessImage(pid=7, started_ns=0, execs=0)
    assert known().process(call(7, 0, image=plain)).created_ns is None


@pytest.mark.parametrize(
    ("names", "path"),
    [
        ((b"/",), "/"),
        ((b"x", b"/"), "/x"),
        ((b"b", b"a", b"/"), "/a/b"),
        ((b"memfd:x",), "memfd:x"),
        ((b"memfd:a/b c",), "memfd:a/b c"),
        ((b"memfd:x", b"/"), "/memfd:x"),
        ((b"x", b"memfd:y"), None),
        ((b"memfd:x", b"y"), None),
        ((b"x",), None),
        ((b"b", b"a"), None),
        ((), None),
        ((b"\xff\x1b", b"/"), "/\\xff\x1b"),
    ],
)
def test_path_is_known_if_its_names_lead_up_to_a_root(
    names: tuple[bytes, ...], path: str | None
) -> None:
    """A long path has no room for all its names, and a file that was never on a disk no root."""
    found = process_7(snapshot(7, path=names, directory=names, is_deleted=True))
    assert (found.path, found.working_directory) == (path, path)
    assert found.is_deleted is (None if path is None else True)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (b"", None),
        (b"curl\0", "curl"),
        (b"curl\0-v\0\0", "curl -v"),
        (b"a\0\0b\0", "a  b"),
        (b"\0\0", ""),
        (b"x" * 1023, "x" * 1023),
        (b"x" * 1024, "x" * 1024 + "…"),
        (b"x" * 1000 + b"\0" * 24, "x" * 1000 + "…"),
        (b"\xff\0\xc3\xbc", "\\xff ü"),
    ],
)
def test_arguments_are_joined_and_marked_if_they_were_cut(
    arguments: bytes, line: str | None
) -> None:
    assert process_7(snapshot(7, arguments=arguments)).cmd_line == line


@pytest.mark.parametrize(
    ("cgroup", "unit", "container"),
    [
        ((b"",), None, None),
        ((b"agent@1.service", b"system.slice", b""), "agent@1.service", None),
        ((b"docker-" + b"0a" * 32 + b".scope", b"system.slice", b""), None, "0a" * 32),
        ((b"init.scope", b""), "init.scope", None),
        ((b"agent@1.service", b"system.slice"), None, None),
        ((b"x", b"docker-" + b"0a" * 32 + b".scope", b"system.slice"), None, None),
        ((), None, None),
    ],
)
def test_complete_cgroup_path_names_unit_and_container(
    cgroup: tuple[bytes, ...], unit: str | None, container: str | None
) -> None:
    found = process_7(snapshot(7, cgroup=cgroup))
    assert found.unit == unit
    assert (None if found.container is None else found.container.uid) == container


def test_ancestors_do_not_end_with_the_init_of_a_pid_namespace() -> None:
    found = known(
        snapshot(7, 6, namespace_pid=3),
        snapshot(6, 5, namespace_pid=2, path=(b"sh", b"/")),
        snapshot(5, 4, namespace_pid=1, comm=b"init"),
        snapshot(4, 1, comm=b"containerd"),
        snapshot(1, 0, comm=b"systemd"),
    ).process(call(7, 0))
    assert [(each.pid, each.name, each.path) for each in found.ancestors] == [
        (6, "comm", "/sh"),
        (5, "init", "/usr/bin/curl"),
        (4, "containerd", "/usr/bin/curl"),
        (1, "systemd", "/usr/bin/curl"),
    ]
    assert {each.ancestors for each in found.ancestors} == {()}
    assert found.cmd_line is not None
    assert {each.cmd_line for each in found.ancestors} == {None}


def test_ancestor_without_a_snapshot_has_only_a_number_and_no_parent() -> None:
    found = known(snapshot(7, 6), snapshot(5, 4)).process(call(7, 0))
    assert [(each.pid, each.name) for each in found.ancestors] == [(6, None)]
    assert known(snapshot(7, UNKNOWN_IMAGE)).process(call(7, 0)).ancestors == ()


def test_process_has_at_most_sixteen_ancestors() -> None:
    line = [snapshot(number, number - 1, namespace_pid=99) for number in range(2, 60)]
    found = known(*line).process(call(59, 0))
    assert [each.pid for each in found.ancestors] == list(range(58, 42, -1))
    circle = known(snapshot(7, 8), snapshot(8, 7)).process(call(7, 0))
    assert len(circle.ancestors) == 16


def test_exec_gives_another_program_with_the_same_parent() -> None:
    before, after = image(7), image(7)._replace(execs=2)
    found = known(snapshot(before, 6, path=(b"sh", b"/")), snapshot(after, 6, path=(b"curl", b"/")))
    assert found.process(call(7, 0)).path == "/sh"
    later = found.process(call(7, 0, image=after))
    assert later.path == "/curl"
    assert later.created_ns == found.process(call(7, 0)).created_ns
    assert (found.is_latest(after), found.is_latest(before)) == (True, False)
    assert not found.is_latest(image(8))


def test_start_of_a_process_is_the_same_in_all_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = known(snapshot(7))
    first = found.process(call(7, 0)).created_ns
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    found.add(snapshot(8))
    assert found.process(call(7, 0)).created_ns == first


def test_requested_process_and_its_ancestors_are_evicted_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_snapshots, "_MOST_IMAGES", 10)
    found = known(snapshot(7, 6, namespace_pid=3), snapshot(6, 5, namespace_pid=2))
    for number in range(100, 200):
        found.add(snapshot(number))
        assert len(found._known) <= 10
        process = found.process(call(7, 0))
        assert process.path is not None
        assert process.ancestors[0].path is not None
    for number in range(200, 210):
        found.add(snapshot(number))
    assert found.process(call(7, 0)).path is None
    assert len(found._latest) == 10


def test_snapshots_evict_the_process_that_was_added_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_snapshots, "_MOST_IMAGES", 2)
    found = known(snapshot(7), snapshot(8), snapshot(7), snapshot(9))
    assert [found.is_latest(image(number)) for number in (7, 8, 9)] == [True, False, True]


def test_evicted_process_is_described_again_and_its_ancestors_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_snapshots, "_MOST_IMAGES", 3)
    again: list[int] = []
    found = ProcessSnapshots(Names(), again.append)  # type: ignore[arg-type]
    for each in (snapshot(6), snapshot(8), snapshot(7, 6), snapshot(9)):
        found.add(each)
    assert again == [8, 6]  # 6 is the parent of a stored process, and no more the latest itself
    assert found.process(call(7, 0)).ancestors[0].path is not None
    found.add(snapshot(10))
    assert again[2:] == [9, 8]
    assert found.process(call(8, 0)).path is None
    assert again[4:] == [8]


def test_process_is_described_again_after_drops() -> None:
    again: list[int] = []
    found = ProcessSnapshots(Names(), again.append)  # type: ignore[arg-type]
    found.add(snapshot(7))
    found.process(call(7, 0))
    assert not again
    found.note_dropped()
    found.process(call(7, 0))
    assert again == [7]


def test_user_name_appears_once_it_is_known() -> None:
    names = Names(known=False)
    found = known(snapshot(7, uid=5, gid=6), names=names)
    assert found.process(call(7, 0)).user_name is None
    assert {("user", 1000), ("group", 1000), ("user", 5), ("group", 6)} == names.missing
    names.known = True
    names.missing.clear()
    assert found.process(call(7, 0)).user_name == "user1000"


def test_two_threads_of_a_process_are_different_processes() -> None:
    found = known(snapshot(7))
    one, other = (found.process(call(7, 0, tid=tid, comm=b"%d" % tid)) for tid in (7, 8))
    assert [(each.tid, each.name) for each in (one, other)] == [(7, "7"), (8, "8")]


@given(names=st.lists(st.binary(), max_size=4), text=st.binary())
def test_details_are_valid_text_for_any_bytes(names: list[bytes], text: bytes) -> None:
    seven = snapshot(
        7, path=(*names, b"/"), directory=(*names,), cgroup=(*names, b""), arguments=text, comm=text
    )
    found = known(seven).process(call(7, 0, comm=text))
    for each in (found.name, found.path, found.cmd_line, found.working_directory, found.unit):
        assert each is None or each.encode("utf-8", "strict") is not None


@pytest.mark.parametrize("end", ["", "\0"])
def test_arguments_have_no_secret_although_they_were_cut(end: str) -> None:
    start = f"app\0{'x' * 985}\0--password\0"
    arguments = f"{start}{'s3cr3t' * 99}"[: 1024 - len(end)] + end
    found = process_7(snapshot(7, arguments=arguments.encode())).cmd_line
    assert found is not None
    assert "s3cr3t" not in found
    assert found.endswith("]…")


def test_equal_secrets_of_processes_have_equal_placeholders() -> None:
    found = [
        process_7(snapshot(7, arguments=arguments)).cmd_line
        for arguments in (
            b"a\0--token=s3cr3t\0",
            b"bash\0-c\0curl -u 's3cr3t:' x; b --token s3cr3t\0",
        )
    ]
    one, other = (str(line).rpartition("[redacted:")[2] for line in found)
    assert one == other


def test_process_of_a_notice_gets_its_details() -> None:
    found = known(
        snapshot(7, 1, comm=b"nft", arguments=b"nft\0flush\0"), snapshot(1, comm=b"sh", inode=2)
    )
    started_ns = found._booted_ns + image(7).started_ns
    for little in (
        Process(pid=7, name="nft"),
        Process(pid=7, name="nft", created_ns=started_ns + 9_000_000),
        Process(pid=7, name="nft", path="/usr/bin/curl", created_ns=started_ns),
    ):
        whole = found.described(little, started_ns + SECOND)
        assert (whole.name, whole.path, whole.uid) == ("nft", "/usr/bin/curl", 1000)
        assert whole.cmd_line == "nft flush"
        assert [each.name for each in whole.ancestors] == ["sh"]


def test_process_of_a_notice_gets_no_details_of_another_process() -> None:
    found = known(snapshot(7, comm=b"nft"))
    started_ns = found._booted_ns + image(7).started_ns
    for little, at_ns in (
        (Process(pid=8, name="nft"), started_ns + SECOND),
        (Process(pid=7, name="ip"), started_ns + SECOND),
        # The id may belong to another one: the process started later, or long before.
        (Process(pid=7, name="nft"), started_ns - 1),
        (Process(pid=7, name="nft"), started_ns + 2 * SECOND),
        (Process(pid=7, name="nft", created_ns=started_ns + SECOND), started_ns + SECOND),
        # It ran another program.
        (Process(pid=7, name="nft", path="/x", created_ns=started_ns), started_ns + SECOND),
    ):
        assert found.described(little, at_ns) is little
    found.note_dropped()
    gone = Process(pid=7, name="nft")
    assert found.described(gone, started_ns + SECOND) is gone
