"""Log of an OCI runtime: engines read there why a command failed."""

from __future__ import annotations

import json
import sys
import time

#: Destinations of ``--log`` that crun accepts besides a file.
_NO_FILE = ("journald:", "syslog:")


def report(sentence: str, options: dict[str, str], *, level: str = "error") -> None:
    """Add a message to the runtime's log file, and an error to standard error too.

    ``options`` are the runtime's options: ``log`` is the path of the log file, ``log-format`` its
    form. containerd and Docker read the last error of the file, Podman reads standard error.
    """
    if level == "error":
        # One write: conmon reads only once.
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()
    path = options.get("log", "").removeprefix("file:")
    if not path or path.startswith(_NO_FILE):
        return
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = json.dumps({"level": level, "msg": sentence, "time": stamp})
    if options.get("log-format") != "json":
        line = f'time="{stamp}" level={level} msg={json.dumps(sentence)}'
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        sys.stderr.write(f"the runtime's log {path} can't be written: {error.strerror}\n")
