"""``demo``."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations


def demo() -> None:
    """Fence a throw-away sandbox, try to get out, show the events.

    Creates two network namespaces and runs real programs in them. Removes everything at the end,
    also if it is interrupted. No packet leaves this machine. Needs root.

    Exit 1: an attempt got out, or was not reported. 130: ended by Ctrl-C; 143: by SIGTERM.

    Example: ocsf-nft demo
    """
    from ocsf_nft.cli.logs import to_stderr
    from ocsf_nft.demo import demonstrate

    to_stderr()
    demonstrate()
