"""A receiver of events in the guest; it stores authorization and events, a line per request."""

from __future__ import annotations

import json
import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Final

_OUTPUT: Final = Path(sys.argv[2])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = {
            "authorization": self.headers["Authorization"],
            "events": [json.loads(line) for line in body.splitlines()],
        }
        with _OUTPUT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(request) + "\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main() -> None:
    """Listen, notify systemd, and serve until killed."""
    with HTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler) as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
        server.serve_forever()


if __name__ == "__main__":
    main()
