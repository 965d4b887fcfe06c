"""A complete system for the guest: systemd, its journal, our units, and settings for them.

The machine fences itself with ``ocsf-nft.service``. It also has a sandbox in its own namespace and
a receiver of events, for ``ocsf-nft-host.service``, which a test starts.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft.lab import GATEWAY4, GATEWAY6, PROXY_PORT
from tests.guest import cache, distribution, image, kernel, machine, network
from tests.guest.machine import TIMEOUT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guest.kernel import Kernel
    from tests.guest.machine import Machine
    from tests.guest.network import Network

T = TypeVar("T")

DEPLOYED: Final = cache.PROJECT / "deploy/systemd"
SANDBOX: Final = "vm-9"
EVENTS: Final = "/var/log/ocsf-nft/events.jsonl"
#: The sandbox of the host's unit, its configuration, and the receiver of its events.
AGENT: Final = "agent"
CONFIG: Final = "/etc/ocsf-nft/ocsf-nft.toml"
RECEIVED: Final = "/run/received.jsonl"
TOKEN: Final = "in-etc-credstore"  # noqa: S105 - a guest's own
_PORT: Final = 8088
#: Prefix of copies of the units without drop-ins; the copies are never started.
_UNCHANGED: Final = "as-it-is-"
#: The row of a unit in the guide's table.
_EXPOSURE_ROW: Final = r"^\| `(ocsf-nft[a-z-]*\.service)` \|.*\| ([0-9.]+) \|$"

#: Settings that a user of the units writes.
_PROXIES: Final = f"--proxy {GATEWAY4}:{PROXY_PORT} --proxy [{GATEWAY6}]:{PROXY_PORT}"
_SETTINGS: Final = f"""OCSF_NFT_FENCE="--sandbox {SANDBOX} {_PROXIES} --transport kmsg"
OCSF_NFT_REPORT="--source journal --output {EVENTS}"
"""
HOST_CONFIG: Final = f"""
[[sink]]
type = "http"
url = "http://127.0.0.1:{_PORT}/"
bearer = {{ credential = "ocsf-nft.receiver" }}

[attribution]
wait_ms = 10000  # this machine is emulated
hash_max_bytes = "64MiB"

[[sandbox]]
name = "{AGENT}"
netns = "{AGENT}"
proxy = ["10.9.0.2:3128"]
transport = "nflog"
install = true
"""
LOCAL_EVENTS: Final = "/var/log/ocsf-nft/local.jsonl"
#: Configuration that the host's unit can use without a drop-in.
LOCAL_CONFIG: Final = f"""
sink = [{{ path = "{LOCAL_EVENTS}" }}]

[attribution]
wait_ms = 10000

[[sandbox]]
name = "{AGENT}"
netns = "{AGENT}"
proxy = ["10.9.0.2:3128"]
install = true
"""
#: Drop-in of the host's unit for a user and directories that systemd creates.
DYNAMIC: Final = """[Service]
User=
DynamicUser=yes
StateDirectory=
StateDirectory=ocsf-nft-dynamic
LogsDirectory=
LogsDirectory=ocsf-nft-dynamic
"""
DYNAMIC_EVENTS: Final = "/var/log/ocsf-nft-dynamic/events.jsonl"
DYNAMIC_CONFIG: Final = f"""state_dir = "/var/lib/ocsf-nft-dynamic"
{HOST_CONFIG}
[[sink]]
path = "{DYNAMIC_EVENTS}"
"""
_JOURNAL: Final = "[Service]\nSupplementaryGroups=systemd-journal\n"
#: Python has the same path as on this machine, which may be below a home directory.
_PYTHON: Final = f"""[Service]
ProtectHome=read-only
BindReadOnlyPaths=-{sys.base_prefix}
"""
#: Drop-ins of the host's unit for its sink on the network, and for hashes of programs.
HOST_DROP_INS: Final = ("network.conf", "processes.conf")
#: Shorter than the timeout of a test, and longer than a busy machine holds up the run.
_WATCHDOG: Final = "[Service]\nWatchdogSec=40\n"
#: A unit starts slowly in an emulated machine, and this machine may be busy.
_SLOW: Final = "[Manager]\nDefaultTimeoutStartSec=600\n"
_NETWORK: Final = """[Unit]
Description=The network
DefaultDependencies=no
After=network-pre.target
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c '\\
    echo 0 >/proc/sys/net/ipv6/conf/sb0/accept_dad; \\
    busybox ip link set lo up; busybox ip link set sb0 up; \\
    busybox ip address add 10.200.0.2/24 dev sb0; busybox ip address add fd00:200::2/64 dev sb0; \\
    busybox ip route add default via 10.200.0.1; busybox ip route add default via fd00:200::1'
