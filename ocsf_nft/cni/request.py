"""Request to a CNI plugin: the environment and the network configuration on standard input."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.cni import errors
from ocsf_nft.cni.errors import CniError
from ocsf_nft.control_request import SECONDS, SOCKET, ControlSocket
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Versions of the CNI specification that the plugin supports.
VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_CONTAINER: Final = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]*")
_MOST_SECONDS: Final = 600.0


class Request(NamedTuple):
    """Parsed request.

    ``config`` is the plugin's part of the network configuration. ``arguments`` are the pairs of
    CNI_ARGS.
    """

    command: str
    version: str
    config: dict[str, Any]
    container: str | None
    netns: str | None
    arguments: dict[str, str]

    @property
    def network(self) -> str:
        """Return the name of the network."""
        return self._text("name") or ""

    @property
    def policy(self) -> str | None:
        """Return the name of the ``[[attach]]`` table in the configuration."""
        return self._text("policy")

    @property
    def sandbox(self) -> dict[str, Any] | None:
        """Return the policy in the configuration, with keys of ``[[sandbox]]``."""
        found = self.config.get("sandbox")
        if found is not None and not isinstance(found, dict):
            raise _wrong("sandbox", "a JSON object")
        return found

    @property
    def service(self) -> ControlSocket:
        """Return the service, from the keys ``control`` and ``timeout`` (in seconds)."""
        seconds = self.config.get("timeout", SECONDS)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            seconds = math.nan
        if not 0 < seconds <= _MOST_SECONDS:
            raise _wrong("timeout", f"a number of seconds, at most {_MOST_SECONDS:g}")
        return ControlSocket(self._text("control") or SOCKET, float(seconds))

    @property
    def previous_result(self) -> dict[str, Any]:
        """Return the result of the plugins before this one.

        Raises CniError if there is none: this plugin makes no interface.
        """
        found = self.config.get("prevResult")
        if not isinstance(found, dict):
            raise CniError(
                errors.WRONG_CONFIG,
                "ocsf-nft-cni makes no interface: list it after the plugin that does",
            )
        return found

    def _text(self, key: str) -> str | None:
        found = self.config.get(key)
        if found is not None and (not isinstance(found, str) or not found):
            raise _wrong(key, "a text")
        return found


def parse(environment: Mapping[str, str], content: bytes) -> Request:
    """Return the request; ``content`` is the standard input. Raises CniError."""
    command = environment.get("CNI_COMMAND")
    if not command:
        raise CniError(
            errors.WRONG_ENVIRONMENT,
            "CNI_COMMAND is missing: a container runtime starts this program, not a person",
        )
    try:
        config = json.loads(content or b"{}")
    except (ValueError, RecursionError) as error:
        raise CniError(errors.NO_JSON, f"the network configuration is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise CniError(errors.NO_JSON, "the network configuration is no JSON object")
    version = config.get("cniVersion")
    if command != "VERSION" and version not in VERSIONS:
        raise CniError(
            errors.INCOMPATIBLE_VERSION,
            f"the network configuration has cniVersion {version}: use one of {', '.join(VERSIONS)}",
        )
    container = environment.get("CNI_CONTAINERID") or None
    if container is not None and not _CONTAINER.fullmatch(container):
        raise CniError(errors.WRONG_ENVIRONMENT, f"CNI_CONTAINERID is {quoted(container)}, no id")
    return Request(
        command,
        version if isinstance(version, str) else VERSIONS[-1],
        config,
        container,
        environment.get("CNI_NETNS") or None,
        _pairs(environment.get("CNI_ARGS", "")),
    )


def _pairs(text: str) -> dict[str, str]:
    found = {}
    for each in filter(None, text.split(";")):
        key, equals, value = each.partition("=")
        if not equals:
            raise CniError(
                errors.WRONG_ENVIRONMENT, f"CNI_ARGS has {quoted(each)}, which is no KEY=VALUE"
            )
        found[key] = value
    return found


def _wrong(key: str, expected: str) -> CniError:
    return CniError(
        errors.WRONG_CONFIG, f"the key {key} of the plugin's configuration must be {expected}"
    )
