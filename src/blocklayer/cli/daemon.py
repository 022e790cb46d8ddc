# SPDX-License-Identifier: Apache-2.0
"""`blk daemon`: nodes, jobs and exports steered over QMP, with qemu-storage-daemon's options.

Options are carried out in their order, so what refers to something comes after it.
"""

from __future__ import annotations

from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.parsing import HELP, TRACE_HELP, Arguments, Command

GENERAL = "In every command"

COMMAND = Command(
    "daemon",
    "",
    "Hold disk images open, copy and export them, as programs ask for it over QMP.",
    (
        Option("--blockdev", "OPTIONS", "open a node: [driver=]DRIVER,node-name=NAME,..."),
        Option("--export", "OPTIONS", "export a node: [type=]nbd,id=ID,node-name=NAME,..."),
        Option(
            "--nbd-server",
            "OPTIONS",
            "start an NBD server: addr.type=unix,addr.path=PATH, or"
            " addr.type=inet,addr.host=HOST,addr.port=PORT",
        ),
        Option("--chardev", "OPTIONS", "open a place for a monitor: socket,id=ID,path=PATH,..."),
        Option("--monitor", "OPTIONS", "let programs steer: [chardev=]ID[,pretty=on]"),
        Option("--pidfile", "PATH", "write the process id there, and hold a lock on it"),
        Option("--daemonize", "", "return when everything is ready, and go on in the background"),
    ),
    common=(
        Option("--object", "TYPE,id=ID,...", "define an object", group=GENERAL),
        Option("-T --trace", "PATTERN", TRACE_HELP, group=GENERAL),
        Option("-V --version", "", "show the version", group=GENERAL),
        HELP,
    ),
    details=(
        "Options are carried out in their order. --blockdev, --export, --nbd-server, --object and"
        " --monitor also take a JSON object; with 'help' for a value, or after a comma, they tell"
        " what they take. The commands of monitors are those of QEMU for block devices; they are"
        " described in docs/qmp.md.\n\n"
        "The daemon ends on the command quit, and on SIGINT, SIGTERM and SIGHUP: jobs are"
        " cancelled, clients are disconnected, images are closed and marked clean."
    ),
    examples=(
        (
            (
                "daemon --blockdev qed,node-name=d,file.driver=file,file.filename=disk.qed"
                " --nbd-server addr.type=unix,addr.path=nbd.sock --export nbd,id=e,node-name=d"
            ),
            "Serve an image.",
        ),
        (
            (
                "daemon --chardev socket,id=m,path=qmp.sock,server=on,wait=off --monitor m"
                " --pidfile blk.pid --daemonize"
            ),
            "Wait for commands.",
        ),
    ),
    exits=((1, "an option could not be carried out, or an image could not be closed"),),
)


def run(arguments: Arguments) -> int:
    """The command."""
    if "version" in arguments:
        from blocklayer.cli.usage import version

        print(version())
        return 0
    if arguments.names:
        raise Failure(f"{arguments.names[0]}: Unexpected argument")
    try:
        import msgspec  # noqa: F401 -- said once, for people, and not from the depth of an import
    except ImportError:
        raise Failure(
            "the daemon needs the package 'msgspec', which is not installed: pip install msgspec"
        ) from None
    from blocklayer.cli import daemon_help, daemon_run

    told = daemon_help.told(arguments)
    if told is not None:
        print(told)
        return 0
    if "daemonize" not in arguments:
        return daemon_run.serve(arguments, lambda: None)
    from blocklayer.cli.nbd_run import in_background

    return in_background(lambda ready: daemon_run.serve(arguments, ready))
