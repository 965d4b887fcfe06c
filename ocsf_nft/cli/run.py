"""Command ``run``: watch fenced sandboxes and emit events."""

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
from typing import TYPE_CHECKING, Final, NoReturn

import click
import structlog

from ocsf_nft import sd_notify
from ocsf_nft.cli import options
from ocsf_nft.cli.output import rejected, show, write_stderr_at_once
from ocsf_nft.cli.policy_options import Policy, with_policy
from ocsf_nft.cli.reload import Reload, reload_on_hangup
from ocsf_nft.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from ocsf_nft.cli.logs import LogSettings
    from ocsf_nft.config import Config
    from ocsf_nft.control.socket_file import SocketFile
    from ocsf_nft.fence.values import Endpoint
    from ocsf_nft.service.pipeline import Counts
    from ocsf_nft.service.run import Service

_log = structlog.get_logger()

_REPLAY: Final = "replay:"
#: A second signal within this time counts as the first one: GNU timeout signals its child and then
#: the whole process group.
_REPEATED_SIGNAL_SECONDS: Final = 1.0


@click.command("run")
@options.config("A TOML file, in place of the other options.")
@click.option("--sandbox", metavar="NAME", help="The sandbox's name.")
@with_policy()
@click.option(
    "--source",
    default="auto",
    metavar="auto|nflog|kmsg|journal|replay:PATH",
    help="Source of the records; auto selects the source for the fence's log transport.",
)
@click.option(
    "--output",
    type=options.INPUT,
    default="-",
    metavar="FILE",
    help="File for the events, or - for standard output.",
)
@click.option(
    "--handshake",
    is_flag=True,
    help="Write a first line to standard output when the fence is active.",
)
@options.ocsf_version
@click.option("--install", is_flag=True, help="Install the fence; remove it at exit if it is new.")
@click.option(
    "--self-heal/--no-self-heal",
    default=True,
    help="Restore the fence at once if another process changes it, or only report that.",
)
@click.option(
    "--attribution",
    default="capture",
    metavar="capture|socket|user",
    help="Best method to use for finding the process behind an attempt.",
)
@click.option(
    "--store-max-bytes",
    default="1GiB",
    metavar="SIZE",
    help="Maximum size of the stored events and dead letters, without packet counts.",
)
@options.state_dir
@click.pass_context
def run(  # noqa: PLR0913 - each is an option
    context: click.Context,
    *,
    config: Path | None,
    sandbox: str | None,
    policy: Policy,
    source: str,
    output: str,
    handshake: bool,
    ocsf_version: str,
    install: bool,
    self_heal: bool,
    attribution: str,
    store_max_bytes: str,
    state_dir: Path | None,
) -> None:
    """Watch fenced sandboxes and report each bypass attempt.

    The file of --config can also have the key host_log. Then log records of this host's other
    firewalls become events too. With the key control, the run has a control socket: `ocsf-nft add`,
    `set` and `release` add, change and release sandboxes while it runs.

    If another process changes or flushes the fence, the run restores it at once, and an event
    reports that. After 10 restores in a minute, the run pauses restoring for a minute, and reports
    that.

    Each event is written to the store before any sink gets it. It stays there until all sinks have
    acknowledged it: see `ocsf-nft events`. While the disk is full, the run waits and reads no
    records.

    The run has three methods to find the process behind an attempt. `capture` (BPF) finds the
    process that the kernel sees sending. `socket` finds the process that has the socket when the
    run reads the log record. `user` finds only the user. The run tries the method of --attribution
    first, and then the methods after it. Each event has the method that was used. `check` shows the
    methods that this host allows.

    Ctrl-C or SIGTERM ends the run: it stores and delivers the records that the kernel has logged by
    then, and exits with 0. At the end, the run waits at most five seconds for the sinks. The next
    run delivers the events that remain. A second signal, more than a second after the first, ends
    the run at once with exit 3. SIGHUP reads the file of --config again, and applies its settings
    for sinks, severities and findings (Detection Finding events). Without --config, SIGHUP ends the
    run like SIGTERM. If the run fails, the run does not remove the fence. Exit 1: the run ended
    while a fence was not active and restoring the fence was paused.

    Needs CAP_NET_ADMIN over the namespace (NFLOG, nft), and CAP_SYS_ADMIN to enter another
    namespace. CAP_SYS_PTRACE is for finding the namespace of another user's process, and for
    inspecting processes. CAP_BPF and CAP_PERFMON are for the capture (BPF), and CAP_SYSLOG is for
    the kernel log. The run drops all other capabilities.

    Example: ocsf-nft run --sandbox agent --netns agent --proxy 10.0.0.1:3128 --install
    """
    # Imports create many objects and no garbage: to look for some is a twentieth of their time.
    gc.disable()
    from ocsf_nft import config as configuration
    from ocsf_nft import malloc_trim, privileges
    from ocsf_nft.cli.logs import to_stderr_at_once
    from ocsf_nft.service import startup
    from ocsf_nft.service.outlet import Outlet
    from ocsf_nft.service.pipeline import replay

    # Before capabilities are dropped: the program's files may be unreadable then.
    from ocsf_nft.service.run import Service
    from ocsf_nft.state.state_db import FILE

    gc.enable()
    log_settings: LogSettings = context.obj
    to_stderr_at_once(log_settings)
    if source.startswith(_REPLAY):
        _require_only(
            context,
            {"source", "output", "ocsf_version"},
            f"--source {_REPLAY}PATH only reads a file, and has no fence: leave out {{}}",
        )
        outlet = Outlet.of(configuration.sink(output, ocsf_version))
        path = Path(source.removeprefix(_REPLAY))
        counts = asyncio.run(_until_signal(lambda stop: replay([path], outlet, stop)))
        _report_end(counts, log_settings, show)
        return
    if config is not None:
        _require_only(
            context, {"config"}, "--config is in place of the other options: put {} into the file"
        )
        requested = options.configuration(config)
    elif sandbox is not None:
        state = options.state_directory(state_dir)
        requested = options.one(
            {
                "name": sandbox, **policy, "source": source, "install": install,
                "self_heal": self_heal,
            },
            output=output, handshake=handshake, ocsf_version=ocsf_version, state_dir=state,
            attribution={"method": attribution},
            # Runs of other sandboxes use the same folder; each has its own store.
            store={"path": state / sandbox / FILE, "max_bytes": store_max_bytes},
        )  # fmt: skip
    else:
        raise UsageError("name what to watch: --config FILE, or --sandbox NAME")

    if config is not None:
        # With --config this signal means a reload. It is ignored until the run is ready.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if requested.control is not None or any(each.self_heal for each in requested.sandbox):
        privileges.raise_priority()
    malloc_trim.use_one_heap()
    privileges.raise_descriptor_limit()
    # Before capabilities are dropped: the socket's group may be any, and a client that is early
    # waits until the service is ready.
    with _control_socket(requested) as control:
        # The only work that needs the capabilities for BPF.
        programs = startup.load_programs(requested)
        startup.drop_privileges(requested)
        # A service with a file waits for the sandboxes in it.
        counts = asyncio.run(
            _until_signal(
                lambda stop: _watch(
                    Service(requested, stop=stop, must_exist=config is None, programs=programs),
                    config,
                    stop,
                    log_settings,
                    control,
                )
            )
        )
    # A missing reader must not prevent the end of a run that received a signal to stop.
    _report_end(counts, log_settings, lambda text: write_stderr_at_once(f"{text}\n".encode()))
    if counts.given_up:
        names = ", ".join(counts.given_up)
        sentence = f"ocsf-nft: restoring was given up, and the fence is not active: {names}\n"
        write_stderr_at_once(sentence.encode())
        raise SystemExit(1)


