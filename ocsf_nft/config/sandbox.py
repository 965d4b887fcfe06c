"""Configuration tables of a sandbox: ``[[sandbox]]`` and ``[sandbox.container]``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import Field, PlainSerializer, model_validator

from ocsf_nft.config.base_table import FileName, Table, checked
from ocsf_nft.config.events import SeverityConfig
from ocsf_nft.config.labels import Labels, label_texts
from ocsf_nft.errors import UsageError
from ocsf_nft.fence import host_names, values
from ocsf_nft.fence.host_names import Addresses, NamedDestination, NamedProxy, ResolvedName
from ocsf_nft.fence.spec import DEFAULT_GROUP, FenceSpec, LogTransport, Profile, Tap
from ocsf_nft.fence.values import Destination, Endpoint, Subnet
from ocsf_nft.netns import Namespace, named, of_process
from ocsf_nft.ocsf.severity import SeverityRule
from ocsf_nft.process import Container

SourceName: TypeAlias = Literal["auto", "nflog", "kmsg", "journal"]
#: The log transport that a fence needs for each source.
_TRANSPORT_OF_SOURCE: Final[dict[SourceName, LogTransport]] = {
    "nflog": "nflog",
    "kmsg": "kmsg",
    "journal": "kmsg",
}
#: Keys that a profile needs besides a name, and keys of other profiles.
_NEEDED: Final[dict[Profile, tuple[str, ...]]] = {
    "sandbox": ("proxy",),
    "sidecar": ("proxy_uid",),
    "tap": ("device", "subnet", "gateway_port"),
}
_OTHERS: Final[dict[Profile, tuple[str, ...]]] = {
    "sandbox": ("proxy_uid", "device", "subnet", "gateway_port", "mac", "strict"),
    "sidecar": ("device", "subnet", "gateway_port", "mac", "strict", "host_guard"),
    "tap": ("proxy", "proxy_uid", "host_guard", "whole_machine"),
}
#: Values of ``host_guard`` that name no device.
_NO_DEVICE: Final = frozenset({"auto", "off"})
#: Most host names of a sandbox: each has up to 32 addresses.
_MAX_NAMES: Final = 32
_Text = Annotated[str, Field(min_length=1, max_length=256)]
#: No text is converted to a boolean, and below to a number: the control API refuses it.
_Flag = Annotated[bool, Field(strict=True)]
#: Forms of values in :meth:`SandboxConfig.given`, as in a file.
_AS_TEXT: Final = PlainSerializer(str, return_type=str)


class ContainerConfig(Table):
    """Names of the sandbox's container, table ``[sandbox.container]`` in the file.

    The table is for a sandbox that is a container. It has the names that the container runtime uses
    for the container. Events about the sandbox contain these names. ``uid`` is the container's id
    in the runtime. A ``uid`` or a ``name`` is required.
    """

    uid: _Text | None = None
    """Identifier of the container."""
    name: _Text | None = None
    """Name of the container."""
    runtime: _Text | None = None
    """Name of the runtime."""
    image_uid: _Text | None = None
    """Identifier of the image."""
    image_name: _Text | None = None
    """Name of the image; needs image_uid."""
    pod_uid: _Text | None = None
    """UID of the Kubernetes pod of the container."""
    orchestrator: _Text | None = None
    """Name of the program that starts the container, such as kubernetes."""
    labels: Labels = Field(default_factory=dict)
    """Labels of the container, at most 32, such as { team = "search" }."""

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if self.uid is None and self.name is None:
            raise ValueError("must have a uid or a name")
        if self.image_name is not None and self.image_uid is None:
            raise ValueError("has an image_name without an image_uid: give both")
        return self


class SandboxConfig(Table):
    """Sandbox to watch, table ``[[sandbox]]`` in the file.

    ``profile`` is the kind of fence. The profile ``sandbox`` is for a network namespace. The
    profile ``sidecar`` is for a network namespace in which the proxy also runs, such as a pod. The
    profile ``tap`` is for a VM. A proxy is a program through which the sandbox may reach the
    internet.

    With ``install``, `ocsf-nft run` installs the fence. Without ``install``, `ocsf-nft run` watches
    a fence that is already installed.

    ``netns`` (an ``ip netns`` name or a path) or ``pid`` (a process) selects the network namespace.
    For a VM, select the network namespace of the VM's host. With ``install``, the default is the
    namespace of `ocsf-nft run`. Without ``install``, it is the namespace of the installed fence.

    Without ``whole_machine``, no new fence is installed in the initial network namespace: it would
    enclose the whole machine.

    ``transport`` is how the kernel logs the packets that the fence refuses: ``nflog`` (netlink),
    ``kmsg`` (kernel log) or ``none``. ``source`` is where `ocsf-nft run` reads these log records:
    ``nflog``, or for the kernel log ``kmsg`` or ``journal`` (systemd's journal). If both are
    ``auto`` (the default), the fence uses the first of the three log transports that works on the
    host. The source is then the one with the same name as the log transport.

    ``proxy_uid`` is for the profile ``sidecar``. It has the ids of the users that run the proxy.
    The fence allows all packets of these users.

    Five keys are for the profile ``tap``. ``device`` is the VM's TAP device on the host, and
    ``mac`` the VM's MAC address. ``subnet`` is the gateway's address with the prefix length, and
    ``gateway_port`` the proxy's port on this address. With ``strict``, the VM reaches this port,
    the destinations in ``allow``, and nothing else. Without ``strict`` (the default), the VM also
    reaches the internet and the networks of its host without the proxy.

    ``host_guard`` is for the profile ``sandbox``: a further table on the host, on the host's end of
    the sandbox's veth pair, blocks what bypasses the fence inside. With ``auto`` (the default) the
    device is found if it is in the network namespace of `ocsf-nft run`. With ``off`` there is no
    such table.

    If another process changes the fence, `ocsf-nft run` reports that. With ``self_heal`` (the
    default), it also restores the fence. With ``exclusive``, no other process can change the tables
    of the fence while `ocsf-nft run` watches the fence.

    ``proxy`` and ``allow`` may have host names, with ``install``: `ocsf-nft run` resolves them, and
    replaces their addresses in the fence when they change.
    """

    name: Annotated[str, checked(values.sandbox_name)]
    """Name of the sandbox: 1 to 64 letters, digits, dots, dashes or underscores."""
    profile: Profile = "sandbox"
    """What is fenced: a namespace; one that also has the proxy; a VM, on its host."""
    netns: Annotated[str, FileName] | None = None
    """Network namespace: an `ip netns` name or a path."""
    pid: Annotated[int, Field(strict=True, gt=0)] | None = None
    """A process in the network namespace; not with netns."""
    proxy: tuple[Annotated[Endpoint | NamedProxy, checked(host_names.proxy), _AS_TEXT], ...] = ()
    """Proxies that the sandbox may reach, as ADDR:PORT or NAME:PORT."""
    allow: tuple[
        Annotated[Destination | NamedDestination, checked(host_names.exception), _AS_TEXT], ...
    ] = ()
    """Other destinations that the sandbox may reach, such as tcp:10.0.0.0/8:443,
    udp:[fd00::1]:5000-5010 or tcp:api.example.com:443."""
    host_guard: Annotated[str, checked(values.device_name)] = "auto"
    """Guard on the host's end of the veth pair: auto (find it), off, or the device."""
    proxy_uid: tuple[Annotated[int, Field(strict=True, ge=0, lt=0xFFFFFFFF)], ...] = ()
    """Users of the proxy, whose traffic may leave. Profile sidecar only."""
    device: Annotated[str, checked(values.device_name)] | None = None
    """TAP device of the VM. Profile tap only."""
    subnet: tuple[Annotated[Subnet, checked(values.subnet), _AS_TEXT], ...] = ()
    """The gateway's address in the VM's subnet, as CIDR. Profile tap only."""
    gateway_port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = None
    """Port of the proxy on the gateway's address. Profile tap only."""
    mac: Annotated[str, checked(values.mac)] | None = None
    """Link address of the VM; by default the first one that it sends from."""
    strict: _Flag = False
    """Let the VM reach the gateway's port, the exceptions, and nothing else. If false, it also
    reaches the internet and the host's networks, without the proxy. Profile tap only."""
    whole_machine: _Flag = False
    """Allow a new fence around the initial network namespace: this whole machine, or this VM from
    inside. Its connections that the fence does not allow end, such as SSH."""
    permissive: _Flag = False
    """Refuse nothing, and report the packets that would be refused."""
    exclusive: _Flag = False
    """Let no other process change the tables while a run watches (Linux 6.9)."""
    group: Annotated[int, Field(strict=True, ge=1, le=65535)] = DEFAULT_GROUP
    """NFLOG group of the fence. If another program holds it, a run uses another one, at random."""
    transport: Literal["auto", "nflog", "kmsg", "none"] = "auto"
    """Log transport of the fence; auto selects the best one."""
    source: SourceName = "auto"
    """Source of the records; auto selects the one for the transport."""
    install: _Flag = False
    """Install the fence, and remove it at exit if it was not there before."""
    self_heal: _Flag = True
    """Restore a fence that another process changes; if false, only report it."""
    container: ContainerConfig | None = None
    """The container that the sandbox is."""
    labels: Labels = Field(default_factory=dict)
    """Labels of the sandbox, at most 32, such as { team = "search" }."""
    tenant_uid: _Text | None = None
    """Tenant that the sandbox belongs to; by default tenant_uid of [identity]."""
    severity: tuple[SeverityConfig, ...] = ()
    """Severities of its attempts, before those of [[severity]]; without the key sandbox."""

    @property
    def namespace(self) -> Namespace | None:
        """Return the configured network namespace; None if neither netns nor pid is given."""
        if self.netns is not None:
            return named(self.netns)
        return None if self.pid is None else of_process(self.pid)

    @property
    def guard_device(self) -> str | None:
        """Return the configured device to guard on the host; None if none is named."""
        return None if self.host_guard in _NO_DEVICE else self.host_guard

    @property
    def finds_guard(self) -> bool:
        """Return True if the installer searches for the device to guard on the host."""
        return self.host_guard == "auto" and self.profile == "sandbox"

    @property
    def log_transport(self) -> LogTransport | None:
        """Return the configured log transport, such as ``nflog``; None for ``auto``."""
        return None if self.transport == "auto" else self.transport

    @property
    def event_container(self) -> Container | None:
        """Return the id and names of the sandbox's container; None if none is configured."""
        if self.container is None:
            return None
        found = self.container.model_dump(exclude={"labels"})
        return Container(**found, labels=label_texts(self.container.labels))

    @property
    def event_labels(self) -> tuple[str, ...]:
        """Return the labels of the sandbox, each as ``key=value``."""
        return label_texts(self.labels)

    @property
    def severities(self) -> tuple[SeverityRule, ...]:
        """Return the rules that set the severity of the sandbox's refused packets."""
        return tuple(row.as_rule() for row in self.severity)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the host names in ``proxy`` and ``allow``, sorted."""
        given = (*self.proxy, *self.allow)
        named = (each for each in given if isinstance(each, NamedProxy | NamedDestination))
        return tuple(sorted({each.name for each in named}))

    def given(self) -> dict[str, Any]:
        """Return the keys that were given, but for the name, with JSON values as in a file.

        The result and a name make an equal SandboxConfig again.
        """
        return self.model_dump(mode="json", exclude={"name"}, exclude_unset=True, exclude_none=True)

    def spec(self, addresses: Addresses | None = None) -> FenceSpec:
        """Return the specification of the configured fence.

        ``addresses`` are those of its host names, as far as they are known; None if nothing
        resolves names. Raises UsageError if a key is missing, or does not fit the profile.
        """
        names = self.names
        if names and addresses is None:
            raise UsageError(
                f"{names[0]} is a host name, which only a running service resolves: give an "
                "address, or use `ocsf-nft run --install` or `ocsf-nft add`"
            )
        if len(names) > _MAX_NAMES:
            raise UsageError(
                f"sandbox {self.name} has {len(names)} host names: give at most {_MAX_NAMES}, or "
                "let a proxy decide which hosts are reached"
            )
        known = {name: (addresses or {}).get(name, ()) for name in names}
        option = {"proxy": "--proxy ADDR:PORT", "subnet": "--subnet CIDR"}
        for name in _NEEDED[self.profile]:
            if not getattr(self, name):
                missing = option.get(name, f"--{name.replace('_', '-')}")
                raise UsageError(f"a fence of profile {self.profile} needs {missing}")
        for name in _OTHERS[self.profile]:
            if getattr(self, name) not in {None, False, (), *_NO_DEVICE}:
                raise UsageError(
                    f"--{name.replace('_', '-')} has no meaning for a fence of profile "
                    f"{self.profile}: leave it out"
                )
        gateways: tuple[Endpoint, ...] = ()
        if self.gateway_port is not None:
            gateways = tuple(Endpoint("tcp", each.ip, self.gateway_port) for each in self.subnet)
        tap = None
        if self.device is not None:
            tap = Tap(device=self.device, subnets=self.subnet, mac=self.mac, is_strict=self.strict)
        return FenceSpec(
            sandbox=self.name,
            proxies=(*_proxies(self.proxy, known), *gateways),
            exceptions=tuple(_exceptions(self.allow, known)),
            resolved=tuple(ResolvedName(*each) for each in known.items()),
            proxy_uids=self.proxy_uid,
            tap=tap,
            group=self.group,
            guard_device=self.guard_device,
            finds_guard=self.finds_guard,
            is_permissive=self.permissive,
            is_owned=self.exclusive,
        )

    def check(self) -> None:
        """Raise UsageError if keys of this sandbox contradict each other."""
        if self.netns is not None and self.pid is not None:
            raise UsageError(f"sandbox {self.name} has both netns and pid: give one")
        if self.install:
            self.spec({})
        elif self.names:
            raise UsageError(
                f"sandbox {self.name} has the host name {self.names[0]}, but not install: a "
                "service keeps the addresses of names only in a fence that it installs"
            )
        if any(row.sandbox is not None for row in self.severity):
            raise UsageError(
                f"a severity of sandbox {self.name} has the key sandbox: leave it out, or use a "
                "[[severity]] table"
            )
        required = _TRANSPORT_OF_SOURCE.get(self.source)
        if required is not None and self.log_transport not in {None, required}:
            raise UsageError(
                f"sandbox {self.name} has source {self.source}, which has no records of a fence "
                f"with transport {self.transport}: give transport {required}, or leave it out"
            )


def _proxies(given: Iterable[Endpoint | NamedProxy], known: Addresses) -> Iterator[Endpoint]:
    for each in given:
        if isinstance(each, NamedProxy):
            yield from map(each.at, known[each.name])
        else:
            yield each


def _exceptions(
    given: Iterable[Destination | NamedDestination], known: Addresses
) -> Iterator[Destination]:
    for each in given:
        if isinstance(each, NamedDestination):
            yield from map(each.at, known[each.name])
        else:
            yield each
