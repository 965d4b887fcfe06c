"""Stored sandboxes that were added while a service ran, for the next run of the service."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
import structlog
from pydantic import ValidationError

from ocsf_nft import proc
from ocsf_nft.config import SandboxConfig
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.namespace_watch import file_version, present_identity
from ocsf_nft.netns import HOST
from ocsf_nft.sources.boot import boot_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.state import StateDirectory

_log = structlog.get_logger()

_KEYS: Final = "sandbox"
_NAMESPACE: Final = "namespace"


class AddedSandbox(NamedTuple):
    """Sandbox that an earlier run of the service has stored."""

    config: SandboxConfig
    #: True if its network namespace exists no more. Another one may be at its path: that of a
    #: process with the same pid, or of the same name.
    has_ended: bool
    #: Identity of its network namespace.
    namespace_id: str | None


def store(state: StateDirectory, config: SandboxConfig) -> None:
    """Store a sandbox, with the identity of its network namespace; raises DeliveryError."""
    stored = {_KEYS: config.given(), _NAMESPACE: _namespace(config)}
    state.store_added(config.name, orjson.dumps(stored))


def stored(state: StateDirectory) -> Iterator[AddedSandbox]:
    """Yield the stored sandboxes; log those that can't be read. Raises FenceError."""
    for name, content in state.added().items():
        try:
            found = orjson.loads(content)
            config = SandboxConfig.model_validate(found[_KEYS] | {"name": name})
            namespace = found[_NAMESPACE]
            has_ended, identity = namespace != _namespace(config), namespace[1]
            yield AddedSandbox(config, has_ended=has_ended, namespace_id=identity)
        except (ValidationError, ValueError, LookupError, TypeError, OcsfNftError) as error:
            _log.error(
                "a stored sandbox can't be read: add it again", sandbox=name, reason=str(error)
            )


def _namespace(config: SandboxConfig) -> list[Any]:
    """Return what tells a network namespace from a later one at the same path.

    The kernel uses numbers of namespaces and of processes again, and all of them after a boot.
    """
    started = None
    if config.pid is not None:
        with contextlib.suppress(OSError, ValueError):
            started = proc.parsed_stat(Path(f"/proc/{config.pid}/stat").read_bytes()).start
    namespace = config.namespace or HOST
    identity = present_identity(namespace)
    version = None if identity is None else file_version(namespace)
    return [boot_id(), identity, version and list(version), started]
