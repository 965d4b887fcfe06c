"""Commands of the documentation: each is run, or its page has the reason why not.

A page is run from top to bottom in one shell, as root, on a machine of its own. Pages that begin
on the same prepared machine (``<!-- given: NAME -->``) share it.
"""

from __future__ import annotations

import re
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.docs import commands, machines

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.docs.commands import Page
    from tests.docs.machines import Machine


def _faults(page: Page, done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what a reader of the page would report."""
    found = []
    if done.returncode != 0 or not done.stdout.endswith(commands.END):
        found.append(f"the shell ended with exit {done.returncode}")
    if "Traceback" in done.stdout:
        found.append("a program had a traceback")
    for block in page.blocks:
        output = re.split("^== ", done.stdout.partition(block.heading)[2], flags=re.MULTILINE)[0]
        if block.printed is not None and not re.search(block.printed, output, re.MULTILINE):
            found.append(f"{block.position} did not print {block.printed!r}")
    return found


def _with_commands() -> list[object]:
    """Return the pages to run, and the machine of each; xdist spreads the machines."""
    return [
        pytest.param(
            (page.given, page.given or page.name),
            page,
            id=page.name,
            marks=pytest.mark.xdist_group(f"machine {page.given or page.name}"),
        )
        for page in commands.pages()
        if page.has_commands
    ]


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Yield the machine of a page. The parameter has what is given, and the machine's name."""
    given, _ = request.param
    with machines.started(given) as made:
        yield made


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("machine", "page"), _with_commands(), indirect=["machine"], scope="module"
)
def test_commands_of_a_page_succeed(machine: Machine, page: Page) -> None:
    done = machine.run(page.script)
    assert _faults(page, done) == [], done.stdout


_MACHINE: Final = [(None, "empty")]


def _block(text: str, comment: str = "") -> str:
    return f"{comment}\n```sh\n{text}\n```\n"


def _until_sigterm(code: int, comment: str) -> str:
    script = f"trap 'exit {code}' TERM; echo 1; while :; do sleep 0.05; done"
    return _block(f'sh -c "{script}"', comment)


@pytest.mark.kernel
@pytest.mark.parametrize("machine", _MACHINE, indirect=True)
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (_block("true\nfalse\ntrue"), "exit 1"),
        (_block("true | false | true"), "exit 1"),
        (_block("(exit 3)\ntrue"), "exit 3"),
        (_block("exit 0"), "exit 0"),
        (_block("echo Traceback >&2"), "traceback"),
        (_block("echo 2", "<!-- prints: ^1$ -->") + _block("echo 1"), "page:2 did not print"),
        (_block("false", "<!-- SIGTERM after: 1 -->"), "exit 1"),
        (_until_sigterm(4, "<!-- SIGTERM after: 1 -->"), "exit 4"),
    ],
)
def test_faults_of_a_page_are_found(machine: Machine, text: str, fault: str) -> None:
    page = commands.parse(text, "page")
    (found,) = _faults(page, machine.run(page.script))
    assert fault in found


@pytest.mark.kernel
@pytest.mark.parametrize("machine", _MACHINE, indirect=True)
def test_blocks_of_a_page_are_run_in_order_in_one_shell(machine: Machine) -> None:
    page = commands.parse(
        _block("number=1")
        + "```toml\n# /etc/new/file.toml\nkey = 1\n```\n"
        + _block("false", "<!-- not run: it fails -->")
        + _block("number=$((number + 1))", "<!-- prints: ^$ -->")
        + _block("echo $number $(tail -n 1 /etc/new/file.toml)", "<!-- prints: ^2 key = 1$ -->")
        + _until_sigterm(0, "<!-- SIGTERM after: ^1$ -->"),
        "page",
    )
    done = machine.run(page.script)
    assert _faults(page, done) == []
    printed = [line for line in done.stdout.splitlines() if not line.startswith("==")]
    assert printed == ["2 key = 1", "1"]


@pytest.mark.kernel
@pytest.mark.parametrize("machine", _MACHINE, indirect=True)
def test_page_changes_only_its_own_machine(machine: Machine, tmp_path: Path) -> None:
    folders = (commands.ROOT, tmp_path, Path("/etc"), Path("/usr/local/bin"), Path("/var/log"))
    made = [folder / "made-by-a-page" for folder in folders]
    done = machine.run(
        f"mkdir -p {tmp_path}\nhostname made-by-a-page\ntouch {shlex.join(map(str, made))}"
    )
    assert done.returncode == 0, done.stdout
    assert [path for path in made if path.exists()] == []
    assert socket.gethostname() != "made-by-a-page"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (_block("true", "<!-- not run: -->"), "page:2: the comment 'not run:' above"),
        (_block("true", "<!-- not run -->"), "page:2: the comment 'not run' above"),
        (
            _block("true", "<!-- notrun: it fails -->"),
            "page:2: the comment 'notrun: it fails' above",
        ),
        ("```console\n$ true\n```", "page:1: the language of commands is sh, not console"),
    ],
)
def test_blocks_without_a_valid_mark_are_faults(text: str, sentence: str) -> None:
    with pytest.raises(commands.MarkError, match=sentence):
        commands.parse(text, "page")
