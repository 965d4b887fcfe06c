"""OCI hooks: fence a container in ``createRuntime``, end its sandbox in ``poststop``.

Podman and CRI-O start the hooks by their own configuration (``--hooks-dir``). The wrapper adds them
to a bundle for the commands that create and start a container at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from typing import IO, TYPE_CHECKING, Any, Final

from ocsf_nft.errors import DeliveryError, SourceError, UsageError
from ocsf_nft.oci.attach import add
from ocsf_nft.oci.bundle import read_config
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.control_request import ControlSocket

CREATE: Final = "createRuntime"
STOP: Final = "poststop"
#: Additional time for a hook to start and to end, in seconds.
_MARGIN_SECONDS: Final = 5


def hook(stage: str, state: IO[str], service: ControlSocket, root: str = "") -> None:
    """Run the hook of a stage; ``state`` has the container's state as JSON (OCI runtime spec).

    ``root`` is the runtime's state folder, if :func:`with_hooks` has added the hook.
    Raises FenceError if the container must not start, UsageError for another stage, SourceError for
    a state that is none.
    """
    if stage not in {CREATE, STOP}:
        raise UsageError(f"ocsf-nft has no hook {quoted(stage)}: use {CREATE} or {STOP}")
    try:
        found = json.load(state)
        container, bundle, pid = str(found["id"]), str(found["bundle"]), int(found.get("pid", 0))
    except (
        ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError,
    ) as error:  # fmt: skip
        raise SourceError("the runtime gave the hook no state of a container") from error
    if stage == CREATE:
        add(service, container, pid=pid, bundle=bundle, root=root)
    else:
        service.release_container(container, root)


def with_hooks(bundle: str, program: Sequence[str], seconds: float, root: str = "") -> None:
    """Add both hooks to the config.json of a bundle, if they are not there.

    ``program`` is the path of the wrapper, and its options; ``seconds`` is the time limit of its
    request, ``root`` the runtime's state folder. Raises SourceError if the file can't be read,
    DeliveryError if it can't be written.
    """
    config = read_config(bundle)
    hooks: dict[str, Any] = config.get("hooks") or {}
    config["hooks"] = hooks
    for stage in (CREATE, STOP):
        arguments = [*program, "hook", stage]
        ours = {
            "path": program[0],
            "args": [*arguments, root],
            "timeout": math.ceil(seconds) + _MARGIN_SECONDS,
        }
        # The one before may have another state folder.
        others = [
            each
            for each in hooks.get(stage) or ()
            if (each.get("args") or [])[: len(arguments)] != arguments
        ]
        hooks[stage] = [*others, ours]
    _replace(f"{bundle}/config.json", json.dumps(config))


def _replace(path: str, content: str) -> None:
    temporary = f"{path}.ocsf-nft"
    try:
        mode = os.stat(path).st_mode & 0o777
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(temporary, flags, mode), "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        raise DeliveryError(f"the container's {path} can't be written: {error.strerror}") from error
