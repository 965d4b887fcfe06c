"""What a host can do, what stands in a fence's way there, and what to do about it.

Nothing is changed by looking. Rules are judged by walking packets through them, three-valued: what
can't be told is told as such.
"""

from __future__ import annotations

import ipaddress
import sys
from typing import TYPE_CHECKING

from ocsf_nft.check import (
    attribution_methods,
    bypass_paths,
    capabilities,
    conflicting_services,
    devices,
    diagnosis,
    kernel_features,
    leftovers,
    read_ruleset,
    sysctls,
)
from ocsf_nft.check.accepted_flows import INTERNET
from ocsf_nft.check.diagnosis import Question
from ocsf_nft.check.finding import Finding, Place, Severity, verdict
from ocsf_nft.errors import OcsfNftError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.check.devices import Device
    from ocsf_nft.fence.values import Address, Endpoint, Subnet
    from ocsf_nft.netns import Namespace

__all__ = [
    "Finding",
    "Place",
    "Question",
    "Severity",
    "blocking",
    "findings",
    "question",
    "remove_leftovers",
    "verdict",
]


def question(
    namespace: Namespace,
    *,
    device: str | None,
    subnets: tuple[Subnet, ...] = (),
    port: int,
    proxies: tuple[Endpoint, ...] = (),
) -> Question:
    """What is asked about a namespace, with what its routes say about it."""
    internet: dict[int, Address] = {
        4: ipaddress.IPv4Address(INTERNET[4]),
        6: ipaddress.IPv6Address(INTERNET[6]),
    }
    towards = devices.uplinks(
        namespace, {number: proxy.address for number, proxy in enumerate(proxies)}
    )
    return Question(
        namespace=namespace,
        device=device,
        subnets=subnets,
        port=port,
        proxies=proxies,
        uplinks=devices.uplinks(namespace, internet),
        links={proxies[number]: name for number, name in towards.items()},
    )


def findings(asked: Question) -> Iterator[Finding]:
    """Everything that is worth knowing before something is fenced, in order of weight.

    Raises AbsentError or UnsupportedError when the namespace can't be entered.
    """
    if sys.platform != "linux":
        yield Finding(
            name="system",
            severity="fatal",
            meaning=f"nftables needs Linux: on {sys.platform} only convert and explain work",
        )
        return
    asked.namespace.identity()
    yield from kernel_features.able()
    if asked.device is not None:
        yield from kernel_features.able_with_machines(is_wanted=not asked.device.endswith("*"))
    yield from capabilities.privileges()
    yield from attribution_methods.naming(asked.namespace)
    try:
        ruleset, around = read_ruleset.read(asked.namespace), _around(asked)
    except OcsfNftError as error:
        yield _unread(error)
    else:
        yield from diagnosis.judge(ruleset, asked)
        yield from bypass_paths.ways_past(ruleset, around, asked)
        yield from leftovers.told(leftovers.leftovers(ruleset, around, asked))
    yield from conflicting_services.services()
    yield from sysctls.settings(asked)


def blocking(asked: Question) -> tuple[Finding, ...]:
    """What would keep a VM or a sandbox from what its fence accepts, and nothing else.

    For who is about to install one. Needs CAP_NET_ADMIN over the namespace; where the rules can't
    be read, that is the one finding.
    """
    try:
        ruleset = read_ruleset.read(asked.namespace)
    except OcsfNftError as error:
        return (_unread(error),)
    return tuple(
        finding for finding in diagnosis.judge(ruleset, asked) if finding.severity == "blocked"
    )


def remove_leftovers(asked: Question) -> Iterator[tuple[leftovers.Leftover, str | None]]:
    """Remove what an older set-up left; each with why it was not removed, or None.

    Raises UnsupportedError when the rules can't be read.
    """
    ruleset = read_ruleset.read(asked.namespace)
    found = leftovers.leftovers(ruleset, _around(asked), asked)
    yield from leftovers.remove(found, asked.namespace)


def _unread(error: OcsfNftError) -> Finding:
    cause, _, remedy = str(error).partition(": ")
    return Finding(
        name="ruleset",
        severity="blocked",
        meaning=f"the rules here can't be read, so what they drop isn't known ({cause})",
        remedy=remedy or None,
    )


def _around(asked: Question) -> Mapping[str, Device]:
    try:
        return devices.survey(asked.namespace)
    except OSError as error:
        raise OcsfNftError(f"the interfaces can't be listed: {error.strerror or error}") from error
