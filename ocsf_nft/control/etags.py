"""Versions of sandboxes as entity tags of HTTP, which bind a change to one version."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

import orjson

from ocsf_nft.errors import ChangedError, UsageError
from ocsf_nft.service.sandbox_view import no_condition

if TYPE_CHECKING:
    from ocsf_nft.service.sandbox_view import Condition, SandboxView

#: Characters of the digest in a tag.
_DIGITS: Final = 32
#: A strong entity tag, and a list of them (RFC 9110, section 8.8.3).
_TAG: Final = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_LIST: Final = re.compile(rf"{_TAG.pattern}(?:[ \t]*,[ \t]*{_TAG.pattern})*")


def etag_of(view: SandboxView) -> str:
    """Return the tag of a sandbox, which changes with its policy, and if it is added again.

    It does not change with the state of the fence or with the counts.
    """
    identity = [view.name, view.origin, view.since_ns, view.config.given()]
    content = orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)
    return f'"{hashlib.sha256(content).hexdigest()[:_DIGITS]}"'


def condition_of(name: str, if_match: str | None) -> Condition:
    """Return the condition of a request with the header If-Match for the sandbox ``name``.

    The condition raises ChangedError if no tag of the header is that of the sandbox. Without the
    header, any state is accepted. Raises UsageError if the header is wrong.
    """
    if if_match is None:
        return no_condition
    given = if_match.strip()
    if given != "*" and _LIST.fullmatch(given) is None:
        raise UsageError('If-Match is no list of entity tags: write it like "0a1b", in quotes')
    tags = set(_TAG.findall(given))

    def require(view: SandboxView | None) -> None:
        if view is None:
            raise ChangedError(f"there is no sandbox {name} any more: leave out If-Match to add it")
        if given != "*" and etag_of(view) not in tags:
            raise ChangedError(
                f"sandbox {name} was changed meanwhile: see its present policy, then try again"
            )

    return require