"""
#: Units of a distribution that no test needs. An emulated machine takes seconds for them.
_MASKED: Final = (
    "dev-hugepages.mount", "dev-mqueue.mount", "getty-static.service", "ldconfig.service",
    "modprobe@configfs.service", "modprobe@drm.service", "modprobe@fuse.service",
    "sys-fs-fuse-connections.mount", "systemd-journal-catalog-update.service",
    "systemd-random-seed.service", "systemd-update-done.service",
)  # fmt: skip
_PROGRAM: Final = f"""Environment=PYTHONPATH=/{image.SITE}:/{image.TESTS}
StandardOutput=journal+console
StandardError=journal+console
ExecStart={Path(sys.executable).resolve()} -m tests.guest.inside."""
_WORKLOAD: Final = f"""[Unit]
Description=The workload
Requires=ocsf-nft.service network.service
After=ocsf-nft.service network.service
[Service]
Type=exec
{_PROGRAM}agent systemd
"""
_RECEIVER: Final = f"""[Unit]
Description=A receiver of events
[Service]
Type=notify
{_PROGRAM}receiver {_PORT} {RECEIVED}
"""


def initramfs(guest_kernel: Kernel, package_layer: Path, folder: Path) -> Path:
    """Build the system, which boots by itself."""
    units = "etc/systemd/system"
    files = {
        # Avoids a first boot, in which systemd would enable every unit.
        "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        # Created now: systemd distrusts a clock that is years ahead of this file. Without this file
        # it compares with its own build time.
        "usr/lib/clock-epoch": "",
        "etc/systemd/system.conf.d/slow.conf": _SLOW,
        "etc/ocsf-nft/fence.env": _SETTINGS,
        CONFIG[1:]: HOST_CONFIG,
        "etc/credstore/ocsf-nft.receiver": f"{TOKEN}\n",
        "usr/lib/sysusers.d/ocsf-nft.conf": _deployed("ocsf-nft.sysusers.conf"),
        "usr/lib/tmpfiles.d/ocsf-nft.conf": _deployed("ocsf-nft.tmpfiles.conf"),
        f"{units}/ocsf-nft.service.d/journal.conf": _JOURNAL,
        f"{units}/ocsf-nft.service.d/python.conf": _PYTHON,
        f"{units}/ocsf-nft-host.service.d/python.conf": _PYTHON,
        f"{units}/ocsf-nft-host.service.d/watchdog.conf": _WATCHDOG,
        f"{units}/network.service": _NETWORK,
        f"{units}/workload.service": _WORKLOAD,
        f"{units}/receiver.service": _RECEIVER,
    }
    for unit in ("ocsf-nft.service", "ocsf-nft-host.service"):
        files[f"{units}/{unit}"] = files[f"{units}/{_UNCHANGED}{unit}"] = _deployed(unit)
    for name in HOST_DROP_INS:
        drop_in = f"ocsf-nft-host.service.d/{name}"
        files[f"{units}/{drop_in}"] = _deployed(f"examples/{drop_in}")
    # As `systemctl enable` creates them.
    links = {f"{units}/{name}": "/dev/null" for name in _MASKED} | {
        f"{units}/sysinit.target.wants/ocsf-nft.service": "../ocsf-nft.service",
        f"{units}/multi-user.target.wants/workload.service": "../workload.service",
    }
    layers = [
        image.busybox(),
        distribution.layer(),
        image.python(),
        _http(folder / "http"),
        package_layer,
        image.modules(folder / "modules", guest_kernel, *kernel.DEVICES, *kernel.FENCE, "veth"),
        image.files(folder / "files", files, links),
    ]
    return image.initramfs(folder, layers)


def _deployed(name: str) -> str:
    return (DEPLOYED / name).read_text(encoding="utf-8")


def _http(folder: Path) -> Path:
    """Build the layer of the extra ``http``."""
    root = folder / "root"
    for name in sorted(image._dependencies("aiohttp") | {"aiohttp"}):
        image._copy_distribution(name, root / image.SITE)
    image.compile_modules(root)
    return image._pack(root, folder)


@contextlib.contextmanager
def booted(
    guest_kernel: Kernel, package_layer: Path, around: Network, folder: Path
) -> Iterator[Machine]:
    """Boot the system, wait until its workload has started, and yield it."""
    with machine.running(
        guest_kernel,
        initramfs(guest_kernel, package_layer, folder),
        around.host_namespace,
        tap=network.TAP,
        command_line=f"rdinit=/{image.TESTS}/tests/guest/inside/systemd-init "
        "systemd.unit=multi-user.target systemd.mask=serial-getty@ttyS0.service "
        "systemd.journald.forward_to_console=1",
        megabytes=1024,
    ) as running:
        running.wait_for_agent(TIMEOUT_SECONDS)
        yield running


def until(what: Callable[[], T | None]) -> T:
    """Call until the result is true; return the result."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (found := what()):
        assert time.monotonic() < deadline, found
        time.sleep(2)
    return found


