# SPDX-License-Identifier: Apache-2.0
"""Write everything that is made from the declarations into a directory: `make docs` runs this.

The tree is the one that belongs below a prefix: share/man, share/bash-completion, and so on.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from blocklayer.cli.docs import bash, fish, markdown, roff, webpage, zsh
from blocklayer.cli.docs.pages import all_pages


def all_files() -> dict[str, str]:
    """What belongs where below a prefix."""
    pages = all_pages()
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    files = {
        "share/bash-completion/completions/blk": bash.script(),
        "share/zsh/site-functions/_blk": zsh.script(),
        "share/fish/vendor_completions.d/blk.fish": fish.script(),
        "share/doc/blocklayer/commands.md": markdown.document(pages),
        "share/doc/blocklayer/commands.html": webpage.document(pages),
    }
    names = [page.name for page in pages]
    for page in pages:
        others = [name for name in names if name != page.name] if page is pages[0] else names[:1]
        files[f"share/man/man1/{page.name}.1"] = roff.manual_page(page, others, date)
    return files


def write(directory: Path) -> None:
    """Write all files below `directory`."""
    for name, text in all_files().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
