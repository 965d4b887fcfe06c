"""The bytes that the demo's own program sends."""

from __future__ import annotations

import socket
import subprocess
import sys

_SEND = "from ocsf_nft.demo import program; program._DNS_PORT = {port}; program.dns('127.0.0.1')()"


def test_dns_attempt_sends_a_query_for_the_address_of_example_com() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        send = _SEND.format(port=server.getsockname()[1])
        subprocess.run([sys.executable, "-c", send], check=True)
        query = server.recv(512)
    # RFC 1035, section 4.1: a standard query with recursion desired, and one question.
    assert query.hex() == (
        "0001 0100 0001 0000 0000 0000 07 6578616d706c65 03 636f6d 00 0001 0001".replace(" ", "")
    )
