"""Reading of the policy files in ``rules/``, and the insertion of values into their text."""

from __future__ import annotations

import importlib.resources
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Table names in a policy file: if a table is named for a device, the file has a placeholder.
OPENING: Final = re.compile(
    r"^(?P<before>(?:delete )?table (?P<family>\w+) )(?P<table>ocsf_nft[\w.-]*)(?P<after> \{)?$",
    re.MULTILINE,
)


def read(file: str) -> str:
    """Return the text of a policy file, for example ``sandbox.nft``."""
    return (importlib.resources.files("ocsf_nft.rules") / file).read_text("utf-8")


def define(text: str, name: str, value: str) -> str:
    """Return ``text`` with another value of the nftables variable ``name``.

    Raises AssertionError if ``text`` does not define the variable exactly once.
    """
    replaced, count = re.subn(
        rf"^define {name} = .*$", lambda _: f"define {name} = {value}", text, flags=re.MULTILINE
    )
    if count != 1:
        raise AssertionError(f"the policy file must define {name} once, not {count} times")
    return replaced


def set_literal(values: Iterable[str]) -> str:
    """Return an anonymous set of nftables with these elements."""
    return "{ " + ", ".join(values) + " }"
