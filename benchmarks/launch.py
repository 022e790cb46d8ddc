# SPDX-License-Identifier: Apache-2.0
"""Start one program, wait for it, and say what it cost: wall, user, system (s), peak RSS, status.

Run as a script by an interpreter without site-packages, because of a trap of Linux: the peak RSS
of a process survives `exec`, so a child is charged with the size its parent had when it was
started. This parent is as small as Python gets; the harness itself is not.

    python -I -S launch.py RESULT-FILE STDOUT-FILE STDERR-FILE program arguments...
"""

import os
import sys
import time

CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def main() -> None:
    result, out, err, *argv = sys.argv[1:]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, out, CREATE, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, err, CREATE, 0o600),
    ]
    # An installed package has its bytecode; a checkout must be allowed to make its own.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    child = os.posix_spawnp(argv[0], argv, environment, file_actions=actions)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    costs = (wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024, status)
    with open(result, "w", encoding="ascii") as file:
        file.write(" ".join(map(str, costs)))


if __name__ == "__main__":
    main()
