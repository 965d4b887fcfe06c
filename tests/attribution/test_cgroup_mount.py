from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attribution.cgroup_mount import hierarchy
from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

_V1 = "33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct"


def mounted(root: str = "/", at: str = "/sys/fs/cgroup", optional: str = "shared:9 ") -> str:
    return f"29 23 0:26 {root} {at} rw,nosuid {optional}- cgroup2 cgroup2 rw,nsdelegate"


def where(*lines: str) -> Path:
    return hierarchy("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("optional", ["", "shared:9 ", "shared:9 master:1 propagate_from:2 "])
def test_it_is_where_it_is_mounted(optional: str) -> None:
    assert where("", _V1, mounted(optional=optional)) == Path("/sys/fs/cgroup")


def test_systemd_may_have_it_beside_the_old_one() -> None:
    tmpfs = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755"
    found = where(tmpfs, _V1, mounted(at="/sys/fs/cgroup/unified"))
    assert found == Path("/sys/fs/cgroup/unified")


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (_V1,),
        ("29 23 0:26 / /cgroup2 rw - tmpfs cgroup2 rw",),
        ("29 23 0:26 cgroup2 / rw cgroup2",),
        ("29 23 0:26 / / rw -",),
    ],
)
def test_where_it_is_not_mounted_it_is_said_so(lines: Iterable[str]) -> None:
    with pytest.raises(UnsupportedError, match="cgroup v2 is not mounted"):
        where(*lines)


@pytest.mark.parametrize(
    ("escaped", "path"),
    [
        ("/a\\040b", "/a b"),
        ("/a\\011b\\012c", "/a\tb\nc"),
        ("/a\\134040", "/a\\040"),
        ("/\udcff", "/\udcff"),
    ],
)
def test_a_path_is_told_as_it_is(escaped: str, path: str) -> None:
    assert where(mounted(at=escaped)) == Path(path)


@pytest.mark.parametrize("root", ["/docker/0a1b", "/..", "/../..", "/kubepods.slice/pod1"])
def test_where_only_a_part_of_it_is_seen_it_is_that(root: str) -> None:
    assert where(mounted(root)) == Path("/sys/fs/cgroup")


@pytest.mark.parametrize(
    "roots", [("/", "/docker/0a1b"), ("/../..", "/.."), ("/..", "/"), ("/..", "/docker")]
)
def test_of_several_it_is_the_widest(roots: tuple[str, str]) -> None:
    widest, other = mounted(roots[0], "/widest"), mounted(roots[1], "/other")
    for lines in ((widest, other), (other, widest)):
        assert where(*lines) == Path("/widest")


@pytest.mark.kernel
def test_this_machine_says_where_it_is() -> None:
    assert (hierarchy() / "cgroup.procs").exists()
