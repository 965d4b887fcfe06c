"""Command ``demo``: fence a throw-away sandbox and show the events."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import click


@click.command("demo")
@click.pass_context
def demo(context: click.Context) -> None:
    """Fence a throw-away sandbox, try to get out, show the events.

    Creates two network namespaces and runs real programs in them. Removes everything at the end,
    also if it is interrupted. No packet leaves this machine. Needs root.

    Exit 1: an attempt to bypass the fence succeeded or was not reported, or an allowed attempt
    failed. 130: ended by Ctrl-C. 143: ended by SIGTERM.

    Example: ocsf-nft demo
    """
    from ocsf_nft.cli.logs import to_stderr
    from ocsf_nft.demo import demonstrate

    # Among text for people; it is JSON only if that is requested.
    to_stderr(context.obj._replace(form=context.obj.form or "text"))
    demonstrate()
