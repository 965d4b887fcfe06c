"""Text about an installed fence, for people."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.fence.state import InstalledFence


def sentence(installed: InstalledFence) -> str:
    """Return one sentence for people that describes a fence.

    For example: "sandbox agent is fenced; refused packets are logged to nflog".
    """
    sandbox, transport = installed.spec.sandbox, installed.transport
    record = "counted, and not logged" if transport == "none" else f"logged to {transport}"
    if installed.spec.is_permissive:
        return (
            f"sandbox {sandbox} has a permissive fence: it refuses nothing; the packets that it "
            f"would refuse are {record}"
        )
    return f"sandbox {sandbox} is fenced; refused packets are {record}"


def summary(installed: InstalledFence, options: Sequence[str]) -> Iterator[str]:
    """Yield lines of text for people about a fence: what it does, its tables, what it allows.

    The last lines are commands to run next. ``options`` are command-line options to add to these
    commands, such as ``--state-dir`` with the fence's state directory.
    """
    yield sentence(installed)
    spec = installed.spec
    yield f"  namespace: {visible(str(installed.namespace))}"
    yield f"  tables: {', '.join(map(visible, installed.listings))}"
    if spec.tap is not None:
        yield f"  VM behind: {spec.tap.device}"
    if spec.proxies:
        yield f"  proxy: {', '.join(map(str, spec.proxies))}"
    if spec.proxy_uids:
        yield f"  users of the proxy: {', '.join(map(str, spec.proxy_uids))}"
    if spec.exceptions:
        exceptions = (f"{each.protocol}:{each}" for each in spec.exceptions)
        yield f"  also allowed: {', '.join(exceptions)}"
    named = shlex.join(["--sandbox", spec.sandbox, *options])
    packet = "packet that it would refuse" if spec.is_permissive else "refused packet"
    yield f"  next: ocsf-nft run {named}     reports each {packet}"
    yield f"        ocsf-nft remove {named}  removes the fence"
