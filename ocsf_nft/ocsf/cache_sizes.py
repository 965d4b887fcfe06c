"""Size of the caches for OCSF objects that are the same in many events, such as endpoints."""

from __future__ import annotations

from typing import Final

#: Maximum number of results in each cache. A program that retries uses only a few destinations,
#: and a scan never repeats a destination and fills any cache. So a larger cache is not faster, but
#: costs memory: an object with its JSON is 1 to 2 kB, and caches of 8,192 took 27 MB more in a
#: flood of random destinations.
CACHED: Final = 1024
