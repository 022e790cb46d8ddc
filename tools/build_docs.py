# SPDX-License-Identifier: Apache-2.0
"""Part of the build of a wheel: manual pages and completion scripts go into its data files.

Where the wheel is installed, `man blk` and the tab key find them below the same prefix as `blk`.
"""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DocsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Writes the files that `make docs` writes, and adds them to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is made; one that only points to the sources goes without."""
        if version == "editable":
            return
        sys.path.insert(0, str(Path(self.root, "src")))
        from blocklayer.cli.docs.__main__ import all_files, write

        target = Path(self.root, "build", "docs")
        write(target)
        data = build_data.setdefault("shared_data", {})
        data.update({str(target / name): name for name in all_files()})
