# SPDX-License-Identifier: Apache-2.0
"""`blk nbd`: serve an image, with qemu-nbd's options."""

from __future__ import annotations

import os

from blocklayer.base.errors import BlocklayerError, InvalidArgument
from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.getopt import Option
from blocklayer.cli.output import warn_of_guess
from blocklayer.cli.parsing import (
    ALLOW,
    GENERAL,
    HELP,
    IMAGE_OPTS,
    OBJECT,
    OUTPUT,
    TRACE_HELP,
    UNTRUSTED,
    Arguments,
    Command,
    image_name,
    trust_argument,
)
from blocklayer.core.modes import AIO_MODES, DETECT_ZEROES_MODES, DISCARD_MODES

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.base.options import OptionTree
    from blocklayer.core.disk import Disk
    from blocklayer.core.trust import Trust
    from blocklayer.export.listen import Address

CONNECTION = "Where clients connect"
EXPORTED = "What they see"
DAEMON = "How the server runs"

COMMAND = Command(
    "nbd",
    "FILE",
    "Serve an image to NBD clients: virtual machines, backup tools, other hosts.",
    (
        Option("-k --socket", "PATH", "listen on a unix socket", group=CONNECTION),
        Option("-p --port", "PORT", "listen on a TCP port (default 10809)", group=CONNECTION),
        Option(
            "-b --bind", "ADDRESS", "listen on this address (default 0.0.0.0)", group=CONNECTION
        ),
        Option("-e --shared", "NUMBER", "clients at a time (default 1; 0: any)", group=CONNECTION),
        Option("-t --persistent", "", "go on when the last client has gone", group=CONNECTION),
        Option("--tls-creds", "ID", "clients must use TLS with this object", group=CONNECTION),
        Option("--tls-hostname", "NAME", "with -L: whose certificate to expect", group=CONNECTION),
        Option(
            "--tls-authz", "ID", "whom to admit, by their certificates' names", group=CONNECTION
        ),
        Option("-x --export-name", "NAME", "name of the export (default empty)", group=EXPORTED),
        Option("-D --description", "TEXT", "what the export is, for people", group=EXPORTED),
        Option("-o --offset", "OFFSET", "serve what is behind this byte", group=EXPORTED),
        Option("-r --read-only", "", "clients cannot write", group=EXPORTED),
        Option("-s --snapshot", "", "keep writes in a temporary overlay", group=EXPORTED),
        Option("-l --load-snapshot", "SNAPSHOT", "serve a snapshot of the image", group=EXPORTED),
        Option("-A --allocation-depth", "", "tell in which layer data is", group=EXPORTED),
        Option("-B --bitmap", "NAME", "tell what a dirty bitmap says", group=EXPORTED),
        Option("-L --list", "", "list what another server exports", group="Other servers"),
        Option("-c --connect", "DEVICE", "attach to a device of the kernel", group="Other servers"),
        Option("-d --disconnect", "DEVICE", "detach such a device", group="Other servers"),
        Option("--fork", "", "return when clients can connect, and serve on", group=DAEMON),
        Option("--pid-file", "PATH", "write the process id there, and hold a lock", group=DAEMON),
        Option("--metrics", "[ADDRESS:]PORT", "counters for Prometheus over HTTP", group=DAEMON),
        Option("-v --verbose", "", "tell who comes and goes", group=DAEMON),
        Option("--selinux-label", "LABEL", "of the socket (not supported)", group=DAEMON),
        Option("-f --format", "FMT", "format of the image; found by its signature if not given"),
        Option("-n --nocache", "", "the same as --cache=none"),
        Option("--cache", "CACHE", "cache mode (default writeback)"),
        Option("--aio", "MODE", "threads, native or io_uring (accepted)", choices=AIO_MODES),
        Option("--discard", "MODE", "ignore (default) or unmap", choices=("ignore", "unmap")),
        Option(
            "--detect-zeroes", "MODE", "off (default), on or unmap", choices=DETECT_ZEROES_MODES
        ),
        OUTPUT,
        IMAGE_OPTS,
        UNTRUSTED,
        ALLOW,
    ),
    common=(
        OBJECT,
        Option("-T --trace", "PATTERN", TRACE_HELP, group=GENERAL),
        Option("-V --version", "", "show the version", group=GENERAL),
        HELP,
    ),
    details=(
        "Without -t the server ends when its last client has gone. SIGTERM, SIGHUP and Ctrl-C end"
        " it after what was asked for is done; the image is closed cleanly. A socket passed by"
        " systemd is used instead of -k or -p."
    ),
    examples=(
        ("nbd -k /run/disk.sock -f qed disk.qed", "To one client, over a unix socket."),
        ("nbd -t -e 0 -r -b 127.0.0.1 -f raw disk.raw", "Read-only, to any number, over TCP."),
        ("nbd --fork --pid-file=/run/nbd.pid -t -k /run/disk.sock disk.qed", "In the background."),
        ("nbd -L -k /run/disk.sock", "What a server exports."),
    ),
)


def run(arguments: Arguments) -> int:
    """The command."""
    if "version" in arguments:
        from blocklayer.cli.usage import version

        print(version())
        return 0
    for key in ("connect", "disconnect"):
        if key in arguments:
            raise Failure("Kernel /dev/nbdN support not available")
    if "list" in arguments:
        from blocklayer.cli.nbd_list import run_list

        return run_list(arguments)
    if len(arguments.names) != 1:
        raise UsageError("Invalid number of arguments")
    from blocklayer.cli.nbd_run import in_background, serve

    plan = plan_of(arguments)
    if "fork" in arguments:
        return in_background(lambda ready: serve(arguments, plan, ready))
    return serve(arguments, plan, None)


