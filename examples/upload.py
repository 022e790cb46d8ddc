# SPDX-License-Identifier: Apache-2.0
"""Taking in an image that somebody has uploaded: look, copy, verify, and give it a name.

    python examples/upload.py UPLOAD TARGET.qed [--folder FOLDER]

Nothing outside FOLDER (by default, where the upload lies) is opened, whatever the upload names. An
interrupted run goes on where it was when it is started again; the target gets its name when it is
whole and verified. The exit code is 1, and stderr says why, if the upload is not acceptable.
"""

from __future__ import annotations

import argparse
import sys

import blocklayer
from blocklayer.base.units import TiB, format_size

LARGEST = TiB
"""What a customer may have; copying takes as long as the disk is large."""


def take_in(upload: str, target: str, trust: blocklayer.Trust) -> str:
    """Copy `upload` into `target`; the digest of what it holds. Raises `BlocklayerError`."""
    found = blocklayer.info(upload, trust=trust)
    print(f"{upload}: {found.format}, {format_size(found.virtual_size)}")
    for reach in found.reaches or ():
        print(f"  asks for {reach.what} {reach.name!a}: {reach.refused or 'allowed'}")
    blocklayer.convert(
        upload,
        target,
        source_format=found.format,  # as it was found: it must not become another one meanwhile
        format="qed",
        trust=trust,
        verify=True,
        resume=True,
        progress=show,
    )
    print(file=sys.stderr)
    return blocklayer.digest(target, format="qed").digest


def show(progress: blocklayer.Progress) -> None:
    """One line that changes."""
    print(f"\r  {progress.operation} {progress.fraction:4.0%}", end="", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Take in an uploaded image.")
    parser.add_argument("upload")
    parser.add_argument("target")
    parser.add_argument("--folder", help="where everything it names must lie")
    given = parser.parse_args(argv)
    trust = blocklayer.Trust(given.folder, size_max=LARGEST)
    try:
        digest = take_in(given.upload, given.target, trust)
    except blocklayer.BlocklayerError as error:
        print(f"\nnot taken in: {error}", file=sys.stderr)
        return 1
    print(f"{given.target}: sha256 tree {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
