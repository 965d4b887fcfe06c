"""The sysctls of the temporary namespaces of the demo, the tests and the benchmarks."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netns
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.lab import ip, set_sysctls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_NET = Path("/proc/sys/net")


def test_set_sysctls_resets_every_sysctl_that_a_namespace_inherits() -> None:
    def after_another_host() -> dict[str, str]:
        changed = sum(_change(path) for path in _inherited())
        assert changed > 90  # net.ipv4.conf of all, default and lo, if the kernel allows it
        return afterwards()

    def afterwards() -> dict[str, str]:
        set_sysctls()
        return {str(path): path.read_text("ascii") for path in _inherited()}

    expected = netns.in_scratch(afterwards)
    assert netns.in_scratch(after_another_host) == expected
    assert expected["/proc/sys/net/ipv4/ip_forward"] == "0\n"
    assert expected["/proc/sys/net/ipv4/conf/default/rp_filter"] == "0\n"


def test_interrupt_of_the_terminal_does_not_reach_ip(lab: Lab) -> None:
    """Ctrl-C signals the foreground process group, and the removal of namespaces must go on."""
    leads_a_group = "import os; assert os.getpgid(0) == os.getpid()"
    ip("netns", "exec", lab.sandbox, sys.executable, "-c", leads_a_group)


def test_ip_failure_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match=r'ip nothing at all: Object "nothing" is unknown'):
        ip("nothing", "at", "all")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(UnsupportedError, match="the ip command is missing: install iproute2"):
        ip("link")


def _inherited() -> Iterator[Path]:
    for path in (_NET / "ipv4/conf").glob("*/*"):
        if path.name != "forwarding":  # the same as ip_forward
            yield path
    yield from map(_NET.joinpath, ("ipv4/ip_forward", "ipv4/tcp_rmem", "ipv4/tcp_wmem"))
    for name in ("all/forwarding", "default/accept_ra", "default/accept_dad", "lo/autoconf"):
        yield _NET / "ipv6/conf" / name


def _change(path: Path) -> bool:
    """Write another value, as an administrator of the host may do."""
    before = path.read_text("ascii")
    *others, last = before.split()
    with contextlib.suppress(OSError):
        path.write_text(" ".join([*others, "0" if last == "1" else "1"]), encoding="ascii")
    return path.read_text("ascii") != before
