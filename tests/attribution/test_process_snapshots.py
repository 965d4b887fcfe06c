"""What is told of a process, after it is gone too."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attribution import process_snapshots
from ocsf_nft.attribution.bpf_layout import NOBODY, Image, Portrait
from ocsf_nft.attribution.process_snapshots import Images
from ocsf_nft.process import Process
from tests.attribution.calling import SECOND, call, image


@dataclass
class Names:
    """Every user and group is called by its number, once somebody has asked for it."""

    wanted: set[tuple[str, int]] = field(default_factory=set)
    known: bool = True

    def user(self, number: int) -> str | None:
        return self._name("user", number)

    def group(self, number: int) -> str | None:
        return self._name("group", number)

    def _name(self, kind: str, number: int) -> str | None:
        if self.known:
            return f"{kind}{number}"
        self.wanted.add((kind, number))
        return None


def portrait(of: int | Image, parent: int | Image = NOBODY, **facts: Any) -> Portrait:
    known = Portrait(
        image=image(of) if isinstance(of, int) else of,
        parent=image(parent) if isinstance(parent, int) else parent,
        namespace_pid=of if isinstance(of, int) else of.pid,
        is_deleted=False,
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


def known(*portraits: Portrait, names: Names | None = None) -> Images:
    found = Images(names or Names())  # type: ignore[arg-type]
    for each in portraits:
        found.learn(each)
    return found


def of(seven: Portrait) -> Process:
    """What is told of process 7 by its portrait."""
    return known(seven).process(call(7, 0))


def test_all_that_was_told_is_told() -> None:
    now_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    seven = portrait(7, directory=(b"agent", b"home", b"/"), namespace_pid=2)
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


def test_of_several_threads_the_process_is_told() -> None:
    found = known(portrait(7, comm=b"first")).process(call(7, 0, tid=0, comm=b"worker"))
    assert (found.pid, found.tid, found.name) == (7, None, "first")


def test_what_a_child_was_begun_with_is_what_its_parent_was() -> None:
    """Whoever overwrites his own arguments and forks would be told with those."""
    forged = portrait(8, 7, arguments=b"sshd\0")
    begun = portrait(7, 6, arguments=b"implant\0")
    other = portrait(6, image(5)._replace(execs=0), arguments=b"sh\0")
    for told in ((begun, forged, other), (forged, other, begun)):
        assert known(*told).process(call(8, 0)).cmd_line == "sh"
    # One that has run a program since, another one's, and one that nobody knows.
    execs = image(7)._replace(execs=0)
    assert known(portrait(execs), portrait(8, execs)).process(call(8, 0)).cmd_line == "curl -v"
    assert known(forged, begun._replace(inode=2)).process(call(8, 0)).cmd_line == "sshd"
    assert known(forged).process(call(8, 0)).cmd_line == "sshd"


def test_of_whom_nothing_was_told_the_call_tells() -> None:
    found = known().process(call(7, 0))
    assert found.created_ns is not None
    assert (found.pid, found.tid, found.name, found.uid) == (7, 7, "x", 1000)
    assert (found.path, found.is_deleted, found.cmd_line, found.ancestors) == (None, None, None, ())
    assert of(portrait(7)).namespace_pid is None  # it is in no other one
    plain = Image(pid=7, started_ns=0, execs=0)
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
def test_a_path_is_one_where_its_names_lead_up_to_a_root(
    names: tuple[bytes, ...], path: str | None
) -> None:
    """There is no room for all names of a long one; what was never on a disk has no root."""
    found = of(portrait(7, path=names, directory=names, is_deleted=True))
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
def test_arguments_are_a_line_and_it_shows_where_there_were_more(
    arguments: bytes, line: str | None
) -> None:
    assert of(portrait(7, arguments=arguments)).cmd_line == line


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
def test_a_cgroup_says_what_it_runs_in_where_all_of_it_is_told(
    cgroup: tuple[bytes, ...], unit: str | None, container: str | None
) -> None:
    found = of(portrait(7, cgroup=cgroup))
    assert found.unit == unit
    assert (None if found.container is None else found.container.uid) == container


def test_ancestors_are_told_up_to_the_first_process_of_the_sandbox() -> None:
    found = known(
        portrait(7, 6, namespace_pid=3),
        portrait(6, 5, namespace_pid=2, path=(b"sh", b"/")),
        portrait(5, 4, namespace_pid=1, comm=b"init"),
        portrait(4, 1, comm=b"containerd"),
    ).process(call(7, 0))
    assert [(each.pid, each.name, each.path) for each in found.ancestors] == [
        (6, "comm", "/sh"),
        (5, "init", "/usr/bin/curl"),
    ]
    assert [each.ancestors for each in found.ancestors] == [(), ()]


def test_of_an_ancestor_that_is_not_known_its_number_is_told_and_nobody_above_it() -> None:
    found = known(portrait(7, 6), portrait(5, 4)).process(call(7, 0))
    assert [(each.pid, each.name) for each in found.ancestors] == [(6, None)]
    assert known(portrait(7, NOBODY)).process(call(7, 0)).ancestors == ()


def test_no_more_ancestors_are_told_than_anybody_wants_to_know() -> None:
    line = [portrait(number, number - 1, namespace_pid=99) for number in range(2, 60)]
    found = known(*line).process(call(59, 0))
    assert [each.pid for each in found.ancestors] == list(range(58, 42, -1))
    circle = known(portrait(7, 8), portrait(8, 7)).process(call(7, 0))
    assert len(circle.ancestors) == 16


def test_after_an_exec_it_is_another_program_with_the_old_parent() -> None:
    before, after = image(7), image(7)._replace(execs=2)
    found = known(portrait(before, 6, path=(b"sh", b"/")), portrait(after, 6, path=(b"curl", b"/")))
    assert found.process(call(7, 0)).path == "/sh"
    later = found.process(call(7, 0, image=after))
    assert later.path == "/curl"
    assert later.created_ns == found.process(call(7, 0)).created_ns
    assert (found.is_latest(after), found.is_latest(before)) == (True, False)
    assert not found.is_latest(image(8))


def test_the_start_of_a_process_is_the_same_whenever_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = known(portrait(7))
    first = found.process(call(7, 0)).created_ns
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    found.learn(portrait(8))
    assert found.process(call(7, 0)).created_ns == first


def test_who_is_asked_for_is_kept_with_those_above_it_and_the_others_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_snapshots, "_KEPT", 10)
    found = known(portrait(7, 6, namespace_pid=3), portrait(6, 5, namespace_pid=2))
    for number in range(100, 200):
        found.learn(portrait(number))
        assert len(found._known) <= 10
        told = found.process(call(7, 0))
        assert told.path is not None
        assert told.ancestors[0].path is not None
    for number in range(200, 210):
        found.learn(portrait(number))
    assert found.process(call(7, 0)).path is None
    assert len(found._latest) == 10


def test_images_evict_the_process_that_was_learnt_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_snapshots, "_KEPT", 2)
    found = known(portrait(7), portrait(8), portrait(7), portrait(9))
    assert [found.is_latest(image(number)) for number in (7, 8, 9)] == [True, False, True]


def test_a_name_is_told_as_soon_as_it_is_known() -> None:
    names = Names(known=False)
    found = known(portrait(7, uid=5, gid=6), names=names)
    assert found.process(call(7, 0)).user_name is None
    assert {("user", 1000), ("group", 1000), ("user", 5), ("group", 6)} == names.wanted
    names.known = True
    names.wanted.clear()
    assert found.process(call(7, 0)).user_name == "user1000"


def test_two_threads_of_a_process_are_told_as_two() -> None:
    found = known(portrait(7))
    one, other = (found.process(call(7, 0, tid=tid, comm=b"%d" % tid)) for tid in (7, 8))
    assert [(each.tid, each.name) for each in (one, other)] == [(7, "7"), (8, "8")]


@given(names=st.lists(st.binary(), max_size=4), text=st.binary())
def test_whatever_a_process_calls_itself_it_is_text(names: list[bytes], text: bytes) -> None:
    seven = portrait(
        7, path=(*names, b"/"), directory=(*names,), cgroup=(*names, b""), arguments=text, comm=text
    )
    found = known(seven).process(call(7, 0, comm=text))
    for each in (found.name, found.path, found.cmd_line, found.working_directory, found.unit):
        assert each is None or each.encode("utf-8", "strict") is not None
