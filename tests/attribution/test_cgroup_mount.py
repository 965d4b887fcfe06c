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


def mount_point(*lines: str) -> Path:
    return hierarchy("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("optional", ["", "shared:9 ", "shared:9 master:1 propagate_from:2 "])
def test_mount_point_is_that_of_cgroup_v2(optional: str) -> None:
    assert mount_point("", _V1, mounted(optional=optional)) == Path("/sys/fs/cgroup")


def test_mount_point_beside_cgroup_v1_is_found() -> None:
    tmpfs = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755"
    found = mount_point(tmpfs, _V1, mounted(at="/sys/fs/cgroup/unified"))
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
def test_missing_cgroup_v2_is_reported(lines: Iterable[str]) -> None:
    with pytest.raises(UnsupportedError, match="cgroup v2 is not mounted"):
        mount_point(*lines)


@pytest.mark.parametrize(
    ("escaped", "path"),
    [
        ("/a\\040b", "/a b"),
        ("/a\\011b\\012c", "/a\tb\nc"),
        ("/a\\134040", "/a\\040"),
        ("/\udcff", "/\udcff"),
    ],
)
def test_escaped_path_is_decoded(escaped: str, path: str) -> None:
    assert mount_point(mounted(at=escaped)) == Path(path)


@pytest.mark.parametrize("root", ["/docker/0a1b", "/..", "/../..", "/kubepods.slice/pod1"])
def test_mount_of_a_part_of_the_hierarchy_is_used(root: str) -> None:
    assert mount_point(mounted(root)) == Path("/sys/fs/cgroup")


@pytest.mark.parametrize(
    "roots", [("/", "/docker/0a1b"), ("/../..", "/.."), ("/..", "/"), ("/..", "/docker")]
)
def test_widest_of_several_mounts_is_used(roots: tuple[str, str]) -> None:
    widest, other = mounted(roots[0], "/widest"), mounted(roots[1], "/other")
    for lines in ((widest, other), (other, widest)):
        assert mount_point(*lines) == Path("/widest")


@pytest.mark.kernel
def test_mount_point_of_this_machine_exists() -> None:
    assert (hierarchy() / "cgroup.procs").exists()
