"""Sandboxes that are added, changed and released by the control API, one by one and at once.

Run only this subject with ``python -m bench.coming_and_going [CYCLES]``. After this number of
cycles of add and release, the service must use no more resources than before.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bench import command, host
from bench.subject import Subject, percentile
from ocsf_nft import netns
from ocsf_nft.control.http_call import call, sandbox_target
from ocsf_nft.fence import verification

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bench.host import Use

_SANDBOXES: Final = 20
_CYCLES: Final = 1_000
#: Limit of the median of a call, one after another, in milliseconds.
_BOUND_MS: Final = 100.0
#: What the service may use more after all cycles.
_MORE_BYTES: Final = 5_000_000
#: Cycles before the first measurement: the store of process details grows to 4,096 processes, of
#: which a cycle has about three. After them a pause: descriptors close.
_WARM_UP: Final = 1_500
_SETTLE_S: Final = 5.0
#: Pause after a namespace was made, in which its watch begins.
_REST_S: Final = 0.5
_SANDBOX: Final = f"""
[[sandbox]]
name = "{{name}}"
netns = "{{name}}"
proxy = ["{host.PROXY}"]
install = true
"""


def run(cycles: int = _CYCLES) -> Subject:
    """Measure calls for 20 sandboxes; raise an OcsfNftError if the system does not permit it."""
    with contextlib.ExitStack() as stack:
        made, folder = stack.enter_context(host.namespaces(_SANDBOXES + 1))
        *names, waiting = made  # not pop(): the namespaces of the list are deleted at the end
        service, control = stack.enter_context(host.service(folder, _SANDBOX.format(name=waiting)))
        rows = []
        failures = []
        for what, one_call in (
            ("add", partial(_put, control)),
            ("set", partial(_put, control, allow=["tcp:203.0.113.7:443"])),
            ("release", partial(_release, control)),
        ):
            each_ms = [_timed_ms(one_call, name) for name in names]
            rows.append(_row(what, each_ms))
            if percentile(each_ms, 50) > _BOUND_MS:
                failures.append(f"the median of {what} is above {_BOUND_MS:.0f} ms")
        rows += _rows_of_many(names, control)
        rows.append(_row("created again, until fenced", list(map(_recreated_ms, [waiting] * 20))))
        _cycle(names, control, _WARM_UP)
        time.sleep(_SETTLE_S)
        before, files = host.use(service), _files(folder)
        _cycle(names, control, cycles)
        time.sleep(_SETTLE_S)
        after = host.use(service)
        left = _left(names, folder, files)
        if left:
            failures.append(f"{cycles} cycles left {left}")
        if after.descriptors > before.descriptors or after.threads > before.threads:
            failures.append("descriptors or threads have grown")
        if after.bytes > before.bytes + _MORE_BYTES:
            failures.append("memory has grown")
    return Subject(
        title="Sandboxes that come and go",
        columns=("call", "p50, ms", "p95, ms", "max, ms"),
        rows=tuple(rows),
        notes=(
            f"{_SANDBOXES} sandboxes, by the control API. At once: all calls at the same time.",
            f"{cycles:,} additions and releases more, both processes together:",
            _growth(before, after),
        ),
        failures=tuple(failures),
    )


def _growth(before: Use, after: Use) -> str:
    return (
        f"{before.descriptors} → {after.descriptors} descriptors, {before.threads} → "
        f"{after.threads} threads, {before.bytes / 1e6:.1f} → {after.bytes / 1e6:.1f} MB."
    )


def _put(control: Path, name: str, **policy: Any) -> None:
    call(control, "PUT", sandbox_target(name), {"netns": name, "proxy": [host.PROXY], **policy})


def _release(control: Path, name: str) -> None:
    call(control, "DELETE", sandbox_target(name))


def _timed_ms(one_call: Callable[[str], None], name: str) -> float:
    began = time.perf_counter()
    one_call(name)
    return 1_000 * (time.perf_counter() - began)


def _recreated_ms(name: str) -> float:
    """Delete and make a namespace; return the time until it is fenced."""
    subprocess.run(["ip", "netns", "delete", name], check=True)
    subprocess.run(["ip", "netns", "add", name], check=True)
    began = time.perf_counter()
    while not verification.is_installed(netns.named(name)):
        time.sleep(0.0005)
    waited = 1_000 * (time.perf_counter() - began)
    time.sleep(_REST_S)
    return waited


def _rows_of_many(names: Sequence[str], control: Path) -> Iterator[tuple[str, ...]]:
    with ThreadPoolExecutor(len(names)) as pool:
        for what, one_call in (("add", _put), ("release", _release)):
            timed = partial(_timed_ms, partial(one_call, control))
            yield _row(f"{what}, all at once", list(pool.map(timed, names)))


def _row(what: str, each_ms: Sequence[float]) -> tuple[str, ...]:
    p50, p95 = (percentile(each_ms, percent) for percent in (50, 95))
    return what, f"{p50:.0f}", f"{p95:.0f}", f"{max(each_ms):.0f}"


def _cycle(names: Sequence[str], control: Path, cycles: int) -> None:
    """Add and release sandboxes, some at the same time."""

    def work(name: str) -> None:
        for _ in range(cycles // len(names)):
            _put(control, name)
            _release(control, name)

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(work, names))


def _files(folder: Path) -> set[str]:
    return {each.name for each in (folder / "state").iterdir()}


def _left(names: Sequence[str], folder: Path, before: set[str]) -> str:
    """Return what cycles have left: files, and tables of nftables; empty if nothing."""
    found = sorted(_files(folder) - before)
    for name in names:
        tables = netns.named(name).call(
            partial(subprocess.check_output, ["nft", "list", "tables"], text=True)
        )
        found += tables.splitlines()
    return ", ".join(found)


if __name__ == "__main__":
    command.run([partial(run, *map(int, sys.argv[1:]))])
