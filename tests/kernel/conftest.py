from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import lab as laboratory
from ocsf_nft.fence import installer
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import InstalledFence, StateDirectory
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import GATEWAY4, GATEWAY6, PROXY_PORT, Lab
from tests.kernel import attempts, command, kernel_log, namespaces, tap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.netns import Namespace

SANDBOX = "lab"
_IPV6 = Path("/proc/sys/net/ipv6/conf")


@pytest.fixture(autouse=True)
def _patient_stops() -> Iterator[None]:
    """Let a run that is a fork of this process take long for its stop."""
    with pytest.MonkeyPatch.context() as patch:  # a test may undo its own patches
        for name, value in command.LONG_STOP.items():
            patch.setattr(name, value)
        yield


@pytest.fixture
def lab() -> Iterator[Lab]:
    with laboratory.throwaway() as made:
        yield made


@pytest.fixture
def made() -> Iterator[tuple[str, ...]]:
    """Yield the names of three namespaces that exist."""
    with namespaces.names(3) as found:
        for name in found:
            namespaces.make(name)
        yield found


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state")


@pytest.fixture
def spec() -> FenceSpec:
    return FenceSpec(
        sandbox=SANDBOX,
        proxies=(endpoint(f"{GATEWAY4}:{PROXY_PORT}"), endpoint(f"[{GATEWAY6}]:{PROXY_PORT}")),
    )


@pytest.fixture
def fenced(lab: Lab, spec: FenceSpec, state: StateDirectory) -> Lab:
    """Fence the sandbox of the lab, with NFLOG as the transport."""
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    return lab


@pytest.fixture
def installed(fenced: Lab, state: StateDirectory) -> InstalledFence:
    """Return the fence of a lab with IPv4 only, where just the packets of the test are refused."""
    fenced.sandbox_namespace.call(without_ipv6)
    found = state.read(SANDBOX)
    assert found is not None
    return found


def without_ipv6() -> None:
    """Turn off IPv6 in the thread's namespace, so that it sends no multicast packets by itself.

    When the kernel leaves its multicast groups, it reports so twice within some milliseconds
    (:func:`lab.set_sysctls`).
    """
    for scope in ("all", "default"):
        (_IPV6 / scope / "disable_ipv6").write_text("1", encoding="ascii")
    time.sleep(0.05)


@pytest.fixture
def site() -> Iterator[tap.Site]:
    """Yield a host with VMs and a simulated internet."""
    with tap.site() as made:
        yield made


@pytest.fixture
def machine(site: tap.Site) -> Iterator[tap.Machine]:
    """Yield a VM of the host, with its TAP device."""
    with tap.machine(site) as plugged:
        yield plugged


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a library that hides a feature of the kernel; see without.c."""
    library = tmp_path_factory.mktemp("shim") / "without.so"
    compiler = shutil.which("cc")
    assert compiler is not None
    source = Path(__file__).with_name("without.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.fixture
def sandbox() -> str:
    """Return a unique name: all tests of the machine share its kernel log and its records."""
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def namespace(lab: Lab, sandbox: str) -> Iterator[Namespace]:
    """Yield the lab's sandbox; its attempts are refused, and logged by NFLOG and the kernel log."""
    with kernel_log.of_all_namespaces():
        attempts.fence(lab.sandbox_namespace, sandbox, nflog=True, kmsg=True)
        yield lab.sandbox_namespace


@pytest.fixture
def counters() -> Callable[[Namespace], dict[str, int]]:
    """Return a function that reads the named nftables counters of a namespace, in packets."""

    def read(namespace: Namespace) -> dict[str, int]:
        listed = nft(namespace, "-j", "-t", "list", "counters")
        return {
            entry["counter"]["name"]: entry["counter"]["packets"]
            for entry in json.loads(listed)["nftables"]
            if "counter" in entry
        }

    return read


def nft(namespace: Namespace, *arguments: str) -> str:
    """Run nft in a namespace, for commands that the package does not have."""
    done = namespace.call(
        lambda: subprocess.run(["nft", *arguments], capture_output=True, text=True, check=True)
    )
    return done.stdout


def load(namespace: Namespace, ruleset: str) -> None:
    """Load a ruleset that is too long for a command line."""
    namespace.call(lambda: subprocess.run(["nft", "-f", "-"], input=ruleset, text=True, check=True))


def fresh_budgets(namespace: Namespace) -> None:
    """Reset the log budgets of all flows of the rule `egress`.

    The kernel joins multicast groups when a device comes up; its reports use those budgets.
    """
    for family in "46":
        nft(namespace, "flush", "set", "inet", "ocsf_nft", f"logged{family}_egress")


def counted(namespace: Namespace) -> Counter[str]:
    """Return the packets in the elements of the rule `egress`, by destination."""
    found: Counter[str] = Counter()
    for name in ("flows4_egress", "flows6_egress"):
        listed = json.loads(nft(namespace, "-j", "list", "set", "inet", "ocsf_nft", name))
        for element in listed["nftables"][1]["set"].get("elem", ()):
            _uid, _protocol, address, _port = element["elem"]["val"]["concat"]
            found[address] += element["elem"]["counter"]["packets"]
    return found
