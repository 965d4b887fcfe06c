"""Container and systemd unit of a process, from the names of its cgroups.

Processes can create cgroups with false names. So only the top of a path is trusted, down to the
first container or unit.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.process import Container

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Placement(NamedTuple):
    """Container and systemd unit of a process; None for a value that is absent or unknown."""

    container: Container | None = None
    #: Such as ``ssh.service``; ``user@1000.service/NAME`` for a unit of a user's systemd manager.
    #: Never the scope that a runtime made for the container itself, such as ``docker-….scope``.
    unit: str | None = None


_ID: Final = r"(?P<id>[0-9a-f]{64})"
_POD_ID: Final = (
    r"pod(?P<pod>[0-9a-f]{8}(?P<dash>[-_])(?:[0-9a-f]{4}(?P=dash)){3}[0-9a-f]{12}"
    r"|[0-9a-f]{32})"  # a static pod, which the kubelet read from a file
)
#: Names of the runtimes, by the prefix of their containers' cgroups. The monitors beside these
#: (``crio-conmon-…``, ``libpod-conmon-…``) are processes of the host.
_RUNTIMES: Final = {
    "cri-containerd": "containerd",
    "crio": "cri-o",
    "docker": "docker",
    "libpod": "podman",
    "nerdctl": "containerd",
}
_NAMED: Final = re.compile(rf"(?P<by>{'|'.join(_RUNTIMES)})-{_ID}(?:\.scope)?")
_NUMBER: Final = re.compile(_ID)
#: Cgroup that runc makes of systemd's notation, if it is not configured to use systemd.
_COLONS: Final = re.compile(rf"(?P<slice>[^:]+\.slice):(?P<by>{'|'.join(_RUNTIMES)}):{_ID}")
#: Cgroup that Podman makes inside the unit that starts it (``--cgroups=split``).
_SPLIT: Final = re.compile(rf"libpod-payload-{_ID}")
_LXC: Final = re.compile(r"lxc\.payload\.(?P<name>.+)")
_NSPAWN: Final = re.compile(r"machine-(?P<scope>.+)\.scope|systemd-nspawn@(?P<service>.+)\.service")
_POD: Final = re.compile(_POD_ID)
_POD_SLICE: Final = re.compile(rf"(?:.+-)?kubepods(?:-burstable|-besteffort)?-{_POD_ID}\.slice")
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(?:service|scope|socket|mount|swap)")
#: Unit above rootless containers, in which the user may create any cgroup. These containers are
#: reported, although their names can be false. Their ``Placement.unit`` begins with this unit.
_USER_MANAGER: Final = re.compile(r"user@[0-9]+\.service")
#: Below their own units, runtimes put containers as they do at the top.
_RUNTIME_SERVICE: Final = re.compile(
    r"(?:containerd|crio|docker|k0s(?:controller|worker)|k3s(?:-agent)?|kubelet|rke2-(?:agent|server))"
    r"\.service"
)
_ESCAPED: Final = re.compile(r"\\x([0-9a-f]{2})")


class _Found(NamedTuple):
    """Container in a cgroup path, and the number of path parts above the container (``above``)."""

    container: Container
    above: int


def parse_cgroups(cgroup_text: str) -> Placement:
    """Return container and systemd unit from the content of /proc/PID/cgroup (cgroup v1 or v2)."""
    # In a cgroup namespace, paths lack all units above the namespace's root: these units are not
    # reported.
    paths = dict(_paths(cgroup_text))
    found = {controllers: _container(names) for controllers, names in paths.items()}
    # Runtimes skip some hierarchies, and never put a process into two containers.
    containers = {one.container for one in found.values() if one is not None}
    hierarchy = "name=systemd" if "name=systemd" in paths else ""
    names, one = paths.get(hierarchy, ()), found.get(hierarchy)
    return Placement(
        container=containers.pop() if len(containers) == 1 else None,
        unit=_unit(names if one is None else names[: one.above]),
    )


def _paths(text: str) -> Iterator[tuple[str, Sequence[str]]]:
    # No name contains a newline: the kernel makes no such cgroup.
    for line in text.split("\n"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.startswith("/"):
            # A zombie may be in a cgroup that was removed.
            yield controllers, tuple(_split(path.removesuffix(" (deleted)")))


def _split(path: str) -> Iterator[str]:
    for name in filter(None, path.split("/")):
        if (both := _COLONS.fullmatch(name)) is not None:
            yield both["slice"]
            yield f"{both['by']}-{both['id']}.scope"
        else:
            yield name


def _container(names: Sequence[str]) -> _Found | None:
    # Root in a container can create a `docker-<64 digits>.scope`, and move into it. So only the
    # first container from the top is trusted: the host's runtime made it, except below
    # `_USER_MANAGER`. For Docker in Docker, it is the container of the outer Docker.
    unit = pod = None
    for at, name in enumerate(names):
        above = names[:at]
        if unit is None:
            container = _of_a_runtime(name, above, pod) or _of_a_unit(name, above)
        elif unit == above[-1]:
            # Below any unit but a runtime's: only the containers of Podman and systemd-nspawn.
            container = _of_a_unit(name, above)
        else:  # deeper below a unit, no container is trusted
            return None
        if container is not None:
            return _Found(container, at)
        pod = pod or _pod(name, above)
        own = _unit_of(name)
        if own is not None and not (
            _USER_MANAGER.fullmatch(own) or _RUNTIME_SERVICE.fullmatch(own)
        ):
            unit = unit or name
    return None


def _of_a_runtime(name: str, above: Sequence[str], pod: str | None) -> Container | None:
    if (match := _NAMED.fullmatch(name)) is not None:
        return Container(uid=match["id"], runtime=_RUNTIMES[match["by"]], pod_uid=pod)
    if _NUMBER.fullmatch(name):  # used by containerd, Docker and others, below any cgroup
        runtime = "docker" if above[-1:] == ("docker",) else None
        return Container(uid=name, runtime=runtime, pod_uid=pod)
    if (match := _LXC.fullmatch(name)) is not None:
        return Container(name=match["name"], runtime="lxc")
    if above == ("lxc",):  # before LXC 4, and still in Proxmox
        return Container(name=name, runtime="lxc")
    return None


def _of_a_unit(name: str, above: Sequence[str]) -> Container | None:
    if (match := _SPLIT.fullmatch(name)) is not None:
        return Container(uid=match["id"], runtime="podman")
    if name == "payload" and above and (match := _NSPAWN.fullmatch(above[-1])) is not None:
        machine = match["scope"] or match["service"]
        machine = _ESCAPED.sub(lambda escaped: chr(int(escaped[1], 16)), machine)
        return Container(name=machine, runtime="systemd-nspawn")
    return None


def _pod(name: str, above: Sequence[str]) -> str | None:
    match = _POD_SLICE.fullmatch(name)
    if match is None and "kubepods" in above:
        match = _POD.fullmatch(name)
    return None if match is None else match["pod"].replace("_", "-")


def _unit(names: Sequence[str]) -> str | None:
    """Return the systemd unit in the parts of a cgroup path, as systemd's cg_path_get_unit does.

    Return None if there is no unit. A unit of a user's systemd manager becomes
    ``user@1000.service/NAME``.
    """
    unit, below = _first_unit(names)
    if unit is None or not _USER_MANAGER.fullmatch(unit):
        return unit
    own, _ = _first_unit(below)
    return unit if own is None else f"{unit}/{own}"


def _first_unit(names: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Return the systemd unit in a cgroup path, and the parts of the path below the unit.

    If the path has no unit, the first value is None, and the second has no meaning.
    """
    # Only the first part that does not end with `.slice` can be the unit.
    for at, name in enumerate(names):
        if not name.endswith(".slice"):
            return _unit_of(name), names[at + 1 :]
    return None, ()


def _unit_of(name: str) -> str | None:
    # systemd adds an underscore to names that the kernel may use itself (cg_escape).
    unit = name.removeprefix("_")
    return unit if _UNIT.fullmatch(unit) else None
