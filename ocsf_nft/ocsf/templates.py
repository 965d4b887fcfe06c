"""Templates that make the JSON of Network Activity events faster than the models do.

Events that differ only in copied values, such as times, share a template: JSON with slots for these
values.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.ocsf import packet_outcome, placeholder_events
from ocsf_nft.ocsf.event_slots import shape_of, values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.attempt import Attempt
    from ocsf_nft.ocsf.activity import Derived
    from ocsf_nft.ocsf.context import Host
    from ocsf_nft.ocsf.event_slots import Shape, Surroundings, Values

#: Maximum number of templates. A sender of packets can cause any number of shapes.
MAX_TEMPLATES: Final = 512
#: First templates of one sandbox in a service, and new ones in a second after these: a sandbox that
#: causes many shapes must not replace the templates of the others, nor use much time.
OF_SANDBOX: Final = 128
_NEW_PER_SECOND: Final = 1.0
#: Number of shapes that are counted.
_MAX_SEEN: Final = 1 << 13
#: Occurrences of a shape before it gets a template, which takes as long to make as three events.
SIGHTINGS: Final = 3
#: Maximum size of all templates, and of one: a sender can also choose the length of texts.
MAX_TEMPLATE_BYTES: Final = 3 << 20
_MAX_BYTES_EACH: Final = 1 << 14


#: Format of a value.
_FORMAT: Final = re.compile(rb"%[bd]")
#: Byte that no JSON text has, in place of a percent sign.
_PERCENT: Final = b"\0"


class Pieces(NamedTuple):
    """JSON line of an event in pieces: literals, and the indexes of the values between them."""

    #: One more than ``numbers``.
    literals: tuple[bytes, ...]
    #: Indexes of the values in the result of :func:`values_of`.
    numbers: tuple[int, ...]


class _Template:
    """Format string of an event's JSON line, and a function that selects the values to insert."""

    __slots__ = ("form", "is_used", "numbers", "pick")

    def __init__(self, pieces: Pieces, values: Values) -> None:
        """Create the template; ``values`` have the types of all later ones."""
        self.numbers = pieces.numbers
        formats = [b"%d" if isinstance(values[each], int) else b"%b" for each in pieces.numbers]
        literals = [literal.replace(b"%", b"%%") for literal in pieces.literals]
        pairs = zip(literals, (*formats, b""), strict=True)
        self.form = b"".join(literal + spec for literal, spec in pairs)
        self.pick: Callable[[Values], tuple[Any, ...]] = itemgetter(*pieces.numbers)
        #: Whether a later event was made from it since the last search for a template to remove.
        self.is_used = False

    def pieces(self) -> Pieces:
        """Return the literals and slots, which are stored only as the format string."""
        literals = _FORMAT.split(self.form.replace(b"%%", _PERCENT))
        return Pieces(tuple(each.replace(_PERCENT, b"%") for each in literals), self.numbers)


