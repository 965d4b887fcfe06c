"""What every ``[[sink]]`` of a file has in common, and what several have."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import FileName, Table, checked
from ocsf_nft.delivery.batch_settings import BatchSettings
from ocsf_nft.delivery.secrets import Secret
from ocsf_nft.delivery.tls import Tls
from ocsf_nft.ocsf.events import CLASS_UIDS
from ocsf_nft.ocsf.versions import LATEST, named

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink

ClassName: TypeAlias = Literal[
    "network_activity", "detection_finding", "device_config_state_change", "application_lifecycle"
]
Version = Annotated[str, checked(named)]
Classes = Annotated[tuple[ClassName, ...], Field(min_length=1)]
#: What names a sink in the store, metrics and our own log.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f]*$")]


class SinkTable(Table):
    """A place that events go to, each in its version of OCSF and with the classes it wants.

    ``name`` is by default made of what the sink is and where it goes. A batch has at most
    ``batch_events`` and ``batch_bytes``, and waits for ``batch_seconds`` to become so large.
    A delivery that takes ``timeout_seconds`` is cut, and tried again; between two tries of a batch
    are at most ``retry_seconds``.
    """

    #: Whether it has to be there when the run begins.
    is_local: ClassVar[bool] = False

    name: Name | None = None
    ocsf_version: Version = LATEST
    classes: Classes = ("network_activity", "detection_finding", "device_config_state_change",
                        "application_lifecycle")  # fmt: skip
    batch_events: Annotated[int, Field(ge=1, le=10_000)] = 500
    batch_bytes: Annotated[int, Field(ge=1024, le=64 << 20)] = 1 << 20
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.2
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] | None = 30.0
    retry_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0

    @property
    def needs_handshake(self) -> bool:
        """Whether the first line that it gets is a handshake."""
        return False

    @property
    def file(self) -> Path | None:
        """The file that nobody else is to write to meanwhile, if it has one."""
        return None

    @property
    def class_uids(self) -> frozenset[int]:
        """The ``class_uid`` of what it wants."""
        return frozenset(CLASS_UIDS[name] for name in self.classes)

    @property
    def called(self) -> str:
        """What names it: in the store, in metrics and in our own log."""
        return self.name or self.target

    @property
    def batch_settings(self) -> BatchSettings:
        """How it is sent to."""
        return BatchSettings(
            events=self.batch_events,
            bytes=self.batch_bytes,
            seconds=self.batch_seconds,
            timeout_seconds=self.timeout_seconds,
            retry_seconds=self.retry_seconds,
        )

    @property
    @abstractmethod
    def target(self) -> str:
        """Where it goes, in short and without a secret: unlike that of any other sink."""

    @abstractmethod
    def sink(self) -> Sink:
        """The sink itself; raises UnsupportedError when an extra that it needs is not installed."""


class SecretTable(Table):
    """Where a secret is kept: a ``file``, a variable of ``env``, or systemd's ``credential``."""

    file: Annotated[Path, FileName] | None = None
    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    credential: Name | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if sum(each is not None for each in (self.file, self.env, self.credential)) != 1:
            raise ValueError(
                "a secret is kept in one place: give file, env or credential, never itself"
            )
        return self

    def secret(self) -> Secret:
        """The same for a sink."""
        if self.file is not None:
            return Secret("file", str(self.file))
        if self.env is not None:
            return Secret("environment", self.env)
        return Secret("credential", self.credential or "")


class TlsTable(Table):
    """Whom to trust in place of the system's authorities, and what to show to who asks."""

    ca: Annotated[Path, FileName] | None = None
    certificate: Annotated[Path, FileName] | None = None
    key: Annotated[Path, FileName] | None = None

    @model_validator(mode="after")
    def _is_a_pair(self) -> Self:
        if self.key is not None and self.certificate is None:
            raise ValueError("has a key without a certificate: give both")
        return self

    def tls(self) -> Tls:
        """The same for a sink."""
        return Tls(ca=self.ca, certificate=self.certificate, key=self.key)
