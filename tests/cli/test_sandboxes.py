"""Commands that change, list and show the sandboxes of a running service."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.errors import ConflictError, FenceError, OcsfNftError
from tests.cli import forked
from tests.control.engine import HUGE, Served, serving

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PROXY = ("--proxy", "10.0.0.1:3128")


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        async with serving(Path(folder) / "c") as made:
            yield made


class Commands:
    """Command line with the socket of a service."""

    def __init__(self, served: Served) -> None:
        self.served = served

    async def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"OCSF_NFT_CONTROL": str(self.served.path)}
        return await asyncio.to_thread(forked.run, *arguments, env=env, **options)

    async def shown(self, *arguments: str, code: int = 0) -> str:
        """Return the text for people of a command with no other output."""
        done = await self.run(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        return done.stderr

    async def written(self, *arguments: str, code: int = 0) -> str:
        done = await self.run(*arguments)
        assert (done.returncode, done.stderr) == (code, "")
        return done.stdout

    def policy(self, name: str) -> dict[str, Any]:
        return self.served.sandboxes.found[name].config.given()


@pytest.fixture
def commands(served: Served) -> Commands:
    return Commands(served)


async def test_added_sandbox_has_the_given_policy_and_no_defaults(commands: Commands) -> None:
    assert await commands.shown(
        "add", "a", "--netns", "agent", *PROXY, "--proxy", "[fd00::1]:3128",
        "--allow", "udp:10.0.0.53:53", "--host-guard", "veth-a", "--exclusive",
        "--label", "team=search", "--label", "note=a=b c", "--label", "empty=",
        "--tenant-uid", "acme",
    ) == "sandbox a is active, enforcing\n"  # fmt: skip
    assert commands.policy("a") == {
        "netns": "agent",
        "proxy": ["10.0.0.1:3128", "[fd00::1]:3128"],
        "allow": ["udp:10.0.0.53:53"],
        "host_guard": "veth-a",
        "exclusive": True,
        "install": True,
        "labels": {"team": "search", "note": "a=b c", "empty": ""},
        "tenant_uid": "acme",
    }


async def test_all_options_of_other_profiles_are_sent(commands: Commands) -> None:
    await commands.shown(
        "add", "vm", "--profile", "tap", "--device", "tap0", "--subnet", "172.16.0.1/30",
        "--gateway-port", "3128", "--mac", "02:00:00:00:00:02", "--strict", "--permissive",
        "--transport", "nflog", "--group", "7",
    )  # fmt: skip
    assert commands.policy("vm") == {
        "profile": "tap", "device": "tap0", "subnet": ["172.16.0.1/30"], "gateway_port": 3128,
        "mac": "02:00:00:00:00:02", "strict": True, "permissive": True,
        "transport": "nflog", "group": 7,
        "install": True,
    }  # fmt: skip
    await commands.shown("set", "vm", "--no-strict")
    assert commands.policy("vm")["strict"] is False
    await commands.shown("set", "vm", "--strict")
    assert commands.policy("vm")["strict"] is True
    await commands.shown("add", "pod", "--profile", "sidecar", "--pid", "1", "--proxy-uid", "0")
    assert commands.policy("pod") == {
        "profile": "sidecar", "pid": 1, "proxy_uid": [0], "install": True,
    }  # fmt: skip


async def test_path_of_a_namespace_is_made_absolute(commands: Commands) -> None:
    await commands.shown("add", "a", "--netns", "./ns", *PROXY)
    assert commands.policy("a")["netns"] == str(Path.cwd() / "ns")


async def test_only_given_keys_change(commands: Commands) -> None:
    await commands.shown("add", "a", "--netns", "x", *PROXY, "--label", "k=v", "--label", "l=w")
    shown = await commands.shown(
        "set", "a", "--allow", "tcp:10.0.0.7:5432", "--label", "k=new", "--permissive",
        "--tenant-uid", "acme",
    )  # fmt: skip
    assert shown == "sandbox a is active, permissive\n  policy: changed\n"
    assert commands.policy("a") == {
        "netns": "x", "proxy": ["10.0.0.1:3128"], "allow": ["tcp:10.0.0.7:5432"],
        "permissive": True, "labels": {"k": "new", "l": "w"}, "tenant_uid": "acme",
        "install": True,
    }  # fmt: skip
    await commands.shown(
        "set", "a", "--enforcing", "--unset", "allow", "--unset", "labels", "--unset", "tenant_uid"
    )
    assert commands.policy("a") == {
        "netns": "x", "proxy": ["10.0.0.1:3128"], "permissive": False, "install": True,
    }  # fmt: skip


async def test_dry_run_shows_the_difference_and_changes_nothing(commands: Commands) -> None:
    await commands.shown("add", "a", *PROXY, "--allow", "udp:10.0.0.53:53", "--label", "k=v")
    calls = list(commands.served.sandboxes.calls)
    assert await commands.written(
        "set", "a", "--dry-run", "--allow", "tcp:10.0.0.7:5432", "--permissive", "--label", "k=w",
        "--label", "new=1", "--proxy", "10.0.0.1:3128",
    ) == (
        "allow: added tcp:10.0.0.7:5432\n"
        "allow: removed udp:10.0.0.53:53\n"
        'labels: {"k":"v"} → {"k":"w","new":"1"}\n'
        "permissive: none → true\n"
    )  # fmt: skip
    assert await commands.shown("set", "a", "--dry-run", "--enforcing") == (
        "sandbox a: nothing would change\n"
    )
    shown = await commands.shown("set", "a", "--dry-run", "--allow", "tcp:host/8:1", code=2)
    assert "is no IP address: write one" in shown
    assert commands.served.sandboxes.calls == calls


async def test_released_sandbox_shows_its_final_counts(commands: Commands) -> None:
    await commands.shown("add", "a", *PROXY)
    assert await commands.shown("release", "a") == (
        f"sandbox a is released: {HUGE:,} packets counted, 7 reported, 2 log records dropped\n"
    )
    assert "there is no sandbox a" in await commands.shown("release", "a", code=2)


async def test_answers_are_json_on_request(commands: Commands) -> None:
    added = json.loads(await commands.written("add", "a", *PROXY, "--json"))
    assert added["sandbox"]["policy"] == {"proxy": ["10.0.0.1:3128"]}
    changed = json.loads(await commands.written("set", "a", "--permissive", "--json"))
    assert changed["changes"] == ["policy: changed"]
    await commands.shown("add", "b", *PROXY)
    listed = (await commands.written("list", "--json")).splitlines()
    assert [json.loads(line)["name"] for line in listed] == ["a", "b"]
    shown = json.loads(await commands.written("show", "a", "--json"))
    assert shown["counts"][0]["refused"] == HUGE
    final = json.loads(await commands.written("release", "a", "--json"))
    assert final["counts"] == shown["counts"]


async def test_list_and_show_are_tables(commands: Commands) -> None:
    assert "the service has no sandbox" in await commands.shown("list")
    await commands.shown("add", "a", "--netns", "agent", *PROXY, "--label", "team=search")
    await commands.shown("add", "long-name", "--pid", "7", *PROXY)
    assert await commands.written("list") == (
        "sandbox    state   mode       from  added                     namespace     labels\n"
        "a          active  enforcing  api   2023-11-14T22:13:20.123Z  agent         team=search\n"
        "long-name  active  enforcing  api   2023-11-14T22:13:20.123Z  of process 7\n"
    )
    assert (await commands.written("show", "a")).splitlines() == [
        "sandbox a: active, enforcing, added 2023-11-14T22:13:20.123Z (from: api)",
        "  netns: agent",
        "  proxy: 10.0.0.1:3128",
        "  labels: team = search",
        "  dropped log records of nflog: 2 in 1 gaps",
        # Numbers may have more than 64 bits.
        (
            "rule    refused                        allowed  reported  aggregated  pending  "
            "dropped  mismatch"
        ),
        (
            "egress  1,180,591,620,717,411,303,424  0        7         0           0        1   "
            "     1,180,591,620,717,411,303,417"
        ),
    ]


async def test_hostile_text_can_t_control_a_terminal(commands: Commands) -> None:
    await commands.shown("add", "a", "--netns", "/run/\x1b[2Jx", *PROXY)
    before = commands.served.sandboxes.found["a"]
    commands.served.sandboxes.found["a"] = replace(
        before, state="degraded", fault="a fault\n\x1b[31m of \u202e it"
    )
    listed = await commands.written("list")
    shown = await commands.written("show", "a", code=1)
    for text in (listed, shown, await commands.shown("set", "a", "--permissive")):
        assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert "/run/\\x1b[2Jx" in listed
    assert "fault: a fault\\x0a\\x1b[31m of \\u202e it" in shown


def _on_terminal(columns: int, *arguments: str, env: dict[str, str]) -> str:
    """Run a command with a terminal as standard output; return what it wrote."""
    master, slave = pty.openpty()
    try:
        done = forked.run(*arguments, stdout=slave, stderr=slave, env=env | {
            "COLUMNS": str(columns), "TERM": "xterm",
        })  # fmt: skip
        assert done.returncode == 0
        data = b""
        while select.select([master], [], [], 0)[0]:
            data += os.read(master, 1 << 16)
    finally:
        os.close(master)
        os.close(slave)
    return _COLOUR.sub("", data.decode())


async def test_table_on_a_narrow_terminal_has_the_whole_text(commands: Commands) -> None:
    await commands.shown(
        "add", "a", "--netns", "a-very-long-name", *PROXY, "--label", "kind=[red]x[/red]"
    )
    env = os.environ | {"OCSF_NFT_CONTROL": str(commands.served.path)}
    wide = await asyncio.to_thread(_on_terminal, 200, "list", env=env)
    assert "─" in wide
    assert "a-very-long-name" in wide
    assert "kind=[red]x[/red]" in wide
    narrow = await asyncio.to_thread(_on_terminal, 60, "list", env=env)
    rows = [line.strip() for line in narrow.splitlines()]
    assert max(map(len, rows)) <= 60
    assert "…" not in narrow


@pytest.mark.parametrize(
    ("error", "code"), [(ConflictError("it is in the file: change it"), 2), (FenceError("no"), 3)]
)
async def test_error_of_the_service_is_one_sentence_with_its_exit_code(
    commands: Commands, error: OcsfNftError, code: int
) -> None:
    commands.served.sandboxes.error = error
    assert await commands.shown("add", "a", *PROXY, code=code) == f"ocsf-nft: {error}\n"


async def test_fence_that_is_not_active_is_exit_1(commands: Commands) -> None:
    await commands.shown("add", "a", *PROXY)
    before = commands.served.sandboxes.found["a"]
    degraded = replace(before, state="degraded", fault="the kernel has no NFLOG")
    commands.served.sandboxes.found["a"] = degraded
    shown = await commands.written("show", "a", code=1)
    assert shown.splitlines()[1] == "  fault: the kernel has no NFLOG"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("add", "a/b", *PROXY), '"a/b" is no sandbox name'),
        (("add", "a"), "a fence of profile sandbox needs --proxy"),
        (("add", "a", "--proxy", "x"), "proxy.0: "),
        (("add", "a", *PROXY, "--label", "x"), '--label "x" is no label: write it like'),
        (("add", "a", *PROXY, "--label", "=x"), '--label "=x" is no label: write it like'),
        (("add", "a", *PROXY, "--label", "x y=1"), '"x y" is no key of a label'),
        (("set", "a"), "nothing would change: give --proxy"),
        (("set", "a", "--unset", "alow"), '--unset "alow": there is no such key: try allow'),
        (("set", "a", "--unset", "name"), '--unset "name": there is no such key'),
        (("set", "a", "--permissive", "--dry-run", "--json"), "--dry-run and --json can't be"),
        (("set", "none", "--permissive"), "there is no sandbox none"),
        (("show", "none"), "there is no sandbox none"),
        (("release", ".."), '".." is no sandbox name'),
    ],
)
async def test_bad_usage_is_one_sentence(
    commands: Commands, arguments: tuple[str, ...], sentence: str
) -> None:
    shown = await commands.shown(*arguments, code=2)
    assert sentence in shown
    assert shown.count("\n") == 1
    assert commands.served.sandboxes.calls == []


@pytest.mark.parametrize("command", [("list",), ("show", "a"), ("release", "a"), ("add", "a")])
def test_service_that_does_not_run_is_one_sentence(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "none"
    done = forked.run(*command, "--control", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"ocsf-nft: no service listens at {path}: start `ocsf-nft run` with the key control, or "
        "name the right --control\n"
    )
