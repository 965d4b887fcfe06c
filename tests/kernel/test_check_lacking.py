"""Tests of `check` on hosts that lack a program, a privilege or a kernel feature."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import nft
from tests.kernel import command
from tests.kernel.vm_host import DEVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.kernel

_HERE = Path(__file__).parent
_WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")


@pytest.fixture
def nft_without(tmp_path: Path) -> Callable[[str], Path]:
    """Create an nft whose kernel seems to lack an expression, see ``without.c``."""
    real, compiler = nft.find(), shutil.which("cc")
    assert compiler is not None
    copy, library, wrapper = tmp_path / "real-nft", tmp_path / "without.so", tmp_path / "nft"
    shutil.copy2(real, copy)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, _HERE / "without.c"], check=True)

    def without(name: str) -> Path:
        wrapper.write_text(f'#!/bin/sh\nWITHOUT={name} LD_PRELOAD={library} exec {copy} "$@"\n')
        wrapper.chmod(0o755)
        return wrapper

    return without


def _over_nft(file: Path) -> Sequence[str]:
    """Return a command prefix that mounts another file over nft."""
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return ("unshare", "-m", "sh", "-c", script, "sh", str(file), str(nft.find().resolve()))


def test_check_reports_a_kernel_without_log_support(nft_without: Callable[[str], Path]) -> None:
    outcome = command.run("check", "--json", under=_over_nft(nft_without("log")))
    assert outcome.code == 1
    found = {finding["name"]: finding for finding in outcome.events}
    assert found["fence"]["severity"] == "ok"
    assert (found["nflog"]["severity"], found["kernel-log"]["severity"]) == ("degraded",) * 2
    assert "nft_log" in found["nflog"]["remedy"]


def test_check_names_missing_features_for_vms(nft_without: Callable[[str], Path]) -> None:
    script = 'mount --bind /dev/null /dev/net/tun && exec "$@"'
    under = (*_over_nft(nft_without("nat")), "sh", "-c", script, "sh")
    for options, severity, code in (((), "degraded", 0), (("--device", DEVICE), "fatal", 3)):
        outcome = command.run("check", "--json", *options, under=under)
        assert outcome.code == code
        found = {finding["name"]: finding for finding in outcome.events}
        assert {found[name]["severity"] for name in ("fence", "conntrack")} == {"ok"}
        for name, meaning, remedy in (
            ("nat", "this kernel has no nft_masq with nf_nat", "load or build it"),
            (
                "tap",
                "no TAP device can be created (/dev/net/tun, Inappropriate ioctl for device)",
                "load the tun module, and run as root or with CAP_NET_ADMIN",
            ),
        ):
            assert found[name]["severity"] == severity
            assert (found[name]["meaning"], found[name]["remedy"]) == (meaning, remedy)


def test_check_reports_a_host_without_nft() -> None:
    outcome = command.run("check", "--json", under=_over_nft(Path("/dev/null")))
    assert outcome.code == 3
    found = {finding["name"]: finding for finding in outcome.events}
    assert found["nft"]["severity"] == "fatal"
    assert found["nft"]["remedy"] == "install the nftables package"
    assert "can't be read" in found["ruleset"]["meaning"]


@pytest.mark.parametrize("with_namespace", [False, True])
def test_check_reports_missing_privileges(with_namespace: bool) -> None:
    under = ("unshare", "-n", *_WITHOUT_CAPABILITIES) if with_namespace else _WITHOUT_CAPABILITIES
    outcome = command.run("check", "--json", under=under)
    assert outcome.code == 3
    found = {finding["name"]: finding for finding in outcome.events}
    assert found["fence"]["severity"] == "fatal"
    assert "CAP_SYS_ADMIN" in str(found["fence"])
    assert "CAP_NET_ADMIN (install" in found["privileges"]["meaning"]
    assert "can't be read" in found["ruleset"]["meaning"]
    assert "CAP_NET_ADMIN" in found["ruleset"]["remedy"]


def test_check_works_in_a_user_namespace() -> None:
    outcome = command.run(
        "check", "--json", "--proxy", "192.0.2.1:3128",
        under=("unshare", "--user", "--map-root-user", "--net"),
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    found = {finding["name"]: finding["severity"] for finding in outcome.events}
    assert found["fence"] == "ok"
    assert found["accepted"] == "ok"


def test_check_names_a_limit_that_forbids_new_namespaces() -> None:
    script = 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"'
    under = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", script, "sh")
    outcome = command.run("check", "--json", under=under)
    found = {finding["name"]: finding for finding in outcome.events}
    assert found["max-net-namespaces"]["severity"] == "degraded"
    assert found["max-net-namespaces"]["commands"] == ["sysctl -w user.max_net_namespaces=1024"]
    assert found["namespaces"]["severity"] == "degraded"
    assert outcome.code == 3
