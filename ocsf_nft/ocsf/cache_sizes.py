"""How much is remembered of what many events have in common."""

from __future__ import annotations

from typing import Final

#: Results that each cache keeps. What one program tries again and again is a few destinations;
#: a scan never tries one twice, and fills any cache. So a larger one is no quicker, but dear: an
#: object with its JSON is 1 to 2 kB, and caches of 8,192 took 27 MB more in a flood of random
#: destinations.
CACHED: Final = 1024
