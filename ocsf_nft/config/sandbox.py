"""What a file says of a sandbox."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import FileName, Table, checked
from ocsf_nft.errors import UsageError
from ocsf_nft.fence import values
from ocsf_nft.fence.spec import DEFAULT_GROUP, FenceSpec, LogTransport, Profile, Tap
from ocsf_nft.fence.values import Endpoint, Subnet
from ocsf_nft.netns import Namespace, named, of_process
from ocsf_nft.process import Container

SourceName: TypeAlias = Literal["auto", "nflog", "kmsg", "journal"]
#: The transport that a fence must log by, for its records to be where a source reads.
_WRITTEN_BY: Final[dict[SourceName, LogTransport]] = {
    "nflog": "nflog",
    "kmsg": "kmsg",
    "journal": "kmsg",
}
#: What a profile needs besides a name, and what is another profile's.
_NEEDED: Final[dict[Profile, tuple[str, ...]]] = {
    "sandbox": ("proxy",),
    "sidecar": ("proxy_uid",),
    "tap": ("device", "subnet", "gateway_port"),
}
_OTHERS: Final[dict[Profile, tuple[str, ...]]] = {
    "sandbox": ("proxy_uid", "device", "subnet", "gateway_port", "mac"),
    "sidecar": ("device", "subnet", "gateway_port", "mac", "host_guard"),
    "tap": ("proxy", "proxy_uid", "host_guard"),
}
_Text = Annotated[str, Field(min_length=1, max_length=256)]


class ContainerConfig(Table):
    """The container that a sandbox is, ``[sandbox.container]``: as its runtime calls it."""

    uid: _Text | None = None
    name: _Text | None = None
    runtime: _Text | None = None
    image_uid: _Text | None = None
    image_name: _Text | None = None

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if self.uid is None and self.name is None:
            raise ValueError("must have a uid or a name")
        if self.image_name is not None and self.image_uid is None:
            raise ValueError("has an image_name without an image_uid: give both")
        return self


class SandboxConfig(Table):
    """One sandbox to watch, ``[[sandbox]]`` in the file.

    ``netns`` is a name of ``ip netns`` or a path, ``pid`` a process that lives in the namespace;
    with neither it is the one that this process lives in. Of a VM it is its host's. ``transport``
    is how the fence logs, ``source`` where its records are read from; ``auto`` takes the best that
    there is. ``proxy_uid`` are the proxy's users where it lives in the same namespace; ``device``,
    ``subnet`` (the gateway's address in it), ``gateway_port`` and ``mac`` are a VM's. Without
    ``self_heal`` a fence that others alter is told of, and not put back; with ``own`` no other
    process can alter the tables of one that is installed so, while a run watches it.
    """

    name: Annotated[str, checked(values.sandbox_name)]
    profile: Profile = "sandbox"
    netns: Annotated[str, FileName] | None = None
    pid: Annotated[int, Field(gt=0)] | None = None
    proxy: tuple[Annotated[Endpoint, checked(values.endpoint)], ...] = ()
    allow: tuple[Annotated[Endpoint, checked(values.exception)], ...] = ()
    host_guard: Annotated[str, checked(values.device_name)] | None = None
    proxy_uid: tuple[Annotated[int, Field(ge=0, lt=0xFFFFFFFF)], ...] = ()
    device: Annotated[str, checked(values.device_name)] | None = None
    subnet: tuple[Annotated[Subnet, checked(values.subnet)], ...] = ()
    gateway_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    mac: Annotated[str, checked(values.mac)] | None = None
    permissive: bool = False
    exclusive: bool = False
    group: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_GROUP
    transport: Literal["auto", "nflog", "kmsg", "none"] = "auto"
    source: SourceName = "auto"
    install: bool = False
    self_heal: bool = True
    container: ContainerConfig | None = None

    @property
    def namespace(self) -> Namespace | None:
        """The namespace that is named, None when none is."""
        if self.netns is not None:
            return named(self.netns)
        return None if self.pid is None else of_process(self.pid)

    @property
    def log_transport(self) -> LogTransport | None:
        """The transport that is asked for, None for the best."""
        return None if self.transport == "auto" else self.transport

    @property
    def is_container(self) -> Container | None:
        """The container that it is, None when nobody says so."""
        return None if self.container is None else Container(**self.container.model_dump())

    def spec(self) -> FenceSpec:
        """The fence that is asked for; raises UsageError where its profile can't do with it."""
        option = {"proxy": "--proxy ADDR:PORT", "subnet": "--subnet CIDR"}
        for name in _NEEDED[self.profile]:
            if not getattr(self, name):
                wanted = option.get(name, f"--{name.replace('_', '-')}")
                raise UsageError(f"a fence of profile {self.profile} needs {wanted}")
        for name in _OTHERS[self.profile]:
            if getattr(self, name):
                raise UsageError(
                    f"--{name.replace('_', '-')} is nothing for a fence of profile "
                    f"{self.profile}: leave it out"
                )
        return FenceSpec(
            sandbox=self.name,
            proxies=(*self.proxy, *self._gateways),
            exceptions=self.allow,
            proxy_uids=self.proxy_uid,
            tap=self._tap,
            group=self.group,
            guard_device=self.host_guard,
            is_permissive=self.permissive,
            is_owned=self.exclusive,
        )

    @property
    def _gateways(self) -> tuple[Endpoint, ...]:
        if self.gateway_port is None:
            return ()
        return tuple(Endpoint("tcp", subnet.ip, self.gateway_port) for subnet in self.subnet)

    @property
    def _tap(self) -> Tap | None:
        if self.device is None:
            return None
        return Tap(device=self.device, subnets=self.subnet, mac=self.mac)

    def check(self) -> None:
        """Raises an OcsfNftError where what is asked for contradicts itself."""
        if self.netns is not None and self.pid is not None:
            raise UsageError(f"sandbox {self.name} has both netns and pid: give one")
        if self.install:
            self.spec()
        written = _WRITTEN_BY.get(self.source)
        if written is not None and self.log_transport not in {None, written}:
            raise UsageError(
                f"sandbox {self.name} has source {self.source}, where a fence with transport "
                f"{self.transport} logs nothing: give transport {written}, or leave it out"
            )
