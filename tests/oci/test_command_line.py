from __future__ import annotations

import pytest

from ocsf_nft.errors import UsageError
from ocsf_nft.oci.command_line import parse


@pytest.mark.parametrize(
    ("arguments", "command", "container"),
    [
        ("create --bundle /b --pid-file /p web", "create", "web"),
        ("--root /r --log /l --log-format json create -b /b web", "create", "web"),
        ("--root=/r --systemd-cgroup create --no-pivot --console-socket /s web", "create", "web"),
        ("-root /r create -bundle /b web", "create", "web"),
        ("--rootless true --debug run -d --preserve-fds 3 web", "run", "web"),
        ("--cgroup-manager cgroupfs --log-level debug create --no-pivot web", "create", "web"),
        ("run --bundle /b -- -web", "run", "-web"),
        ("run --", "run", None),
        ("run -", "run", "-"),
        ("exec web run --bundle /b", "exec", "web"),
        ("restore --image-path /i --detach web", "restore", "web"),
        ("delete --force web", "delete", "web"),
        ("delete -f web", "delete", "web"),
        ("kill --all web KILL", "kill", "web"),
        ("--version", None, None),
        ("create --bundle /b", "create", None),
        ("--root", None, None),
        ("", None, None),
    ],
)
def test_command_and_container_are_found(
    arguments: str, command: str | None, container: str | None
) -> None:
    found = parse(arguments.split())
    assert (found.command, found.container) == (command, container)
    assert found.runtime == tuple(arguments.split())


def test_options_of_the_runtime_and_of_the_wrapper_are_separate() -> None:
    options = ("--root", "/r", "--log=/l")
    rest = ("--log=/l", "create", "--bundle", "/b", "--pid-file=/p", "--no-pivot", "web")
    arguments = ("--root", "/r", *rest)
    found = parse(["--ocsf-nft-runtime=crun", options[0], "/r", "--ocsf-nft-timeout=2", *rest])
    assert found.own == {"runtime": "crun", "timeout": "2"}
    assert found.options == {"root": "/r", "log": "/l", "bundle": "/b", "pid-file": "/p"}
    assert found.global_arguments == options
    assert found.runtime == arguments


@pytest.mark.parametrize("arguments", ["--new value create web", "enter run web"])
def test_unknown_command_that_could_start_a_container_is_refused(arguments: str) -> None:
    with pytest.raises(UsageError, match="without a fence"):
        parse(arguments.split())


@pytest.mark.parametrize(
    "arguments",
    [
        "run web --bundle /b",
        "run --bundle /a web --bundle=/b",
        "create web --pid-file /p",
        "run --new value web",
        "run --bund=/b web",
        "run -b/b web",
        "run --config /c web",
        "restore --config=/c web",
        "create -f /c web",
    ],
)
def test_argument_that_could_select_another_bundle_is_refused(arguments: str) -> None:
    with pytest.raises(UsageError, match="without a fence"):
        parse(arguments.split())


def test_arguments_of_a_program_in_the_container_are_not_the_wrappers() -> None:
    arguments = ("exec", "web", "echo", "--ocsf-nft-runtime=x")
    found = parse(arguments)
    assert (found.runtime, found.own) == (arguments, {})


def test_other_unknown_command_is_passed_on() -> None:
    assert parse(["enter", "web"]).command == "enter"


def test_own_option_needs_a_value() -> None:
    with pytest.raises(UsageError, match="--ocsf-nft-control=VALUE"):
        parse(["--ocsf-nft-control", "/s", "create", "web"])
