# SPDX-License-Identifier: Apache-2.0
"""Names in pictures: any script, by any font that has it, and no empty boxes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import MiB

pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
builder = pytest.importorskip("fontTools.fontBuilder")
pens = pytest.importorskip("fontTools.pens.ttGlyphPen")

from blocklayer.ops import plot_letters  # noqa: E402 -- not without matplotlib
from blocklayer.ops.plot_letters import DEFAULT, Letters  # noqa: E402

HAN = "\u65e5\u672c"
"""No font that comes with matplotlib has these."""


@pytest.fixture(autouse=True)
def only_own_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is installed here."""
    from matplotlib import font_manager

    ours = [f for f in font_manager.fontManager.ttflist if "mpl-data" in f.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", ours)


@pytest.fixture
def han_font(tmp_path: Path) -> str:
    """A font with these letters and no others; they are squares."""
    from matplotlib import font_manager

    pen = pens.TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", *(f"uni{ord(letter):04X}" for letter in HAN)]
    font = builder.FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(letter): name for letter, name in zip(HAN, names[1:], strict=True)})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Squares of blk", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    path = tmp_path / "squares.ttf"
    font.save(path)
    font_manager.fontManager.addfont(str(path))
    return "Squares of blk"


def picture(folder: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Draw an image of this name; what matplotlib has to say about its letters."""
    path = folder / f"{name}.qed"
    blocklayer.create(path, format="qed", size=MiB)
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(0, b"data")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with monkeypatch.context() as patch:
            patch.setattr(warnings, "simplefilter", lambda *_: None)
            blocklayer.plot(path, folder / f"picture.{kind}")
    return [str(each.message) for each in said if "lyph" in str(each.message)]


def test_usual_names_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot_letters, "_drawable", lambda *_: pytest.fail("no font is read"))
    letters = Letters(["disk.qed", "a b-c_0"])
    assert letters.families == [DEFAULT]
    assert letters.writable("disk.qed") == "disk.qed"


def test_what_the_usual_font_has() -> None:
    letters = Letters(["Gr\u00f6\u00dfe \u0416 \u03a9"])
    assert letters.families == [DEFAULT]
    assert letters.writable("Gr\u00f6\u00dfe") == "Gr\u00f6\u00dfe"


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_a_font_that_has_the_letters_is_used(
    tmp_path: Path, han_font: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = Letters([f"{HAN}.qed"])
    assert letters.families == [DEFAULT, han_font]
    assert letters.writable(HAN) == HAN
    assert picture(tmp_path, HAN, kind, monkeypatch) == []


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_letters_that_no_font_has_are_numbers(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = Letters([f"{HAN}.qed"])
    assert letters.families == [DEFAULT]
    assert letters.writable(f"{HAN}-\u00e9.qed") == "\\u65e5\\u672c-\u00e9.qed"
    assert picture(tmp_path, HAN, kind, monkeypatch) == []


def test_some_letters_are_there(han_font: str) -> None:
    letters = Letters([f"{HAN}\u8a9e"])
    assert letters.families == [DEFAULT, han_font]
    assert letters.writable(f"{HAN}\u8a9e") == f"{HAN}\\u8a9e"


def test_a_font_that_cannot_be_read(tmp_path: Path, han_font: str) -> None:
    (tmp_path / "squares.ttf").write_bytes(b"no font")
    assert Letters([HAN]).families == [DEFAULT]


def test_names_in_an_svg_are_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks at it has other fonts than who drew it."""
    picture(tmp_path, HAN, "svg", monkeypatch)
    assert f"{HAN}.qed: 1 MiB" in (tmp_path / "picture.svg").read_text("utf-8")
