# SPDX-License-Identifier: Apache-2.0
"""``python -m blocklayer`` is `blk`."""

from blocklayer.cli.start import main

if __name__ == "__main__":
    raise SystemExit(main())
