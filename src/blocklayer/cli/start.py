# SPDX-License-Identifier: Apache-2.0
"""Where `blk` begins: Ctrl-C is answered from the first moment, while modules are still loaded."""


def main() -> int:
    """Run the command line of this process; the exit code."""
    try:
        from blocklayer.cli.main import main as run
    except KeyboardInterrupt:
        import sys

        sys.stderr.write("blk: interrupted\n")
        return 130
    return run()
