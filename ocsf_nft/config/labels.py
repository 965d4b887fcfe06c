"""Labels of a sandbox: short texts by which its user finds it again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from pydantic import BeforeValidator, Field

from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Maximum number of labels of a sandbox.
MOST: Final = 32
_KEY_PATTERN: Final = "[A-Za-z0-9._/-]{1,63}"
_KEY: Final = re.compile(_KEY_PATTERN, re.ASCII)
_MAX_CHARACTERS: Final = 256


def check_label(key: str, value: str) -> None:
    """Raise UsageError if the key or the value of a label is invalid."""
    if not _KEY.fullmatch(key):
        raise UsageError(
            f"{quoted(key[:_MAX_CHARACTERS])} is no key of a label: use 1 to 63 letters, digits, "
            "dots, dashes, slashes or underscores"
        )
    if len(value) > _MAX_CHARACTERS or not value.isprintable():
        raise UsageError(
            f"the label {key} has a value that is too long or can't be printed: use at most "
            f"{_MAX_CHARACTERS} printable characters"
        )


def label_texts(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return labels as events have them: each as ``key=value``, in the order of their keys."""
    return tuple(f"{key}={labels[key]}" for key in sorted(labels))


def _checked(found: object) -> object:
    if not isinstance(found, dict):
        raise ValueError("must be a table of texts")  # noqa: TRY004 - for pydantic
    if len(found) > MOST:
        raise ValueError(f"there are {len(found)} labels: use at most {MOST}")
    for key, value in found.items():
        if not isinstance(value, str):
            raise ValueError(f"the label {quoted(str(key)[:_MAX_CHARACTERS])} must be text")  # noqa: TRY004 - for pydantic
        try:
            check_label(str(key), value)
        except UsageError as error:
            raise ValueError(str(error)) from error
    return found


_Key = Annotated[str, Field(pattern=f"^{_KEY_PATTERN}$")]
_Value = Annotated[str, Field(max_length=_MAX_CHARACTERS)]
#: Type of the key ``labels``: texts by their keys.
Labels: TypeAlias = Annotated[
    dict[str, str],
    BeforeValidator(
        _checked, json_schema_input_type=Annotated[dict[_Key, _Value], Field(max_length=MOST)]
    ),
]
