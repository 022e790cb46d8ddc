# SPDX-License-Identifier: Apache-2.0
"""The life of `blk nbd`: open, listen, wait for a signal or for the last client, close."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from blocklayer.base.errors import BlocklayerError
from blocklayer.cli.failures import Failure
from blocklayer.cli.nbd import Plan, open_image
from blocklayer.cli.parsing import Arguments
from blocklayer.cli.pid_file import pid_file
from blocklayer.export.export import Export
from blocklayer.export.server import NbdServer

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    import ssl

    from blocklayer.core.disk import Disk

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Ready = Callable[[], None]


def serve(arguments: Arguments, plan: Plan, ready: Ready | None) -> int:
    """Serve until it is over; the exit code. `ready` is called when clients can connect."""
    over = threading.Event()
    with _signals(over), _scratch(arguments) as scratch:
        tls, authorise = _credentials(arguments)
        disk = open_image(arguments, plan, scratch)
        if scratch:  # it is open, and needs no name: whatever ends the process, nothing stays
            shutil.rmtree(scratch, ignore_errors=True)
        try:
            server = _server(arguments, plan, disk, over, tls, authorise)
            with _verbose(arguments), _pid_file(arguments), _metrics(arguments, server):
                server.start()
                try:
                    if ready is not None:
                        ready()
                    over.wait()
                finally:
                    server.stop()
        finally:
            disk.close()
    return 0


def _server(
    arguments: Arguments,
    plan: Plan,
    disk: Disk,
    over: threading.Event,
    tls: ssl.SSLContext | None,
    authorise: Callable[[str], bool] | None,
) -> NbdServer:
    def on_leave(others: int) -> None:
        if not others and "persistent" not in arguments:
            over.set()

    server = NbdServer(
        plan.addresses,
        tls=tls,
        authorise=authorise,
        max_connections=plan.shared,
        on_leave=on_leave,
    )
    server.add(
        Export(
            arguments.last("export-name"),
            disk,
            description=arguments.last("description"),
            writable=not disk.read_only,
            shared=plan.shared != 1,
            bitmaps=arguments.all("bitmap"),
            allocation_depth="allocation-depth" in arguments,
        )
    )
    return server


def _credentials(
    arguments: Arguments,
) -> tuple[ssl.SSLContext | None, Callable[[str], bool] | None]:
    name = arguments.optional("tls-creds")
    if name is None:
        return None, None
    from blocklayer.core import objects
    from blocklayer.export.authorise import authoriser
    from blocklayer.nbd import tls

    try:
        found, password = objects.tls_credentials(name)
        context = tls.server_context(
            tls.credentials(found.kind, found.properties, endpoint=tls.SERVER, password=password)
        )
    except BlocklayerError as error:
        raise Failure(f"Failed to get TLS creds: {error}") from None
    rule = arguments.optional("tls-authz")
    return context, authoriser(rule) if rule is not None else None


@contextmanager
def _signals(over: threading.Event) -> Iterator[None]:
    """Signals end the server as its last client does."""
    previous = {number: signal.signal(number, lambda *_: over.set()) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _scratch(arguments: Arguments) -> Iterator[str]:
    """A folder for --snapshot, where temporary files may be large."""
    if "snapshot" not in arguments:
        yield ""
        return
    folder = tempfile.mkdtemp(prefix="blk-nbd-", dir=os.environ.get("TMPDIR", "/var/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _verbose(arguments: Arguments) -> Iterator[None]:
    log = logging.getLogger("blocklayer.nbd")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("blk: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if "verbose" in arguments else logging.WARNING)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _pid_file(arguments: Arguments) -> AbstractContextManager[None]:
    path = arguments.optional("pid-file")
    return nullcontext() if path is None else pid_file(path)


@contextmanager
def _metrics(arguments: Arguments, server: NbdServer) -> Iterator[None]:
    where = arguments.optional("metrics")
    if where is None:
        yield
        return
    from blocklayer.export.metrics import serve_metrics

    host, _, port = where.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise Failure(f"Invalid metrics address '{where}': use PORT or ADDRESS:PORT")
    with serve_metrics(server, host.strip("[]") or "127.0.0.1", int(port)):
        yield


# --- --fork -------------------------------------------------------------------------------------


def in_background(work: Callable[[Ready], int]) -> int:
    """Run `work` in a child process; return when it is ready, or has failed and said why."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            is_ready = pipe.read(1) == b"+"
        if is_ready:
            return 0
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status) or 1
    os.close(reading)
    os.setsid()
    return work(lambda: _report_ready(writing))


def _report_ready(writing: int) -> None:
    """Let the parent go, and let go of its terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)
    os.write(writing, b"+")
    os.close(writing)
