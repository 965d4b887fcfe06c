"""Fence a sandbox with nftables, and report attempts to bypass its proxy as OCSF events.

A Python program can run :class:`Service` itself, or be a :class:`Client` of a running one. Only the
names in ``__all__`` are public: others may change with each version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ocsf_nft.client import Client
    from ocsf_nft.config import Config, SandboxConfig, load, parse
    from ocsf_nft.errors import (
        AbsentError,
        ChangedError,
        ConflictError,
        DeliveryError,
        FenceError,
        OcsfNftError,
        SourceError,
        UnsupportedError,
        UsageError,
    )
    from ocsf_nft.service.run import Service

__all__ = [
    "AbsentError",
    "ChangedError",
    "Client",
    "Config",
    "ConflictError",
    "DeliveryError",
    "FenceError",
    "OcsfNftError",
    "SandboxConfig",
    "Service",
    "SourceError",
    "UnsupportedError",
    "UsageError",
    "load",
    "parse",
]

#: Module of each public name. Imported on first use, so that the command line starts fast.
_MODULES: Final = {
    "AbsentError": "ocsf_nft.errors",
    "ChangedError": "ocsf_nft.errors",
    "Client": "ocsf_nft.client",
    "Config": "ocsf_nft.config",
    "ConflictError": "ocsf_nft.errors",
    "DeliveryError": "ocsf_nft.errors",
    "FenceError": "ocsf_nft.errors",
    "OcsfNftError": "ocsf_nft.errors",
    "SandboxConfig": "ocsf_nft.config",
    "Service": "ocsf_nft.service.run",
    "SourceError": "ocsf_nft.errors",
    "UnsupportedError": "ocsf_nft.errors",
    "UsageError": "ocsf_nft.errors",
    "load": "ocsf_nft.config",
    "parse": "ocsf_nft.config",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
