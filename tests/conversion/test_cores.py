"""Number of processors that a process may use."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.conversion.cores import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

_V1: Final = Path("/sys/fs/cgroup/cpu")
_MANY: Final = frozenset(range(64))


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: _MANY)


def _process(folder: Path, groups: str, *mounts: str) -> Path:
    process = folder / "process"
    process.mkdir()
    lines = [f"30 1 0:26 {each}" for each in mounts]
    (process / "mountinfo").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    (process / "cgroup").write_text(groups, "utf-8")
    return process


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{content}\n", "ascii")


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({}, 64),
        ({"pods/one": "max 100000"}, 64),
        ({"pods/one": "150000 100000"}, 2),
        ({"pods/one": "200000 100000"}, 2),
        ({"pods": "50000 100000"}, 1),
        ({"pods": "300000 100000", "pods/one": "500000 100000"}, 3),
        ({"pods/other": "100000 100000"}, 64),
    ],
)
def test_quota_of_each_cgroup_above_the_process_is_a_limit(
    tmp_path: Path, limits: dict[str, str], cores: int
) -> None:
    (tmp_path / "v2/pods/one").mkdir(parents=True)
    for name, limit in limits.items():
        _write(tmp_path / "v2" / name, cpu_max=limit)
    process = _process(
        tmp_path, "0::/pods/one\n", f"/ {tmp_path}/v2 rw,nosuid shared:4 - cgroup2 cgroup2 rw"
    )
    assert usable_cores(process) == cores


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("root", ["/docker/c1", "/", "/elsewhere"])
def test_container_that_sees_only_its_own_cgroup_has_its_limit(tmp_path: Path, root: str) -> None:
    path = "/" if root == "/" else "/docker/c1"
    _write(tmp_path / "cpu", cpu_cfs_quota_us="250000", cpu_cfs_period_us="100000")
    process = _process(
        tmp_path,
        f"4:cpu,cpuacct:{path}\n0::/\n",
        f"{root} {tmp_path}/cpu ro - cgroup cgroup rw,cpu,cpuacct",
        f"{root} {tmp_path}/memory ro - cgroup cgroup rw,memory",
    )
    assert usable_cores(process) == 3


@pytest.mark.usefixtures("many_cores")
def test_cgroup_inside_a_container_has_its_own_limit(tmp_path: Path) -> None:
    _write(tmp_path / "v2/inner", cpu_max="400000 100000")
    process = _process(
        tmp_path, "0::/docker/c1/inner\n", f"/docker/c1 {tmp_path}/v2 ro - cgroup2 cgroup2 rw"
    )
    assert usable_cores(process) == 4


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("quota", "period"), [("-1", "100000"), ("", "100000"), ("100000", "none")]
)
def test_cgroup_without_a_readable_quota_is_no_limit(
    tmp_path: Path, quota: str, period: str
) -> None:
    _write(tmp_path / "cpu", cpu_cfs_quota_us=quota, cpu_cfs_period_us=period)
    mount = f"/ {tmp_path}/cpu ro - cgroup cgroup rw,cpu"
    assert usable_cores(_process(tmp_path, "4:cpu:/\n", mount)) == 64


@pytest.mark.usefixtures("many_cores")
def test_process_without_proc_has_the_cores_of_its_affinity(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 64


@pytest.fixture
def cgroup() -> Iterator[Path]:
    made = _V1 / f"ocsf-nft-test-{uuid.uuid4().hex[:8]}"
    inner = made / "inner"
    inner.mkdir(parents=True)
    try:
        yield inner
    finally:
        inner.rmdir()
        made.rmdir()


@pytest.mark.kernel
@pytest.mark.parametrize(("quota_us", "cores"), [(60_000, 1), (-1, 2)])
def test_quota_of_a_real_cgroup_is_found(cgroup: Path, quota_us: int, cores: int) -> None:
    (cgroup.parent / "cpu.cfs_quota_us").write_text(str(quota_us), "ascii")
    program = (
        "import os, sys; open(sys.argv[1], 'w').write('0'); "
        "from ocsf_nft.conversion.cores import usable_cores; print(usable_cores())"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, cgroup / "cgroup.procs"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(found.stdout) == min(cores, len(os.sched_getaffinity(0)))
