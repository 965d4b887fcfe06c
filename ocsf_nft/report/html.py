"""Builder of HTML in which every text is escaped: elements and attributes come only from code.

A template engine would be a dependency for one page. This builder is shorter, and its type
separates markup from text.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Html:
    """Markup that code has made; all its texts are escaped."""

    text: str


#: Content of an element: markup, text to escape, or nothing.
Content: TypeAlias = "Html | str | None"
#: Elements without content (HTML, "void elements").
_VOID: Final = frozenset({"hr", "meta"})


def element(name: str, /, *content: Content, **attributes: str | float | None) -> Html:
    """Return an element; an attribute that is None is left out.

    In the name of an attribute, ``_`` stands for ``-``, and a trailing one for nothing:
    ``class_`` is the attribute ``class``.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{shown}>")
    return Html(f"<{name}{shown}>{joined(content).text}</{name}>")


def joined(content: Iterable[Content], separator: str = "") -> Html:
    """Return contents as one; ``separator`` is text between them."""
    parts = (each.text if isinstance(each, Html) else _escaped(each) for each in content if each)
    return Html(_escaped(separator).join(parts))


def _escaped(text: str) -> str:
    return html.escape(visible(text))
