# SPDX-License-Identifier: Apache-2.0
"""A process whose children convert, and are killed in the middle of it.

    python -m tests.ops.resuming calls FORMAT SOURCE TARGET
    python -m tests.ops.resuming moments FORMAT SOURCE TARGET SEED COUNT

``calls`` kills a child at its first call that opens, renames, removes or truncates a file, the next
one at its second such call, and so on; ``moments`` kills at random moments, again and again. Each
time the conversion is then finished, and must be equal. Prints the number of kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import blocklayer
from blocklayer.base.units import KiB
from blocklayer.ops import resume

PART = 128 * KiB
CALLS = ("open", "os.rename", "os.remove", "os.truncate")


def convert(format: str, source: str, target: str) -> None:
    resume.NOTE_EVERY = PART
    blocklayer.convert(source, target, format=format, resume=True, verify=True)


def in_child(action: Callable[[], None], wait: float = 0.0) -> int:
    """Run in a child, which is killed after a while; its status."""
    child = os.fork()
    if not child:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    if wait:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def kill_at_call(number: int) -> None:
    """Have this process killed before its n-th call of those that change names or files."""
    seen = [0]

    def count(event: str, arguments: tuple[object, ...]) -> None:
        if event in CALLS:
            seen[0] += 1
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def attempt(number: int, format: str, source: str, target: str) -> None:
    kill_at_call(number)
    convert(format, source, target)


def check_whole(format: str, source: str, target: str) -> None:
    assert blocklayer.compare(source, target, second_format=format).identical
    if format == "qed":
        assert not blocklayer.check(target).corruptions
    left = [path.name for path in Path(target).parent.glob("*.partial*")]
    assert not left, left


def check_partial(target: str) -> None:
    """It must not look whole."""
    assert not os.path.exists(target) or not os.path.exists(f"{target}.partial")


def calls(format: str, source: str, target: str) -> int:
    number = 0
    while True:
        number += 1

        status = in_child(partial(attempt, number, format, source, target))
        if status == 0:
            return number - 1
        assert status == signal.SIGKILL, status
        check_partial(target)
        assert in_child(lambda: convert(format, source, target)) == 0
        check_whole(format, source, target)
        os.unlink(target)


def moments(format: str, source: str, target: str, seed: str, count: str) -> int:
    rng = random.Random(int(seed))
    usual = 1.0
    for _ in range(3):  # the shortest: after a longer time most children would have ended
        started = time.monotonic()
        assert in_child(lambda: convert(format, source, target)) == 0
        usual = min(usual, time.monotonic() - started)
        os.unlink(target)
    kills = 0
    while kills < int(count):
        status = in_child(lambda: convert(format, source, target), rng.uniform(0, usual) + 1e-6)
        assert status in (0, signal.SIGKILL), status
        kills += status == signal.SIGKILL
        if os.path.exists(target) and not os.path.exists(f"{target}.partial.json"):
            check_whole(format, source, target)
            os.unlink(target)
        else:
            check_partial(target)
    assert in_child(lambda: convert(format, source, target)) == 0
    check_whole(format, source, target)
    return kills


if __name__ == "__main__":
    blocklayer.convert  # noqa: B018 -- import it here, and not in each child
    if sys.argv[1] == "calls":
        done = calls(*sys.argv[2:5])
    else:
        done = moments(*sys.argv[2:7])
    sys.stdout.write(f"{done}\n")
