from __future__ import annotations

import grp
import pwd
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ocsf_nft.attribution import user_names
from ocsf_nft.attribution.user_names import UserNames

pytestmark = pytest.mark.kernel

UNNAMED = 3_999_999_999


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the users that the name service was asked for."""
    numbers: list[int] = []
    real = pwd.getpwuid

    def ask(number: int) -> pwd.struct_passwd:
        numbers.append(number)
        return real(number)

    monkeypatch.setattr(pwd, "getpwuid", ask)
    return numbers


def test_users_and_groups_have_the_names_of_the_host() -> None:
    names = UserNames()
    assert names.look_up("user", 0) == "root"
    assert names.look_up("group", 0) == grp.getgrgid(0).gr_name
    assert [names.look_up("user", each.pw_uid) is not None for each in pwd.getpwall()].count(
        False
    ) == 0


def test_unnamed_ids_have_no_name() -> None:
    assert UserNames().look_up("user", UNNAMED) is None
    assert UserNames().look_up("group", UNNAMED) is None
    assert UserNames().look_up("user", None) is None


def test_name_is_asked_for_once(asked: list[int]) -> None:
    names = UserNames()
    assert [
        names.look_up("user", 0),
        names.look_up("user", 0),
        names.look_up("user", UNNAMED),
        names.look_up("user", UNNAMED),
    ] == [
        "root",
        "root",
        None,
        None,
    ]
    assert asked == [0, UNNAMED]


def test_name_is_asked_for_again_after_five_minutes(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = UserNames()
    for now, is_cached, times in ((1000.0, False, 1), (1299.9, True, 1), (1300.0, False, 2)):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        names.missing.clear()
        assert names.cached("user", 0) == (None if now == 1000.0 else "root")
        assert (("user", 0) not in names.missing) == is_cached
        assert names.look_up("user", 0) == "root"
        assert len(asked) == times


def test_name_cache_has_a_maximum_size(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_names, "_MOST_CACHED", 2)
    names = UserNames()
    for number in (UNNAMED, UNNAMED - 1, UNNAMED - 2, UNNAMED - 2, UNNAMED - 1, UNNAMED):
        names.look_up("user", number)
    assert asked == [UNNAMED, UNNAMED - 1, UNNAMED - 2, UNNAMED]
    assert len(names._cache) == 2


def test_group_is_not_a_user() -> None:
    names = UserNames()
    group = next(
        each for each in grp.getgrall() if each.gr_name != names.look_up("user", each.gr_gid)
    )
    assert names.look_up("group", group.gr_gid) == group.gr_name


def test_user_namespace_has_no_names_of_the_host() -> None:
    code = """
from ocsf_nft.attribution.user_names import UserNames
names = UserNames()
ids = (0, 65534, 65533)
print(names.look_up("user", 0), names.look_up("group", 0), *(names.mapped_id(each) for each in ids))
print(names.cached("user", 0), names.missing)
"""
    for options in ("-U", "-Ur"):
        done = subprocess.run(
            ["unshare", options, sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "None None 0 None 65533\nNone set()\n"
    assert UserNames().mapped_id(65534) == 65534


def test_cached_names_are_returned_at_once_and_the_others_after_a_query() -> None:
    uid = 0
    gid = max(each.gr_gid for each in grp.getgrall())
    names = UserNames()
    assert (names.cached("user", uid), names.cached("group", gid)) == (None, None)
    assert names.missing == {("user", uid), ("group", gid)}
    names.resolve()
    assert names.missing == set()
    assert names.cached("user", uid) == pwd.getpwuid(uid).pw_name
    assert names.cached("group", gid) == grp.getgrgid(gid).gr_name
    assert names.missing == set()


def test_users_are_unknown_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_names, "_NAMESPACE", Path("/nowhere/ns/user"))
    assert UserNames().look_up("user", 0) is None