class Templates:
    """Cache of templates for the JSON lines of Network Activity events, limited in size.

    All sandboxes of a ``host`` share the templates. With ``is_limited``, the number of templates
    for the events of one sandbox is limited too.
    """

    def __init__(self, host: Host | None, *, is_limited: bool = False) -> None:
        self.host = host
        self._is_limited = is_limited
        self._stored: dict[Shape, _Template] = {}
        self._stored_bytes = 0
        self._seen: Counter[int] = Counter()
        #: Templates that may be made now for each sandbox, and the time of the last one.
        self._budgets: dict[str | None, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def line(
        self,
        attempt: Attempt,
        derived: Derived,
        around: Surroundings,
        *,
        processed_ns: int,
        version: str,
    ) -> bytes | None:
        """Return the JSON line of an event about refused packets, made from a cached template.

        Return None if no template fits. ``attempt`` describes the packets, ``derived`` has values
        computed from ``attempt``, ``around`` has facts about the sandbox. ``version`` is the OCSF
        version, ``processed_ns`` the present time.
        """
        shape = shape_of(attempt, derived, around, version)
        if shape is None:
            return None
        template = self._stored.get(shape)
        if template is not None:
            template.is_used = True
        else:
            template = self._new(shape, attempt, derived, around, version)
            if template is None:
                return None
        return template.form % template.pick(values_of(attempt, derived, around, processed_ns))

    def pieces(
        self, attempt: Attempt, derived: Derived, around: Surroundings, version: str
    ) -> Pieces | None:
        """Return the template for the event of an attempt; None if there is none yet.

        The arguments are those of :meth:`line`.
        """
        shape = shape_of(attempt, derived, around, version)
        template = None if shape is None else self._stored.get(shape)
        return None if template is None else template.pieces()

    def _new(
        self,
        shape: Shape,
        attempt: Attempt,
        derived: Derived,
        around: Surroundings,
        version: str,
    ) -> _Template | None:
        # Another firewall's record may contain any name.
        is_ours = packet_outcome.is_ours(attempt.record)
        sandbox = attempt.record.sandbox if is_ours else None
        sighting = hash(shape)  # the shape itself would take more memory
        with self._lock:
            if (found := self._stored.get(shape)) is not None:  # by another thread meanwhile
                return found
            if len(self._seen) >= _MAX_SEEN:
                self._seen.clear()
            self._seen[sighting] += 1
            if self._seen[sighting] < SIGHTINGS or not self._may_make(sandbox):
                return None
            template = _template(self.host, attempt, derived, around, version)
            size = len(template.form)
            if size > _MAX_BYTES_EACH:
                self._seen[sighting] = -sys.maxsize  # it is not made again
                return None
            del self._seen[sighting]
            self._stored[shape] = template
            self._stored_bytes += size
            while len(self._stored) > MAX_TEMPLATES or self._stored_bytes > MAX_TEMPLATE_BYTES:
                self._remove_one()
        return template

    def _may_make(self, sandbox: str | None) -> bool:
        if not self._is_limited:
            return True
        now = time.monotonic()
        budget, made_at = self._budgets.get(sandbox, (OF_SANDBOX, now))
        budget = min(budget + (now - made_at) * _NEW_PER_SECOND, OF_SANDBOX)
        is_allowed = budget >= 1
        self._budgets[sandbox] = budget - is_allowed, now
        return is_allowed

    def _remove_one(self) -> None:
        """Remove the oldest template that no later event was made from since the last call.

        If all others are in use, that is the newest one.
        """
        while True:
            shape = next(iter(self._stored))
            template = self._stored.pop(shape)
            if not template.is_used:
                self._stored_bytes -= len(template.form)
                return
            template.is_used = False
            self._stored[shape] = template


def _template(
    host: Host | None, attempt: Attempt, derived: Derived, around: Surroundings, version: str
) -> _Template:
    # Each placeholder in the line becomes a slot.
    one, other, values = placeholder_events.lines(host, attempt, derived, around, version)
    slots = _outer([*_slots_of_ports(one, other), *_slots(one, values)])
    starts, ends = [0, *(slot.end for slot in slots)], [*(slot.start for slot in slots), len(one)]
    literals = tuple(one[start:end] for start, end in zip(starts, ends, strict=True))
    return _Template(Pieces(literals, tuple(slot.number for slot in slots)), values)


class _Slot(NamedTuple):
    """Position in an event's JSON at which a copied value is inserted."""

    start: int
    end: int
    #: Index of the value in the result of :func:`values_of`.
    number: int


def _slots_of_ports(one: bytes, other: bytes) -> Iterator[_Slot]:
    for number, (here, there) in enumerate(placeholder_events.PORT_PLACEHOLDERS):
        placeholder, other_placeholder = b"%d" % here, b"%d" % there
        for start in _positions(placeholder, one):
            if other.startswith(other_placeholder, start):
                yield _Slot(start, start + len(placeholder), number)


def _slots(line: bytes, values: Values) -> Iterator[_Slot]:
    least = placeholder_events.PLACEHOLDER_CHARACTERS
    texts = (b"%d" % value if isinstance(value, int) else value or b"" for value in values)
    placeholders = {text: number for number, text in enumerate(texts) if len(text) >= least}
    for text, number in placeholders.items():
        for start in _positions(text, line):
            yield _Slot(start, start + len(text), number)


def _outer(slots: list[_Slot]) -> list[_Slot]:
    """Return the slots that are not inside another one, such as a file name inside its path."""
    found: list[_Slot] = []
    for slot in sorted(slots, key=lambda each: (each.start, -each.end)):
        if not found or slot.start >= found[-1].end:
            found.append(slot)
    return found


def _positions(placeholder: bytes, line: bytes) -> Iterator[int]:
    position = line.find(placeholder)
    while position >= 0:
        yield position
        position = line.find(placeholder, position + 1)
