"""Options of the command line, and their defaults."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.cli import options
from ocsf_nft.cli.lazy_command import LazyCommand
from ocsf_nft.cli.program import program
from ocsf_nft.control_request import SOCKET
from ocsf_nft.errors import UsageError
from ocsf_nft.fence import spec, state
from ocsf_nft.ocsf import versions
from tests.cli import forked

if TYPE_CHECKING:
    from pathlib import Path

    import click


def test_defaults_of_the_command_line_are_those_of_the_fence() -> None:
    assert options.DEFAULT_GROUP == spec.DEFAULT_GROUP
    assert options.DEFAULT_STATE_DIR == state.DEFAULT_DIRECTORY
    assert str(options.DEFAULT_CONTROL) == SOCKET


@pytest.mark.parametrize(
    ("sandbox", "others", "sentence"),
    [
        ({"proxy": ["10.0.0.1:70000"]}, {}, '--proxy: the port of "10.0.0.1:70000" is out'),
        ({"name": "a b"}, {}, '--sandbox: "a b" is no sandbox name: use 1 to 64 letters'),
        ({"netns": ""}, {}, "--netns: must not be empty: leave it out for its default"),
        ({"group": 70_000}, {}, "--group: input should be less than or equal to 65535"),
        ({}, {"store": {"max_bytes": "1 B"}}, "--store-max-bytes: "),
        ({"proxy": []}, {}, "a fence of profile sandbox needs --proxy ADDR:PORT"),
    ],
)
def test_wrong_value_of_an_option_is_reported_by_the_name_of_the_option(
    sandbox: dict[str, object], others: dict[str, object], sentence: str
) -> None:
    valid = {"name": "agent", "proxy": ["10.0.0.1:3128"], "install": True}
    with pytest.raises(UsageError) as refused:
        options.one(valid | sandbox, **others)
    assert str(refused.value).startswith(sentence)


def test_default_version_of_the_command_line_is_that_of_the_mapper() -> None:
    assert options.DEFAULT_OCSF_VERSION == versions.STORED


def _commands() -> dict[str, click.Command]:
    return {
        name: command.loaded()
        for name, command in program.commands.items()
        if isinstance(command, LazyCommand)
    }


def test_summary_of_a_command_is_the_first_sentence_of_its_help() -> None:
    summaries = {name: command.short_help for name, command in program.commands.items()}
    assert len(summaries) == 21
    assert summaries == {
        name: (command.help or "").partition("\n")[0] for name, command in _commands().items()
    }
    assert {name: command.name for name, command in _commands().items()} == {
        name: name for name in summaries
    }


def test_numbers_of_the_command_line_have_their_defaults() -> None:
    numbers = {
        (name, option.name): option.default
        for name, command in _commands().items()
        for option in command.params
        if isinstance(option.default, int | float) and not isinstance(option.default, bool)
    }
    assert numbers == {
        ("add", "group"): 4001,
        ("check", "gateway_port"): 3128,
        ("events", "lines"): 20,
        ("install", "group"): 4001,
        ("run", "group"): 4001,
        ("tail", "lines"): 20,
        ("watch", "lines"): 20,
    }


@pytest.mark.parametrize("version", versions.VERSIONS)
def test_version_may_be_abbreviated(version: str) -> None:
    assert versions.full_version(version) == version
    assert versions.full_version(version.removesuffix(".0")) == version


@pytest.mark.parametrize("text", ["", "1", "1.2", "1.2.0", "1.8.1", "v1.8", "1.8.0.0", "1.8\n"])
def test_unknown_version_is_answered_with_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match=r"1\.1\.0, .*, 1\.9\.0$"):
        versions.full_version(text)


@pytest.mark.parametrize(
    "besides",
    [
        ("--sandbox", "a"),
        ("--proxy", "10.0.0.1:3128"),
        ("--output", "-"),
        ("--state-dir", "elsewhere"),
        ("--group", "4001"),
        ("--attribution", "user"),
        ("--install",),
    ],
    ids=" ".join,
)
def test_option_that_a_file_would_override_is_refused(
    tmp_path: Path, besides: tuple[str, ...]
) -> None:
    file = tmp_path / "ocsf-nft.toml"
    file.write_text('[[sandbox]]\nname = "a"\nnetns = "/nowhere"\n')
    done = forked.run("run", "--config", file, *besides)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("ocsf-nft: --config is in place of")
    assert all(option in sentence for option in besides if option.startswith("--"))


@pytest.mark.parametrize(
    "besides",
    [
        ("--install", "--proxy", "nonsense", "--sandbox", "a"),
        ("--transport", "none"),
        ("--attribution", "user"),
        ("--state-dir", "elsewhere"),
    ],
    ids=" ".join,
)
def test_option_without_effect_on_a_replay_is_refused(
    tmp_path: Path, besides: tuple[str, ...]
) -> None:
    log = tmp_path / "kernel.log"
    log.touch()
    command = ("run", "--source", f"replay:{log}")
    done = forked.run(*command, *besides)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("ocsf-nft: --source replay:PATH only reads a file")
    assert all(option in sentence for option in besides if option.startswith("--"))
    events = tmp_path / "events.jsonl"
    done = forked.run(*command, "--output", events)
    assert done.returncode == 0


@pytest.mark.parametrize("command", ["convert", "validate"])
def test_standard_input_that_is_named_twice_is_empty_the_second_time(command: str) -> None:
    done = forked.run(command, "-", "-", input="no log record, and no event\n")
    assert (done.returncode, "failed" in done.stderr) == (command == "validate", False)


def test_unknown_attribution_method_is_answered_with_the_known_ones() -> None:
    done = forked.run("run", "--sandbox", "a", "--attribution", "ebpf")
    assert done.returncode == 2
    assert done.stderr == ("ocsf-nft: --attribution: must be capture, socket or user\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("remove", "--sandbox", "a", "--netns", "/nowhere", "--state-dir"),
        ("run", "--config"),
        ("convert", "--rejects"),
    ],
    ids=" ".join,
)
def test_path_is_not_refused_for_missing_permission(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Otherwise a user who may not read the default --state-dir could not replay a file."""
    path = tmp_path if "--state-dir" in arguments else tmp_path / "a file"
    if path != tmp_path:
        path.write_text("no TOML")
    # Root may read everything, so access(2), which the check would use, is replaced.
    program = "import os; os.access = lambda *_, **__: False; from ocsf_nft.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "not readable" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ({"option", "file", "environment"}, "option"),
        ({"file", "environment"}, "file"),
        ({"other file", "environment"}, "environment"),
        ({"environment"}, "environment"),
        ({"other file"}, None),
        (set(), None),
    ],
)
def test_state_directory_is_that_of_the_option_the_file_or_the_environment(
    tmp_path: Path, given: set[str], used: str | None
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'state_dir = "{tmp_path}/file"\n' if "file" in given else "handshake = true\n")
    arguments: list[str | Path] = ["status", "--sandbox", "a"]
    if given & {"file", "other file"}:
        arguments += ["--config", file]
    if "option" in given:
        arguments += ["--state-dir", tmp_path / "option"]
    env = {options.STATE_DIR_VARIABLE: f"{tmp_path}/environment" if "environment" in given else ""}
    done = forked.run(*arguments, env=env)
    directory = options.DEFAULT_STATE_DIR if used is None else tmp_path / used
    assert done.returncode == 2
    assert done.stderr == f"ocsf-nft: {directory} has no record of sandbox a: is it fenced?\n"


def test_commands_with_a_state_directory_take_it_from_a_file() -> None:
    named = {
        name: {option.name for option in command.params} for name, command in _commands().items()
    }
    with_directory = {name for name, options in named.items() if "state_dir" in options}
    readers = {"status", "events", "incident", "report", "tail", "list"}
    assert with_directory == {"install", "verify", "remove", "run", *readers}
    assert all("config" in named[name] for name in with_directory)


def test_run_with_a_file_uses_the_environments_state_directory_unless_the_file_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(options.STATE_DIR_VARIABLE, "/run/elsewhere")
    file = tmp_path / "run.toml"
    watched = '[[sandbox]]\nname = "a"\n'
    file.write_text(watched)
    assert str(options.configuration(file).state_dir) == "/run/elsewhere"
    file.write_text(f'state_dir = "/run/file"\n{watched}')
    assert str(options.configuration(file).state_dir) == "/run/file"
