# SPDX-License-Identifier: Apache-2.0
"""The SHA-256 of the guest bytes of an image, read by blocklayer."""

from __future__ import annotations

import hashlib
import json
import sys

STEP = 1024 * 1024


def main() -> None:
    import blocklayer

    job = json.loads(sys.argv[1])
    digest = hashlib.sha256()
    with blocklayer.open(job["path"], mode="r", format=job["format"]) as disk:
        for offset in range(0, disk.size, STEP):
            digest.update(disk.read(offset, min(STEP, disk.size - offset)))
        print(json.dumps({"sha256": digest.hexdigest(), "size": disk.size}))


if __name__ == "__main__":
    main()
