# SPDX-License-Identifier: Apache-2.0
"""`blk digest`: a hash of what a guest sees."""

from __future__ import annotations

from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.output import print_json
from blocklayer.cli.parsing import (
    ALLOW,
    FORCE_SHARE,
    FORMAT,
    IMAGE_OPTS,
    OUTPUT,
    PROGRESS,
    QUIET,
    UNTRUSTED,
    Arguments,
    Command,
    cache_name,
    one_image,
    trust_argument,
    wants_json,
)
from blocklayer.cli.progress import Running

ALGORITHMS = ("sha256", "sha512", "sha3_256", "blake2b", "blake2s", "sha1", "md5")
"""Those that are offered first; others of hashlib's work, too."""

COMMAND = Command(
    "digest",
    "FILE",
    "Print a hash of a disk's content: the same in every format, and however it is stored.",
    (
        FORMAT,
        OUTPUT,
        Option(
            "--algorithm",
            "NAME",
            "hash function, as Python's hashlib names it: sha256",
            choices=ALGORITHMS,
        ),
        Option("--flat", "", "hash all bytes in a row, as sha256sum does with a raw image"),
        Option("-m --parallel", "NUMBER", "threads, 1 to 64 (default: one a processor, at most 8)"),
        Option("-T --cache", "CACHE", "cache mode (default writeback)"),
        PROGRESS,
        QUIET,
        IMAGE_OPTS,
        FORCE_SHARE,
        UNTRUSTED,
        ALLOW,
    ),
    details=(
        "The hash is the root of a tree over blocks of 64 KiB: holes cost nothing, and all"
        " processors work on it. It can only be compared with hashes made in the same way; --flat"
        " makes those that other tools make, more slowly."
    ),
    examples=(
        ("digest disk.qed", "The hash, after the way it was made."),
        ("digest --flat disk.qed", "What sha256sum prints of the same disk as a raw file."),
    ),
)

THREADS_MAX = 64


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.digest import digest

    name, format_name = one_image(arguments)
    as_json = wants_json(arguments)
    with Running(arguments) as running:
        result = digest(
            name,
            format=format_name,
            algorithm=arguments.last("algorithm", "sha256"),
            flat="flat" in arguments,
            threads=_threads(arguments),
            cache=cache_name(arguments, "cache", "writeback", what="source "),
            force_share="force-share" in arguments,
            trust=trust_argument(arguments),
            progress=running.report,
            cancel=running.cancel,
        )
    if as_json:
        print_json({"filename": arguments.names[0], **result.as_dict()})
    else:
        way = "" if result.kind == "flat" else f"{result.kind}-{result.algorithm}:"
        print(_line(way + result.digest, arguments.names[0]))
    return 0


def _line(digest: str, name: str) -> str:
    """As sha256sum has it: no name can look like another line, and ``-c`` reads it."""
    shown = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if shown == name else chr(92)}{digest}  {shown}"


def _threads(arguments: Arguments) -> int | None:
    text = arguments.optional("parallel")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= THREADS_MAX:
        raise Failure(f"Invalid number of threads. It must be between 1 and {THREADS_MAX}.")
    return int(text)
