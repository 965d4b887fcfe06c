"""``run``."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import structlog
import typer

from ocsf_nft.cli import options
from ocsf_nft.cli.output import say, write_stderr_at_once
from ocsf_nft.cli.read_summary import rejected
from ocsf_nft.errors import OcsfNftError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from ocsf_nft.config import Config
    from ocsf_nft.config.listen_address import Listening
    from ocsf_nft.service import Counts, Service

_log = structlog.get_logger()

_REPLAY: Final = "replay:"
#: A second signal within this time is the first one again: GNU timeout signals its child and then
#: the whole process group.
_REPEATED_SIGNAL_SECONDS: Final = 1.0


def run(  # noqa: PLR0913, PLR0917 - each is an option
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="A TOML file, in place of the other options.",
            metavar="FILE",
            readable=False,  # reading it tells, in our own sentence
        ),
    ] = None,
    sandbox: Annotated[
        str | None, typer.Option("--sandbox", help="The sandbox's name.", metavar="NAME")
    ] = None,
    profile: options.Profile = "sandbox",
    proxy: options.Proxies = [],  # noqa: B006 - typer copies it
    netns: options.Netns = None,
    pid: options.Pid = None,
    allow: options.Exceptions = [],  # noqa: B006 - the same
    host_guard: options.HostGuard = None,
    proxy_uid: options.ProxyUids = [],  # noqa: B006 - the same
    device: options.Device = None,
    subnet: options.Subnets = [],  # noqa: B006 - the same
    gateway_port: options.GatewayPort = None,
    mac: options.Mac = None,
    permissive: options.Permissive = False,
    exclusive: options.Exclusive = False,
    transport: options.Transport = "auto",
    group: options.Group = options.DEFAULT_GROUP,
    source: Annotated[
        str,
        typer.Option(
            "--source",
            help="Where records are read from; auto takes what the fence logs to.",
            metavar="auto|nflog|kmsg|journal|replay:PATH",
        ),
    ] = "auto",
    output: Annotated[
        str, typer.Option("--output", help="Where events go: a file, or - for stdout.")
    ] = "-",
    handshake: Annotated[
        bool,
        typer.Option(
            "--handshake",
            help="Begin standard output with a line that says that the fence stands.",
        ),
    ] = False,
    ocsf_version: options.OcsfVersion = options.DEFAULT_OCSF_VERSION,
    install: Annotated[
        bool,
        typer.Option("--install", help="Fence first; remove at exit what was not there before."),
    ] = False,
    self_heal: Annotated[
        bool,
        typer.Option(
            "--self-heal/--no-self-heal",
            help="Put the fence back at once when others alter it, or only tell of it.",
        ),
    ] = True,
    attribution: Annotated[
        str,
        typer.Option(
            "--attribution",
            help="The best way to be used to name the process behind an attempt.",
            metavar="capture|socket|user",
        ),
    ] = "capture",
    store_max_bytes: Annotated[
        str,
        typer.Option(
            "--store-max-bytes",
            help="What the store of events may take of the disk.",
            metavar="SIZE",
        ),
    ] = "1GiB",
    state_dir: options.StateDir = options.DEFAULT_STATE_DIR,
) -> None:
    """Watch fenced sandboxes and emit an event for each attempt.

    A file may name a host_log as well: what this host's other firewalls log becomes events too.

    A fence that others alter, or flush, is put back at once, and told of. When that is fought over
    (10 times in a minute) it rests for a minute, and says so.

    Each event is in the store before any sink gets it, and stays until all have it: see
    `ocsf-nft events`. A disk that is full is waited for, and no record is read meanwhile.

    The process behind an attempt is named as the kernel tells it while it sends (BPF), or else as
    the one that has the socket afterwards, or not: each event says how. `check` says what this host
    allows.

    Ctrl-C and SIGTERM: what the kernel has logged by then is kept and delivered, then exit 0. What
    a sink does not take within some seconds is delivered by the next run. A second one, more than a
    second after the first, ends it at once: exit 3. SIGHUP reads --config again, for its sinks,
    severities and findings; without --config it ends the run too. On a failure the fence stays.
    Exit 1: a fence was fought over, and does not stand at the end.

    Needs CAP_NET_ADMIN over the namespace (NFLOG, nft), CAP_SYS_ADMIN to enter another one,
    CAP_SYS_PTRACE to find that of another user's process and to look at processes, CAP_BPF and
    CAP_PERFMON to capture calls, CAP_SYSLOG for the kernel log; drops all other capabilities.

    Example: ocsf-nft run --sandbox agent --netns agent --proxy 10.0.0.1:3128 --install
    """
    from ocsf_nft import config as configuration
    from ocsf_nft import malloc_trim, privileges, service
    from ocsf_nft.cli.logs import to_stderr_at_once
    from ocsf_nft.delivery.event_db import FILE

    to_stderr_at_once()
    if source.startswith(_REPLAY):
        _nothing_besides(
            context,
            {"source", "output", "ocsf_version"},
            f"--source {_REPLAY}PATH only reads a file, and has no fence: leave out {{}}",
        )
        outlet = service.Outlet.of(configuration.sink(output, ocsf_version))
        path = Path(source.removeprefix(_REPLAY))
        counts = asyncio.run(_until_signal(lambda stop: service.replay([path], outlet, stop)))
        say(_summary(counts))
        return
    if config is not None:
        _nothing_besides(
            context, {"config"}, "--config is in place of the other options: put {} into the file"
        )
        wanted = configuration.load(config)
    elif sandbox is not None:
        wanted = options.one(
            {
                "name": sandbox,
                "profile": profile,
                "netns": netns,
                "pid": pid,
                "proxy": proxy,
                "allow": allow,
                "host_guard": host_guard,
                "proxy_uid": proxy_uid,
                "device": device,
                "subnet": subnet,
                "gateway_port": gateway_port,
                "mac": mac,
                "permissive": permissive,
                "exclusive": exclusive,
                "transport": transport,
                "group": group,
                "source": source,
                "install": install,
                "self_heal": self_heal,
            },
            output=output,
            handshake=handshake,
            ocsf_version=ocsf_version,
            state_dir=state_dir,
            attribution={"method": attribution},
            # Runs of other sandboxes have the same folder, and keep their own.
            store={"path": state_dir / sandbox / FILE, "max_bytes": store_max_bytes},
        )
    else:
        raise UsageError("name what to watch: --config FILE, or --sandbox NAME")

    if config is not None:
        # From here on it means to read the file again: not yet, and no more as the run ends.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if any(each.self_heal for each in wanted.sandbox):
        privileges.go_first()
    malloc_trim.share_heap()
    privileges.keep_only(service.capabilities(wanted))

    counts = asyncio.run(_until_signal(lambda stop: _watch(wanted, config, stop)))
    # A reader that is not there must not keep a run that was told to stop from ending.
    write_stderr_at_once(f"{_summary(counts)}\n".encode())
    if counts.given_up:
        fallen = ", ".join(counts.given_up)
        sentence = f"ocsf-nft: given up, and does not stand: the fence of {fallen}\n"
        write_stderr_at_once(sentence.encode())
        raise typer.Exit(1)


async def _watch(wanted: Config, path: Path | None, stop: asyncio.Event) -> Counts:
    from ocsf_nft import sd_notify, service
    from ocsf_nft.service import health

    async with contextlib.AsyncExitStack() as stack:
        stack.callback(sd_notify.tell, STOPPING="1")
        running = await stack.enter_async_context(service.Service(wanted, stop=stop))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        if wanted.listen is not None:
            await stack.enter_async_context(_answering(running, wanted.listen))
        tasks = [group.create_task(sd_notify.keep_alive(lambda: not health.stuck(running)))]
        if path is not None:
            tasks.append(group.create_task(_reload_on_hangup(running, path)))
        _settle(wanted)
        sd_notify.tell(READY="1", STATUS=_watching(wanted))
        await stop.wait()
        for task in tasks:
            task.cancel()
    return running.counts


def _settle(wanted: Config) -> None:
    from ocsf_nft import malloc_trim

    # What exists by now stays: a collection that looks at it again is latency for nothing.
    gc.collect()
    gc.freeze()
    malloc_trim.give_back()
    say(f"ready: {_watching(wanted)}")


def _watching(wanted: Config) -> str:
    watched = [each.name for each in wanted.sandbox]
    if wanted.host_log is not None:
        watched.append(f"what other firewalls log ({wanted.host_log})")
    return f"watching {', '.join(watched)}"


def _answering(running: Service, at: Listening) -> AbstractAsyncContextManager[None]:
    try:
        from ocsf_nft.http_server import answering
    except ImportError as error:
        raise UnsupportedError("listen needs the extra ocsf-nft[http]: install it") from error
    return answering(running, at)


async def _reload_on_hangup(running: Service, path: Path) -> None:
    from ocsf_nft import config as configuration
    from ocsf_nft import sd_notify

    hung_up = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    try:
        while True:
            await hung_up.wait()
            hung_up.clear()
            sd_notify.tell_reloading()
            try:
                await running.reload(await asyncio.to_thread(configuration.load, path))
            except OcsfNftError as error:
                # Not worse than before: all goes on with what was read last.
                _log.error("not reloaded", reason=str(error))
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    return  # the run has been told to stop meanwhile
            else:
                _log.warning("reloaded", path=str(path))
            sd_notify.tell(READY="1")
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


async def _until_signal(
    work: Callable[[asyncio.Event], Awaitable[Counts]],
) -> Counts:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(_Impatient(thread_name_prefix="asyncio"))
    first: float | None = None

    def end(number: int, _frame: object) -> None:
        nonlocal first
        # A closing terminal sends SIGHUP twice, and systemd sends it after SIGTERM.
        if number == signal.SIGHUP:
            return
        if first is None:
            first = monotonic()
        elif monotonic() - first >= _REPEATED_SIGNAL_SECONDS:
            _end_at_once()

    before = {number: signal.getsignal(number) for number in _ending_signals()}
    for number in before:
        # asyncio's wakes a loop that is just about to sleep; ours doesn't wait for a loop that may
        # be waiting for a full pipe.
        loop.add_signal_handler(number, stop.set)
        signal.signal(number, end)
    try:
        return await work(stop)
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


class _Impatient(ThreadPoolExecutor):
    """Threads that the loop does not wait for at its end: a name server may never answer one."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Begin nothing more; ``wait`` is the loop's wish, and not heeded."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


def _ending_signals() -> tuple[signal.Signals, ...]:
    # Under nohup(1) SIGHUP is ignored, and stays so.
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))


def _end_at_once() -> NoReturn:
    # Only when it can be said without waiting: standard error may be the same full pipe.
    write_stderr_at_once(b"ocsf-nft: stopped at once: what was waiting is not delivered\n")
    os._exit(3)  # a thread that waits for the full pipe lets no other exit end


def _nothing_besides(context: typer.Context, allowed: set[str], sentence: str) -> None:
    """Raises UsageError for options that would have no effect, as the sentence with them in it."""
    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in allowed
        and (found := context.get_parameter_source(name)) is not None
        and found.name != "DEFAULT"
    ]
    if given:
        raise UsageError(sentence.format(", ".join(given)))


def _summary(counts: Counts) -> str:
    return (
        f"{counts.records} records, {counts.events} events, {counts.dropped} lost in "
        f"{counts.gaps} gaps{rejected(counts.rejected)}"
    )
