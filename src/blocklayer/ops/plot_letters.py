# SPDX-License-Identifier: Apache-2.0
"""Letters for names in pictures: file names may be in any script, and few fonts have all of them.

Where no font has a letter, its number stands in the picture: an empty box would tell nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

DEFAULT = "sans-serif"

KNOWN = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans JP",
    "Noto Sans SC",
    "Noto Sans",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "IPAGothic",
    "Hiragino Sans",
    "Arial Unicode MS",
    "Unifont",
)
"""To be asked first: there may be thousands of fonts, and each has to be read to be asked."""

_USELESS = ("Last Resort", "Adobe Blank", "DejaVu Math", "STIX", "cm")
"""Fonts that have boxes for letters, or letters in places of their own."""


class Letters:
    """Which fonts to use for some texts, and what none of them can show."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.families = [DEFAULT]
        self.missing = {c for text in texts for c in text if ord(c) > 0x7F}
        if self.missing:
            self._look_for()

    def writable(self, text: str) -> str:
        """The text with numbers of the letters that nobody can draw."""
        return "".join(ascii(c)[1:-1] if c in self.missing else c for c in text)

    def _look_for(self) -> None:
        from matplotlib import font_manager

        usual = font_manager.FontProperties(family=[DEFAULT])
        self.missing -= _drawable(font_manager.findfont(usual), self.missing)
        for entry in _fonts(font_manager.fontManager.ttflist):
            if not self.missing:
                return
            found = _drawable(entry.fname, self.missing)
            if found:
                self.missing -= found
                self.families.append(entry.name)


def _fonts(entries: Iterable[Any]) -> Iterator[Any]:
    """One font of each family: the known ones first, then the others by name."""
    plain: dict[str, Any] = {}
    for entry in sorted(entries, key=lambda each: (each.style != "normal", str(each.weight))):
        if not entry.name.startswith(_USELESS):
            plain.setdefault(entry.name, entry)
    for name in KNOWN:
        if name in plain:
            yield plain.pop(name)
    for name in sorted(plain):
        yield plain[name]


def _drawable(path: str, letters: set[str]) -> set[str]:
    """Those of `letters` that the font at `path` has, and can draw in any size."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(path)
        known = font.get_charmap()
        found = {letter for letter in letters if ord(letter) in known}
        if found:
            font.set_size(12, 72)
            font.load_char(ord(min(found)))
        return found
    except (OSError, RuntimeError, ValueError):
        return set()  # one of coloured pictures, or a broken one
