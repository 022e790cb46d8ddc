# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C before the command has begun: while its modules are loaded."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
from blocklayer.cli.start import main
sys.exit(main())
"""


def test_an_interrupt_while_modules_are_loaded() -> None:
    for name in ("blocklayer.cli.main", "blocklayer.cli.getopt", "blocklayer.cli.info"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(name=name), "info", "nothing"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "blk: interrupted\n"), name
