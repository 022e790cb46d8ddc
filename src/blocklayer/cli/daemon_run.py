# SPDX-License-Identifier: Apache-2.0
"""The life of `blk daemon`: its options one after the other, signals, its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from blocklayer.base.errors import BlocklayerError
from blocklayer.cli import daemon_options
from blocklayer.cli.failures import Failure
from blocklayer.cli.output import complain
from blocklayer.cli.parsing import Arguments
from blocklayer.cli.pid_file import pid_file

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.qmp.daemon import Daemon

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_IMPLIED = {"blockdev": "driver", "export": "type", "nbd-server": "", "object": "qom-type"}
"""Options with nested values, and what their first word is the value of."""


def serve(arguments: Arguments, ready: Callable[[], None]) -> int:
    """Carry out the options, then commands, until somebody wants an end."""
    from blocklayer.cli.daemon_human import HumanMonitor
    from blocklayer.qmp.daemon import Daemon

    background = "daemonize" in arguments
    human = HumanMonitor()
    daemon = Daemon(human)
    with ExitStack() as at_end:
        at_end.enter_context(_stopped_by_signals(daemon))
        try:
            _carry_out(daemon, arguments, background)
            path = arguments.optional("pidfile")
            if path is not None:  # who waits for the file finds everything ready
                at_end.enter_context(pid_file(path, "cannot create PID file: "))
            if background:
                os.chdir("/")
            ready()
            daemon.run()
        finally:
            human.release(daemon.context)
            failed = _close(daemon)
    return 1 if failed else 0


def _close(daemon: Daemon) -> bool:
    try:
        daemon.close()
    except BlocklayerError as error:
        complain(str(error))
        return True
    return False


@contextmanager
def _stopped_by_signals(daemon: Daemon) -> Iterator[None]:
    """The first signal ends the daemon in order, the next one at once."""

    def stop(number: int, frame: object) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        daemon.context.quit("host-signal")

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- options ------------------------------------------------------------------------------------


def _carry_out(daemon: Daemon, arguments: Arguments, background: bool) -> None:
    """All options in the order they were given. Raises `Failure`."""
    values = {key: iter(arguments.all(key)) for key in set(arguments.order)}
    for key in arguments.order:
        text = next(values[key])
        try:
            _carry_out_one(daemon, key, text, background)
        except (BlocklayerError, Failure) as error:
            first = str(error).partition("\n")[0]
            raise Failure(f"--{key} {text}: {first}") from None


def _carry_out_one(daemon: Daemon, key: str, text: str, background: bool) -> None:
    if key in _IMPLIED:
        options, spelled = daemon_options.read_options(text, _IMPLIED[key])
        method = {
            "blockdev": daemon.add_blockdev,
            "export": daemon.add_export,
            "nbd-server": daemon.start_nbd_server,
            "object": daemon.add_object,
        }[key]
        method(options, spelled=spelled)
    elif key == "chardev":
        given = dict(daemon_options.split_pairs(text, "backend", bare=True))
        if background and given.get("backend") == "stdio":
            raise Failure("cannot use stdio with -daemonize")
        daemon.add_chardev(given)
    elif key == "monitor":
        _add_monitor(daemon, text)


def _add_monitor(daemon: Daemon, text: str) -> None:
    if text.startswith("{"):
        given = daemon_options.read_json(text)
    else:
        given = dict(daemon_options.split_pairs(text, "chardev", bare=True))
    chardev, mode = given.pop("chardev", None), given.pop("mode", "control")
    pretty = given.pop("pretty", False)
    given.pop("id", None)
    if chardev is None:
        raise Failure("Parameter 'chardev' is missing")
    if mode not in ("control", "readline"):
        raise Failure(f"Parameter 'mode' does not accept value '{mode}'")
    if mode == "readline":
        raise Failure("Only QMP is supported")
    if pretty not in (True, False, "on", "off"):
        raise Failure("Parameter 'pretty' expects 'on' or 'off'")
    if given:
        raise Failure(f"Parameter '{next(iter(given))}' is unexpected")
    daemon.add_monitor(chardev, pretty=pretty in (True, "on"))
