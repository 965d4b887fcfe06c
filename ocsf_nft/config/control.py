"""Values of the configuration keys of the control API's socket."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from pydantic import BeforeValidator

from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

#: Mode of the socket by default: for its owner and its group.
DEFAULT_MODE: Final = 0o660
_MODE: Final = re.compile(r"0?[0-7]{3}", re.ASCII)
#: Size of ``sun_path`` without the final NUL (include/uapi/linux/un.h).
_MAX_PATH_BYTES: Final = 107
_GROUP: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", re.ASCII)
#: The highest group id: the kernel uses the next number for "no group".
_LAST_GID: Final = 0xFFFFFFFE


def socket_path(text: str) -> Path:
    """Return the path of a Unix socket; raise UsageError if no socket can have this path."""
    path = Path(text)
    if not path.is_absolute() or "\0" in text or path == Path("/"):
        raise UsageError(
            f"{quoted(text)} is no path of a socket: write it from the root, as "
            "/run/ocsf-nft/control.sock"
        )
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise UsageError(
            f"{quoted(text)} is too long for a socket: use at most {_MAX_PATH_BYTES} bytes"
        )
    return path


def socket_mode(text: str) -> int:
    """Return the mode of a socket from an octal text such as ``0660``.

    Raises UsageError if the text is no mode, or if the mode lets every user of the host connect.
    """
    if not _MODE.fullmatch(text):
        raise UsageError(f"{quoted(text)} is no mode of a socket: write it in octal, as 0660")
    mode = int(text, 8)
    if mode & 0o007:
        raise UsageError(
            f"{quoted(text)} lets every user of this host change the sandboxes: write 0660, and "
            "name their group in control_group"
        )
    return mode


def _group(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("must be the name or the number of a group")  # noqa: TRY004 - for pydantic
    is_valid = _GROUP.fullmatch(value) if isinstance(value, str) else 0 <= value <= _LAST_GID
    if not is_valid:
        raise ValueError(f"{quoted(str(value))} is no group: write its name or its number")
    return value


#: Validator of a group's name or number.
checked_group: Final = BeforeValidator(_group, json_schema_input_type=str | int)