async def _watch(
    service: Service,
    path: Path | None,
    stop: asyncio.Event,
    log_settings: LogSettings,
    control: SocketFile | None,
) -> Counts:
    from ocsf_nft.service import health

    requested = service.config
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(sd_notify.notify, STOPPING="1")
        running = await stack.enter_async_context(service)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        if requested.listen is not None:
            await stack.enter_async_context(_serving(running, requested.listen))
        tasks = [group.create_task(sd_notify.keep_alive(lambda: not health.stuck(running)))]
        if path is not None:
            reload = Reload(running, path)
            tasks.append(group.create_task(reload_on_hangup(reload)))
            if control is not None:
                await stack.enter_async_context(_serving_control(running, control, reload))
        _settle()
        _report_ready(requested, log_settings)
        sd_notify.notify(READY="1", STATUS=_watching(requested))
        await stop.wait()
        for task in tasks:
            task.cancel()
    return running.counts


def _settle() -> None:
    from ocsf_nft import malloc_trim

    # Objects that exist now stay: inspecting them again in each collection would only add latency.
    gc.collect()
    gc.freeze()
    malloc_trim.trim()


def _report_ready(requested: Config, log_settings: LogSettings) -> None:
    if log_settings.is_json:
        _log.info(
            "ready", sandboxes=[each.name for each in requested.sandbox],
            host_log=requested.host_log,
        )  # fmt: skip
    elif not log_settings.is_quiet:
        show(f"ready: {_watching(requested)}")


