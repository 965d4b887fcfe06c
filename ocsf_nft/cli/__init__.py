"""The command line: thin, and a contract that scripts depend on.

Standard output carries JSON Lines (``install --dry-run``: the ruleset) and nothing else; all that
is for people goes to standard error.
"""

from __future__ import annotations

import typer

from ocsf_nft.cli import output
from ocsf_nft.cli.check import check
from ocsf_nft.cli.convert import convert
from ocsf_nft.cli.demo import demo
from ocsf_nft.cli.explain import explain
from ocsf_nft.cli.fence import install, remove, verify
from ocsf_nft.cli.run import run
from ocsf_nft.errors import OcsfNftError

app = typer.Typer(
    name="ocsf-nft",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    help=(
        "Fence a sandbox with nftables, and report every attempt to get round its egress proxy "
        "as OCSF events.\n\n"
        "Exit codes: 0 fine, 1 the answer is no, 2 absent or bad usage, "
        "3 the system can't (kernel, privilege, missing tool)."
    ),
    epilog="Try it: ocsf-nft demo (as root; leaves nothing behind).",
)
for command in (install, verify, remove, run, convert, explain, check, demo):
    app.command()(command)

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main() -> None:
    """Run the command line; every expected failure is one sentence and its exit code."""
    output.prepare()
    try:
        app()
    except OcsfNftError as error:
        typer.echo(f"ocsf-nft: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
