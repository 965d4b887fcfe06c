"""Numbers of the kernel in the package, compared with the kernel's own headers."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import ocsf_nft
from ocsf_nft.attribution import socket_holders
from ocsf_nft.check import xtables

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

_HEADERS: Final = (
    "sched.h", "linux/capability.h", "linux/icmp.h", "linux/icmpv6.h", "linux/if.h",
    "linux/if_ether.h", "linux/if_link.h", "linux/if_tun.h", "linux/inet_diag.h", "linux/kcmp.h",
    "linux/magic.h", "linux/memfd.h", "linux/netfilter.h", "linux/netfilter/nf_tables.h",
    "linux/netfilter/nfnetlink.h", "linux/netfilter/nfnetlink_log.h", "linux/netfilter_ipv4.h",
    "linux/netlink.h",
    "linux/nsfs.h", "linux/prctl.h", "linux/rtnetlink.h", "linux/sock_diag.h", "linux/sockios.h",
    "sys/socket.h",
)  # fmt: skip
_DEFINED: Final = re.compile(r"^(_?([A-Z][A-Z0-9_]{5,})): Final = [0-9]", re.MULTILINE)
_PACKAGE: Final = Path(ocsf_nft.__file__).parent


def _constants() -> Iterator[tuple[str, str, str]]:
    """Yield module, name and name without prefix of each number that may be the kernel's."""
    for path in sorted(_PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts)
        for name, plain in _DEFINED.findall(path.read_text("utf-8")):
            yield module, name, plain


def _in_the_headers(names: set[str], folder: Path) -> dict[str, int]:
    """Return the values of the names that the headers define."""
    includes = "#define _GNU_SOURCE\n" + "".join(f"#include <{each}>\n" for each in _HEADERS)
    expanded = subprocess.run(
        ["cc", "-E", "-dD", "-"], input=includes, capture_output=True, text=True, check=True
    ).stdout
    defined = sorted(names & set(re.findall(r"\w+", expanded)))
    prints = "".join(f'printf("{name} %lld\\n", (long long){name});\n' for name in defined)
    program = folder / "numbers"
    source = f"{includes}#include <stdio.h>\nint main(void) {{\n{prints}return 0;\n}}\n"
    command = ["cc", "-x", "c", "-o", str(program), "-"]
    subprocess.run(command, input=source, text=True, check=True)
    shown = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in map(str.split, shown.splitlines())}


def test_constants_with_a_name_of_the_kernel_have_its_value(tmp_path: Path) -> None:
    ours = list(_constants())
    kernel = _in_the_headers({plain for _, _, plain in ours}, tmp_path)
    compared = [each for each in ours if each[2] in kernel]
    assert len(compared) > 160
    wrong = [
        (module, name)
        for module, name, plain in compared
        if getattr(importlib.import_module(module), name) != kernel[plain]
    ]
    assert wrong == []


def test_tables_of_iptables_have_the_priorities_of_the_kernel(tmp_path: Path) -> None:
    tables = {"raw": "RAW", "mangle": "MANGLE", "filter": "FILTER", "security": "SECURITY"}
    chains = {"PREROUTING": "DST", "OUTPUT": "DST", "INPUT": "SRC", "POSTROUTING": "SRC"}
    expected = {
        **{(table, "INPUT"): f"NF_IP_PRI_{name}" for table, name in tables.items()},
        **{("nat", chain): f"NF_IP_PRI_NAT_{name}" for chain, name in chains.items()},
    }
    kernel = _in_the_headers(set(expected.values()), tmp_path)
    for (table, chain), name in expected.items():
        base = xtables._base(table, chain, "ACCEPT")
        assert base is not None
        assert base.priority == kernel[name], (table, chain)


def test_number_of_kcmp_is_that_of_each_architecture() -> None:
    generic = Path("/usr/include/asm-generic/unistd.h").read_text("ascii")
    command = ["cc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", os.devnull]
    own = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, ours = (int(re.findall(r"__NR_kcmp (\d+)", text)[0]) for text in (generic, own))
    assert socket_holders._KCMPS["aarch64"] == socket_holders._KCMPS["riscv64"] == found
    assert ours == socket_holders._KCMP