def _watching(requested: Config) -> str:
    watched = [each.name for each in requested.sandbox]
    if requested.host_log is not None:
        watched.append(f"logs of other firewalls ({requested.host_log})")
    if requested.control is not None:
        watched.append(f"sandboxes that are added at {requested.control}")
    return f"watching {', '.join(watched)}"


def _control_socket(requested: Config) -> AbstractContextManager[SocketFile | None]:
    if requested.control is None:
        return contextlib.nullcontext()
    try:
        from ocsf_nft.control import server  # noqa: F401 - a missing library is found early
    except ImportError as error:
        raise UnsupportedError("control needs the extra ocsf-nft[http]: install it") from error
    from ocsf_nft.control.socket_file import SocketFile

    return SocketFile(requested.control, requested.control_mode, requested.control_group)


def _serving_control(
    running: Service, control: SocketFile, reload: Reload
) -> AbstractAsyncContextManager[None]:
    from ocsf_nft.control.engine import engine_of
    from ocsf_nft.control.server import serve

    return serve(engine_of(running, reload), control)


def _serving(running: Service, at: Endpoint) -> AbstractAsyncContextManager[None]:
    try:
        from ocsf_nft.http_server import serve
    except ImportError as error:
        raise UnsupportedError("listen needs the extra ocsf-nft[http]: install it") from error
    return serve(running, at)


async def _until_signal(work: Callable[[asyncio.Event], Awaitable[Counts]]) -> Counts:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(_NonWaitingExecutor(thread_name_prefix="asyncio"))
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
        # asyncio's handler wakes a loop that is just about to sleep. Ours works also while the loop
        # waits for a full pipe.
        loop.add_signal_handler(number, stop.set)
        signal.signal(number, end)
    try:
        return await work(stop)
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


class _NonWaitingExecutor(ThreadPoolExecutor):
    """Thread pool that does not wait for its threads at its shutdown.

    A thread may wait without end for a name server that does not answer.
    """

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        super().shutdown(wait=False, cancel_futures=cancel_futures)


def _ending_signals() -> tuple[signal.Signals, ...]:
    # Under nohup(1) SIGHUP is ignored, and stays so.
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))


def _end_at_once() -> NoReturn:
    # Only if it can be written without waiting: standard error may be the same full pipe.
    write_stderr_at_once(b"ocsf-nft: stopped at once: pending events are not delivered\n")
    os._exit(3)  # any other exit would wait for a thread that waits for the full pipe


def _require_only(context: click.Context, allowed: set[str], sentence: str) -> None:
    """Raise UsageError if an option that is not in ``allowed`` is given; its name replaces {}."""
    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in allowed
        and (found := context.get_parameter_source(name)) is not None
        and found.name != "DEFAULT"
    ]
    if given:
        raise UsageError(sentence.format(", ".join(given)))


def _report_end(counts: Counts, log_settings: LogSettings, write: Callable[[str], object]) -> None:
    if log_settings.is_json:
        _log.info(
            "ended", records=counts.records, events=counts.events, dropped=counts.dropped,
            gaps=counts.gaps, **counts.rejected,
        )  # fmt: skip
    elif not log_settings.is_quiet:
        write(
            f"{counts.records} records, {counts.events} events, {counts.dropped} dropped in "
            f"{counts.gaps} gaps{rejected(counts.rejected)}"
        )
