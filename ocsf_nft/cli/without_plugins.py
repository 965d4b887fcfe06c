"""Import of pydantic without plugins; import this module before any model is defined.

pydantic searches all installed distributions for plugins, and imports those that it finds. The
search would take longer than Python's own start. A plugin would run with the privileges of the
command, and see each configuration and event.
"""

from __future__ import annotations

import os

#: pydantic reads this variable when it makes the first validator (pydantic.plugin).
os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