class Plan:
    """What was asked for, checked before anything is opened."""

    def __init__(self, addresses: list[Address], shared: int, offset: int) -> None:
        self.addresses = addresses
        self.shared = shared
        self.offset = offset


def plan_of(arguments: Arguments) -> Plan:
    """Check what does not need the image. Raises `Failure`."""
    from blocklayer.nbd.wire import MAX_STRING

    if "selinux-label" in arguments:
        raise Failure("SELinux support not enabled in this version")
    if "tls-authz" in arguments and "tls-creds" not in arguments:
        raise Failure("--tls-authz is not permitted without --tls-creds")
    if "tls-hostname" in arguments:
        if "tls-creds" not in arguments:
            raise Failure("--tls-hostname is not permitted without --tls-creds")
        raise Failure("TLS hostname is only supported with the --list option")
    if len(arguments.all("nocache")) + len(arguments.all("cache")) > 1:
        raise Failure("-n and --cache can only be specified once")
    for key in ("aio", "discard"):
        if len(arguments.all(key)) > 1:
            raise Failure(f"--{key} can only be specified once")
    for key, what in (("export-name", "export name"), ("description", "export description")):
        text = arguments.last(key)
        if len(os.fsencode(text)) > MAX_STRING:
            raise Failure(f"{what} '{text}' too long")
    if "load-snapshot" in arguments and "snapshot" in arguments:
        raise Failure("Use only one of -s or -l")
    _check_modes(arguments)
    shared = _number(arguments.last("shared", "1"), "Invalid shared device number '%s'")
    offset = _number(arguments.last("offset", "0"), "Invalid offset '%s'")
    return Plan(addresses_of(arguments), shared, offset)


def addresses_of(arguments: Arguments) -> list[Address]:
    """Where to listen: what systemd has passed, a path, or a port."""
    from blocklayer.export.listen import (
        GivenSocket,
        InetAddress,
        UnixAddress,
        activation_sockets,
    )

    given = activation_sockets()
    if given:
        if any(key in arguments for key in ("socket", "port", "bind")):
            raise Failure("Address options not allowed when using socket activation")
        return [GivenSocket(descriptor) for descriptor in given]
    if "socket" in arguments:
        path = arguments.last("socket")
        if not path.startswith("/"):
            raise Failure("socket path must be absolute")
        return [UnixAddress(path)]
    port = _number(arguments.last("port", "10809"), "Invalid port number '%s'")
    return [InetAddress(arguments.last("bind", "0.0.0.0"), port)]


def _number(text: str, words: str) -> int:
    """A plain number, as qemu-nbd takes them: no suffix, no sign."""
    if not (text.isascii() and text.isdigit()):
        raise Failure(words % text)
    return int(text)


def _check_modes(arguments: Arguments) -> None:
    from blocklayer.core.opening import CACHE_MODES

    for mode in arguments.all("cache"):
        if mode not in CACHE_MODES:
            raise Failure(f"Invalid cache mode `{mode}'")
    for mode in arguments.all("aio"):
        if mode not in AIO_MODES:
            raise Failure(f"Invalid aio mode '{mode}'")
    for mode in arguments.all("discard"):
        if mode not in DISCARD_MODES:
            raise Failure(f"Invalid discard mode `{mode}'")
    for mode in arguments.all("detect-zeroes"):
        if mode not in DETECT_ZEROES_MODES:
            raise Failure(f"Failed to parse detect_zeroes mode: invalid parameter value: {mode}")


def open_image(arguments: Arguments, plan: Plan, scratch: str) -> Disk:
    """The disk to serve; `scratch` is a folder for --snapshot. Raises `Failure`."""
    import blocklayer

    name = arguments.names[0]
    if "load-snapshot" in arguments:
        raise Failure(f"Failed to load snapshot: '{name}' has no snapshots")
    temporary = "snapshot" in arguments
    trust = trust_argument(arguments)
    tree: Any = image_name(arguments, name)
    format_name = arguments.optional("format")
    try:
        if plan.offset or temporary:
            tree, format_name = _nested(tree, format_name), None
        if temporary:
            tree = _overlay_tree(tree, scratch, trust)
        if plan.offset:
            tree = {"driver": "raw", "offset": str(plan.offset), "file": tree}
        disk = blocklayer.open(
            tree,
            mode="r" if "read-only" in arguments else "r+",
            format=format_name,
            cache="none" if "nocache" in arguments else arguments.last("cache", "writeback"),
            discard=DISCARD_MODES[arguments.last("discard", "ignore")],
            detect_zeroes=arguments.last("detect-zeroes", "off"),
            trust=trust,
        )
    except InvalidArgument:
        raise
    except BlocklayerError as error:
        raise Failure(f"Failed to blk_new_open '{name}': {error}") from None
    if "format" not in arguments and "image-opts" not in arguments and disk.format == "raw":
        warn_of_guess(name)
    return disk


def _nested(name: Any, format_name: str | None) -> OptionTree:
    """An image's options with its format in them, as they stand inside others."""
    import blocklayer
    from blocklayer.core.names import parse_name

    tree = parse_name(name)
    if "driver" not in tree:
        tree["driver"] = format_name or blocklayer.probe(name)
    return tree


def _overlay_tree(image: OptionTree, scratch: str, trust: Trust | None) -> OptionTree:
    """A temporary overlay of an image: clients write to it, and it goes with the server."""
    import blocklayer

    path = os.path.join(scratch, "overlay.qed")
    with blocklayer.open(image, trust=trust) as disk:
        blocklayer.create(path, format="qed", size=disk.size)
    return {
        "driver": "qed",
        "file": {"driver": "file", "filename": path},
        "backing": {**image, "read-only": "on"},
    }
