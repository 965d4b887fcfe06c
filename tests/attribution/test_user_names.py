from __future__ import annotations

import grp
import pwd
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ocsf_nft.attribution import user_names
from ocsf_nft.attribution.user_names import KeptNames, Names

pytestmark = pytest.mark.kernel

NOBODY = 3_999_999_999


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The users that the name service was asked for."""
    numbers: list[int] = []
    real = pwd.getpwuid

    def ask(number: int) -> pwd.struct_passwd:
        numbers.append(number)
        return real(number)

    monkeypatch.setattr(pwd, "getpwuid", ask)
    return numbers


def test_users_and_groups_have_the_hosts_names() -> None:
    names = Names()
    assert names.user(0) == "root"
    assert names.group(0) == grp.getgrgid(0).gr_name
    assert [names.user(each.pw_uid) is not None for each in pwd.getpwall()].count(False) == 0


def test_who_has_no_name_has_none() -> None:
    assert Names().user(NOBODY) is None
    assert Names().group(NOBODY) is None
    assert Names().user(None) is None


def test_a_name_is_asked_for_once(asked: list[int]) -> None:
    names = Names()
    assert [names.user(0), names.user(0), names.user(NOBODY), names.user(NOBODY)] == [
        "root",
        "root",
        None,
        None,
    ]
    assert asked == [0, NOBODY]


def test_name_is_asked_for_again_after_five_minutes(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names()
    for now, is_kept, times in ((1000.0, False, 1), (1299.9, True, 1), (1300.0, False, 2)):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        assert names.kept("user", 0)[0] == is_kept
        assert names.user(0) == "root"
        assert len(asked) == times


def test_no_more_names_are_kept_than_should(asked: list[int]) -> None:
    names = Names(most=2)
    for number in (NOBODY, NOBODY - 1, NOBODY - 2, NOBODY - 2, NOBODY - 1, NOBODY):
        names.user(number)
    assert asked == [NOBODY, NOBODY - 1, NOBODY - 2, NOBODY]
    assert len(names._kept) == 2


def test_a_group_is_no_user() -> None:
    names = Names()
    group = next(each for each in grp.getgrall() if each.gr_name != names.user(each.gr_gid))
    assert names.group(group.gr_gid) == group.gr_name


def test_in_a_user_namespace_nobody_has_the_hosts_name() -> None:
    code = """
from ocsf_nft.attribution.user_names import KeptNames, Names
names = Names()
print(names.user(0), names.group(0), names.known(0), names.known(65534), names.known(65533))
known = KeptNames(names)
print(known.user(0), known.wanted)
"""
    for options in ("-U", "-Ur"):
        done = subprocess.run(
            ["unshare", options, sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "None None 0 None 65533\nNone set()\n"
    assert Names().known(65534) == 65534


def test_known_names_are_returned_without_asking_and_the_others_after_asking() -> None:
    uid = 0
    gid = max(each.gr_gid for each in grp.getgrall())
    known = KeptNames(Names())
    assert (known.user(uid), known.group(gid)) == (None, None)
    assert known.wanted == {("user", uid), ("group", gid)}
    known.ask()
    assert known.wanted == set()
    assert known.user(uid) == pwd.getpwuid(uid).pw_name
    assert known.group(gid) == grp.getgrgid(gid).gr_name
    assert known.wanted == set()


def test_without_proc_nobody_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_names, "_NAMESPACE", Path("/nowhere/ns/user"))
    assert Names().user(0) is None
