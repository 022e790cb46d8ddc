# SPDX-License-Identifier: Apache-2.0
"""A process that opens images as not trusted, for those who watch what it reaches for.

    python -m tests.hostile.untrusted open|info FOLDER IMAGE...

Prints a JSON list, one element an image: how it ended, and which names it opened. Before and after
each image a name that does not exist is looked for, so that a tracer can tell them apart.
"""

from __future__ import annotations

import json
import os
import sys

import blocklayer
from blocklayer import Trust
from blocklayer.core import beneath, trust
from blocklayer.formats import raw
from blocklayer.formats.qed import driver
from blocklayer.protocols import file

BEGIN, END = "/marker/begin", "/marker/end"
LOADED = (beneath, trust, raw, driver, file)
"""What is imported when it is needed; files of its own are of no interest here."""


def main(what: str, folder: str, *images: str) -> None:
    opened: list[str] = []
    watching = False

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open":
            opened.append(os.fsdecode(str(arguments[0])))

    sys.addaudithook(watch)
    results = []
    for round_ in (False, True):  # the first one imports what is imported late
        for image in images:
            opened.clear()
            os.path.lexists(BEGIN if round_ else "")
            watching = True
            outcome = attempt(what, folder, image)
            watching = False
            os.path.lexists(END if round_ else "")
            if round_:
                results.append({"outcome": outcome, "opened": list(opened)})
    json.dump(results, sys.stdout)


def attempt(what: str, folder: str, image: str) -> str:
    try:
        if what == "info":
            blocklayer.info(image, trust=Trust(folder))
            return "told"
        with blocklayer.open(image, trust=Trust(folder)) as disk:
            return disk.read(0, 8).decode("ascii", "replace")
    except blocklayer.Refused:
        return "refused"
    except blocklayer.BlocklayerError as error:
        return f"error {type(error).__name__}"


if __name__ == "__main__":
    main(*sys.argv[1:])
