#!/usr/bin/env python3
"""Run a program in a fenced sandbox of its own: supervisor.py PROGRAM [ARGUMENT]...

It prints each attempt to bypass the proxy, and allows an approved destination at the first attempt.
Needs root, a service (`ocsf-nft run --config FILE`, with the key control), and ocsf-nft[http].
"""

import asyncio
import os
import subprocess
import sys
from typing import Any

import ocsf_nft

CONTROL = os.environ.get("OCSF_NFT_CONTROL", "/run/ocsf-nft/control.sock")
#: The proxy listens at the host's end of the sandbox's only link.
HOST, SANDBOX = "10.200.0.1", "10.200.0.2"
POLICY: dict[str, Any] = {"proxy": [f"{HOST}:3128"], "labels": {"started-by": "supervisor.py"}}
APPROVED = {"203.0.113.7:443"}


async def main(program: list[str]) -> int:
    name = f"job-{os.getpid()}"
    make_namespace(name)
    try:
        async with ocsf_nft.Client(CONTROL) as client:
            # Before the program starts. When this returns, the fence is active and watched.
            await client.put(name, netns=name, **POLICY)
            seen: list[str] = []
            watching = asyncio.create_task(watch(client, name, seen))
            try:
                process = await asyncio.create_subprocess_exec(
                    "ip", "netns", "exec", name, *program
                )
                return await process.wait()
            finally:
                watching.cancel()
                final = await client.release(name)
                # All attempts are stored now: show those that the task has not.
                async for event in client.events(sandbox=name, after=seen[-1] if seen else None):
                    show(event)
                refused = sum(row["refused"] for row in final["counts"])
                print(f"{name}: {refused} packets refused", flush=True)
    finally:
        ip("netns", "delete", name)


async def watch(client: ocsf_nft.Client, name: str, seen: list[str]) -> None:
    async for event in client.events(sandbox=name, follow=True):
        seen[:] = [event["metadata"]["uid"]]
        show(event)
        destination = destination_of(event)
        if destination in APPROVED:
            await allow(client, name, f"tcp:{destination}")


def show(event: dict[str, Any]) -> None:
    if event["class_name"] == "Network Activity":
        print(event["message"], flush=True)


def destination_of(event: dict[str, Any]) -> str:
    end = event.get("dst_endpoint", {})
    return f"{end.get('ip')}:{end.get('port')}"


async def allow(client: ocsf_nft.Client, name: str, exception: str) -> None:
    present = await client.sandbox(name)
    allowed = {*present["policy"].get("allow", ()), exception}
    policy = present["policy"] | {"allow": sorted(allowed)}
    # With if_match, a change by another program since then is not overwritten: ChangedError.
    done = await client.put(name, if_match=present["etag"], **policy)
    print(*done["changes"], sep="\n", flush=True)


def make_namespace(name: str) -> None:
    ip("netns", "add", name)
    host_end = f"v{os.getpid()}"
    ip("link", "add", host_end, "type", "veth", "peer", "name", "eth0", "netns", name)
    ip("address", "add", f"{HOST}/30", "dev", host_end)
    ip("link", "set", host_end, "up")
    ip("-n", name, "address", "add", f"{SANDBOX}/30", "dev", "eth0")
    ip("-n", name, "link", "set", "eth0", "up")
    ip("-n", name, "link", "set", "lo", "up")
    ip("-n", name, "route", "add", "default", "via", HOST)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        sys.exit(asyncio.run(main(sys.argv[1:])))
    except ocsf_nft.OcsfNftError as error:
        sys.exit(f"supervisor: {error}")