def shell(guest: Machine, *command: str) -> str:
    """Run a command in the guest and return its output; fail if the command fails."""
    done = guest.ask("shell", *command)
    assert done["code"] == 0, (command, done)
    return str(done["stdout"]).strip()


def show(guest: Machine, unit: str, name: str) -> str:
    """Return a property of a unit."""
    return shell(guest, "systemctl", "show", "--timestamp=us+utc", "-P", name, unit)


def process(guest: Machine, unit: str) -> dict[str, str]:
    """Return the fields of /proc/PID/status of a unit's main process."""
    text = shell(guest, "cat", f"/proc/{show(guest, unit, 'MainPID')}/status")
    return {name: value.strip() for name, _, value in (x.partition(":") for x in text.splitlines())}


def capabilities(guest: Machine, unit: str) -> set[int]:
    """Return the numbers of the capabilities that a unit's main process has or may regain."""
    status = process(guest, unit)
    held = int(status["CapPrm"], 16)
    assert int(status["CapAmb"], 16) == held
    return {number for number in range(64) if held >> number & 1}


def writable_sysctls(guest: Machine, unit: str) -> set[str]:
    """Return the writable mount points of a unit's main process in /proc/sys."""
    mounts = shell(guest, "cat", f"/proc/{show(guest, unit, 'MainPID')}/mountinfo").splitlines()
    # The later one of a mount point is above (proc_pid_mountinfo(5)).
    options = {each.split()[4]: each.split()[5].split(",") for each in mounts}
    found = {path: words for path, words in options.items() if path.startswith("/proc/sys")}
    assert "ro" in found["/proc/sys"]
    return {path for path, words in found.items() if "rw" in words}


def exposure(guest: Machine, unit: str) -> float:
    """Return the exposure of a unit, as the guest's systemd rates it."""
    name = f"{_UNCHANGED}{unit}"
    done = guest.ask("shell", "systemd-analyze", "security", "--no-pager", name)
    found = re.search(rf"exposure level for {re.escape(name)}: ([0-9.]+)", done["stdout"])
    assert found is not None, done
    return float(found[1])


def documented_exposure() -> dict[str, float]:
    """Return the exposure of the units in their guide."""
    guide = (DEPLOYED / "README.md").read_text(encoding="utf-8")
    return {unit: float(score) for unit, score in re.findall(_EXPOSURE_ROW, guide, re.MULTILINE)}
