from __future__ import annotations

import grp
import pwd
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ocsf_nft.attribution import user_names
from ocsf_nft.attribution.user_names import CachedNames, UserNames

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
    assert names.user(0) == "root"
    assert names.group(0) == grp.getgrgid(0).gr_name
    assert [names.user(each.pw_uid) is not None for each in pwd.getpwall()].count(False) == 0


def test_unnamed_ids_have_no_name() -> None:
    assert UserNames().user(UNNAMED) is None
    assert UserNames().group(UNNAMED) is None
    assert UserNames().user(None) is None


def test_name_is_asked_for_once(asked: list[int]) -> None:
    names = UserNames()
    assert [names.user(0), names.user(0), names.user(UNNAMED), names.user(UNNAMED)] == [
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
        assert names.cached("user", 0)[0] == is_cached
        assert names.user(0) == "root"
        assert len(asked) == times


def test_name_cache_has_a_maximum_size(asked: list[int]) -> None:
    names = UserNames(most=2)
    for number in (UNNAMED, UNNAMED - 1, UNNAMED - 2, UNNAMED - 2, UNNAMED - 1, UNNAMED):
        names.user(number)
    assert asked == [UNNAMED, UNNAMED - 1, UNNAMED - 2, UNNAMED]
    assert len(names._cache) == 2


def test_group_is_not_a_user() -> None:
    names = UserNames()
    group = next(each for each in grp.getgrall() if each.gr_name != names.user(each.gr_gid))
    assert names.group(group.gr_gid) == group.gr_name


def test_user_namespace_has_no_names_of_the_host() -> None:
    code = """
from ocsf_nft.attribution.user_names import CachedNames, UserNames
names = UserNames()
ids = (0, 65534, 65533)
print(names.user(0), names.group(0), *(names.mapped_id(each) for each in ids))
known = CachedNames(names)
print(known.user(0), known.missing)
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
    known = CachedNames(UserNames())
    assert (known.user(uid), known.group(gid)) == (None, None)
    assert known.missing == {("user", uid), ("group", gid)}
    known.resolve()
    assert known.missing == set()
    assert known.user(uid) == pwd.getpwuid(uid).pw_name
    assert known.group(gid) == grp.getgrgid(gid).gr_name
    assert known.missing == set()


def test_users_are_unknown_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_names, "_NAMESPACE", Path("/nowhere/ns/user"))
    assert UserNames().user(0) is None
