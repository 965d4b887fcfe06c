"""Usual ruleset of a sandbox runtime, with one log rule for all refused packets."""

from __future__ import annotations

from typing import Final

from bench import stage
from ocsf_nft import lab

_RULESET: Final = """
table inet usual {{
    counter refused {{ }}
    chain output {{
        type filter hook output priority filter; policy accept;
        ct state established,related accept
        oifname "lo" accept
        ip daddr {proxy} tcp dport {port} accept
        {log}
        meta l4proto {{ tcp, udp }} counter name refused reject with icmpx port-unreachable
    }}
}}
"""
PREFIX: Final = "usual: "
#: One record per packet.
TO_NFLOG: Final = f'log prefix "{PREFIX}" group {stage.GROUP} snaplen 128'
TO_KERNEL_LOG: Final = f'log prefix "{PREFIX}"'
#: One shared budget.
AT_MOST_5: Final = f"limit rate 5/second burst 10 packets {TO_KERNEL_LOG}"


def ruleset(log: str) -> str:
    """Return the ruleset for ``nft -f``. ``log`` is the statement that logs."""
    return _RULESET.format(proxy=lab.GATEWAY4, port=lab.PROXY_PORT, log=log)
