"""Test of NFLOG with a real kernel, at two hooks whose captures begin differently."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import lab
from ocsf_nft.sources.nflog import Nflog

if TYPE_CHECKING:
    from ocsf_nft.record import Record

GROUP = 77
RULES = f"""
table inet t {{
  chain o {{ type filter hook output priority 0; policy accept;
    log prefix "ocsf-nft:live:egress:" group {GROUP}
  }}
}}
table netdev t {{
  chain e {{ type filter hook egress device "sb0" priority 0; policy accept;
    meta protocol {{ ip, ip6 }} log prefix "ocsf-nft:live:link:" group {GROUP}
  }}
}}
"""


@pytest.mark.kernel
@pytest.mark.parametrize("destination", [lab.GATEWAY4, lab.GATEWAY6])
async def test_nflog_record_is_the_same_on_output_and_netdev_egress(destination: str) -> None:
    with lab.throwaway() as made:
        namespace = made.sandbox_namespace
        namespace.call(
            lambda: subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)
        )
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        async with Nflog(namespace, GROUP) as source:
            sock = namespace.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
            with sock:
                sock.sendto(b"x" * 20, (destination, 5353))
            found: dict[str, Record] = {}
            async with asyncio.timeout(5):
                async for batch in source.batches():
                    found |= {
                        record.rule: record
                        for record in batch.records
                        if record.destination_port == 5353
                    }
                    if len(found) == 2:
                        break
    output, link = found["egress"], found["link"]
    assert (output.source, output.destination) == (link.source, link.destination)
    assert (output.source_port, output.length) == (link.source_port, link.length)
    assert output.details == link.details
    assert (output.out_interface, output.uid, link.uid) == ("sb0", 0, 0)
