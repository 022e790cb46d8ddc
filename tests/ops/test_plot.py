# SPDX-License-Identifier: Apache-2.0
"""Pictures of maps: what is said in them, and the colours of what is known."""

from __future__ import annotations

import json
import os
import random
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blocklayer
from blocklayer import Cancelled, InvalidArgument, NotSupported
from blocklayer.base.units import KiB, MiB, TiB
from blocklayer.cli.main import main
from blocklayer.ops import survey as module
from blocklayer.ops.plot import (
    HOLE_COLOUR,
    VISIBLE,
    ZERO_COLOUR,
    cells,
    colour_of,
)
from blocklayer.ops.survey import (
    COLUMNS,
    DOTS,
    ROWS_MAX,
    File,
    coverage,
    fragments,
    rows_of,
    survey,
    visible,
)

if TYPE_CHECKING:
    from blocklayer.base.extent import Row

pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
numpy = pytest.importorskip("numpy")

SIZE = 16 * MiB


def image(folder: Path) -> Path:
    """Layer 1: 0 to 8M. Layer 0: 2M to 4M, and before it in the file 12M to 13M. Zero: 5M to 6M."""
    below = folder / "below.qed"
    blocklayer.create(below, format="qed", size=SIZE)
    with blocklayer.open(below, mode="r+") as disk:
        disk.write(0, b"b" * (8 * MiB))
    path = folder / "top.qed"
    blocklayer.create(path, format="qed", size=SIZE, backing="below.qed")
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(12 * MiB, b"t" * MiB)
        disk.write(2 * MiB, b"t" * (2 * MiB))
        disk.write_zeroes(5 * MiB, MiB, unmap=True)
    return path


def test_what_an_svg_says(tmp_path: Path) -> None:
    target = tmp_path / "map.svg"
    blocklayer.plot(image(tmp_path), target)
    text = target.read_text("utf-8")
    for words in (
        "top.qed: 16 MiB",
        "data in layer 0, top.qed: 3 MiB (18.8 %)",
        "data in layer 1, below.qed: 5 MiB (31.2 %)",
        "zeroes, known without reading: 1 MiB (6.2 %)",
        "hole: in no layer: 7 MiB (43.8 %)",
        "Layer 0, top.qed: 3 MiB in 2 fragments",
        "Layer 1, below.qed: 5 MiB in 1 fragment<",
        "on the disk",
        "in the file",
        ">8 MiB<",
    ):
        assert words in text
    for kind in (0, 1, -1, -2):
        assert colour_of(kind) in text
    again = tmp_path / "again.svg"
    blocklayer.plot(tmp_path / "top.qed", again)
    assert again.read_bytes() == target.read_bytes()


def test_the_colours_of_a_png(tmp_path: Path) -> None:
    """The map's rectangle has the colours of what is known to be there, in their order."""
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    target = tmp_path / "map.png"
    blocklayer.plot(image(tmp_path), target)
    picture = imread(target)[:, :, :3]

    def has(colour: str) -> object:
        return (abs(picture - to_rgb(colour)) < 0.01).all(axis=2)

    # Rows are 1 MiB long: each one of the map has a single colour.
    seen: list[int] = []
    column = picture.shape[1] // 2
    kinds = {kind: has(colour_of(kind)) for kind in (0, 1, -1, -2)}
    for line in range(picture.shape[0]):
        for kind, pixels in kinds.items():
            # Wide enough to be no part of the legend or of a diagram.
            wide = pixels[line, column - 400 : column + 400].all()  # type: ignore[index]
            if wide and (not seen or seen[-1] != kind):
                seen.append(kind)
    assert seen == [1, 0, 1, -1, 1, -2, 0, -2]


def test_cells(tmp_path: Path) -> None:
    from matplotlib.colors import to_rgb

    rows = [
        (0, MiB, True, False, True, 0, 0, "a"),
        (MiB, MiB // 2, False, True, True, 0, None, None),
        (MiB + MiB // 2, MiB // 2, False, True, False, 0, None, None),
        (2 * MiB, 2 * MiB, True, False, True, 1, 0, "b"),
    ]
    found = survey([rows[:2], rows[2:]], 0, 4 * MiB)
    assert (found.rows, found.row_bytes) == (16, MiB // 4)
    picture = cells(found).reshape(-1, 3)
    quarter = len(picture) // 4
    expected = [colour_of(0), ZERO_COLOUR, HOLE_COLOUR, colour_of(1)]
    borders = [0, quarter, quarter * 3 // 2, 2 * quarter, 4 * quarter]
    for colour, (start, end) in zip(expected, pairwise(borders), strict=True):
        assert numpy.allclose(picture[start:end], to_rgb(colour))


def test_a_little_data_can_be_seen() -> None:
    from matplotlib.colors import to_rgb

    rows = [
        (0, 4096, True, False, True, 0, 0, "a"),
        (4096, 16 * TiB - 4096, False, True, False, 0, None, None),
    ]
    picture = cells(survey([rows], 0, 16 * TiB)).reshape(-1, 3)
    mixed = VISIBLE * numpy.array(to_rgb(colour_of(0))) + (1 - VISIBLE) * numpy.array(
        to_rgb(HOLE_COLOUR)
    )
    assert numpy.allclose(picture[0], mixed, atol=0.001)
    assert numpy.allclose(picture[1:], to_rgb(HOLE_COLOUR))


@pytest.mark.parametrize("size", [0, 1, 512, 513, 4096, MiB, MiB + 512, 3 * TiB, 2**63 - 512])
def test_rows(size: int) -> None:
    count, length = rows_of(size)
    assert 1 <= count <= ROWS_MAX
    assert (count - 1) * length < max(size, 1) <= count * length
    assert size <= COLUMNS or length & (length - 1) == 0


def test_coverage(rng: random.Random) -> None:
    """By counting thousandths."""
    count, unit = 20, 1000
    marks = sorted(rng.sample(range(count * unit), 40))
    ranges = list(zip(marks[::2], marks[1::2], strict=True))
    covered = [0] * count
    for start, end in ranges:
        for place in range(start, end):
            covered[place // unit] += 1
    starts, ends = (numpy.array(column) / unit for column in zip(*ranges, strict=True))
    found = coverage(starts, ends, count)
    assert numpy.allclose(found, [each / unit for each in covered])


def test_fragments() -> None:
    def count(*pairs: tuple[int, int]) -> int:
        starts, hosts = (numpy.array(column) for column in zip(*pairs, strict=True))
        return fragments(starts, hosts)

    assert count((0, 100)) == 1
    assert count((0, 100), (10, 110), (50, 150)) == 1
    assert count((0, 100), (10, 120), (20, 130), (30, 100)) == 3
    assert fragments(numpy.array([]), numpy.array([])) == 0


def test_fragments_that_go_on(rng: random.Random) -> None:
    """What is counted in parts is what is counted at once."""
    starts = numpy.arange(0, 1000, 10)
    hosts = starts + numpy.array([rng.choice((0, 0, 0, 500)) for _ in starts])
    cut = rng.randrange(1, len(starts))
    before = int(hosts[cut - 1] - starts[cut - 1])
    parts = fragments(starts[:cut], hosts[:cut]) + fragments(starts[cut:], hosts[cut:], before)
    assert parts == fragments(starts, hosts)


def random_rows(rng: random.Random, count: int) -> list[Row]:
    """Extents of all kinds, data of three layers at places all over their files."""
    rows: list[Row] = []
    position = 0
    for _ in range(count):
        length = rng.randrange(1, 200) * 512
        kind = rng.choice((0, 1, 2, "zero", "hole"))
        if isinstance(kind, int):
            host = rng.randrange(10_000) * 512
            rows.append((position, length, True, False, True, kind, host, f"layer{kind}"))
        else:
            rows.append((position, length, False, True, kind == "zero", 0, None, None))
        position += length
    return rows


def test_extents_in_many_parts(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the extents come, the picture is the same."""
    rows = random_rows(rng, 3000)
    end = rows[-1][0] + rows[-1][1]
    whole = survey([rows], 0, end)
    monkeypatch.setattr(module, "CHUNK", 100)
    parts = survey([rows[start : start + 7] for start in range(0, len(rows), 7)], 0, end)
    assert numpy.allclose(cells(parts), cells(whole))
    for kind in (0, 1, 2, -1, -2):
        assert parts.bytes_of(kind) == whole.bytes_of(kind)
    for depth in (0, 1, 2):
        one, two = whole.files[depth], parts.files[depth]
        assert (one.fragments, one.placed, one.end) == (two.fragments, two.placed, two.end)
        assert (one.starts == two.starts).all()
        assert (one.hosts == two.hosts).all()


def test_lines_that_are_dropped_cannot_be_seen(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often lines are dropped, the same dots of a diagram are drawn."""
    rows = random_rows(rng, 20_000)
    end = rows[-1][0] + rows[-1][1]
    whole = survey([rows], 0, end).files[1]
    monkeypatch.setattr(module, "CHUNK", 500)
    monkeypatch.setattr(module, "LINES_KEPT", 1500)
    parts = survey([rows], 0, end).files[1]
    assert len(parts.starts) < len(whole.starts)
    missing = dots(whole, end) - dots(parts, end)
    assert len(missing) < len(dots(whole, end)) / 100, "but for those at the edge of a dot"


def dots(file: File, size: int) -> set[tuple[int, int]]:
    columns, rows = file.starts * DOTS[0] // size, file.hosts * DOTS[1] // file.end
    return set(zip(columns.tolist(), rows.tolist(), strict=True))


def test_memory_does_not_depend_on_the_extents(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of a few kilobytes can have any number of them."""
    count, size = 200_000, 512
    monkeypatch.setattr(module, "LINES_KEPT", 10_000)

    def rows(first: int) -> list[Row]:
        numbers = range(first, first + 10_000)
        return [(n * size, size, True, False, True, 0, n % 2 * 4096, "x") for n in numbers]

    found = survey(map(rows, range(0, count, 10_000)), 0, count * size)
    assert found.files[0].data == count * size
    assert found.files[0].fragments == count
    found.files[0].thin(found)
    assert len(found.files[0].starts) <= 2 * DOTS[0] + 2


def test_lines_that_are_one_dot() -> None:
    starts = numpy.array([0, 1, 2, 5000, 5001, 6000])
    lengths = numpy.array([1, 1, 1, 1, 1, 4000])
    hosts = numpy.array([7, 8, 9, 8, 9000, 0])
    assert sorted(visible(starts, lengths, hosts, 10_000, 10_000).tolist()) == [0, 3, 4, 5]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf", "SVG"])
def test_odd_images(tmp_path: Path, kind: str) -> None:
    empty, zero, one = tmp_path / "empty", tmp_path / "zero.qed", tmp_path / "$a_{b}$\x1b\n\u4e00"
    empty.write_bytes(b"")
    blocklayer.create(zero, format="qed", size="64T")
    one.write_bytes(b"x" * 512)
    for path in (empty, zero, one):
        target = tmp_path / f"map.{kind}"
        blocklayer.plot(path, target)
        assert target.stat().st_size > 1000
        target.unlink()
    blocklayer.plot(one, tmp_path / "map.svg")
    assert "$a_{b}$\\x1b\\n\u4e00: 512 B" in (tmp_path / "map.svg").read_text("utf-8")


def test_many_layers_and_a_part(tmp_path: Path) -> None:
    previous: Path | None = None
    for number in range(9):
        path = tmp_path / f"layer{number}.qed"
        name = previous.name if previous is not None else None
        blocklayer.create(path, format="qed", size=9 * MiB, backing=name)
        with blocklayer.open(path, mode="r+") as disk:
            disk.write(number * MiB, b"x" * MiB)
        previous = path
    target = tmp_path / "map.svg"
    blocklayer.plot(path, target, offset=2 * MiB, length=6 * MiB + 64 * KiB)
    text = target.read_text("utf-8")
    assert "layer8.qed: 6.06 MiB from 2 MiB" in text
    assert "data in layer 6, layer2.qed: 1 MiB" in text
    assert "layer1.qed" not in text
    assert "data in layer 0, layer8.qed: 64 KiB" in text


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image(tmp_path)
    before = sorted(os.listdir(tmp_path))
    for name in ("map.gif", "map", ".svg", "map.svg/"):
        with pytest.raises(InvalidArgument, match=r"ends in .png, .svg, .pdf"):
            blocklayer.plot(path, tmp_path / name if name != "map.svg/" else "map.svg/")
    with pytest.raises(InvalidArgument, match="No such file"):
        blocklayer.plot(path, tmp_path / "nowhere" / "map.svg")
    for part in ("top.qed", "below.qed"):
        content = (tmp_path / part).read_bytes()
        (tmp_path / "link.svg").symlink_to(part)
        with pytest.raises(InvalidArgument, match="part of the image"):
            blocklayer.plot(path, tmp_path / "link.svg")
        assert (tmp_path / part).read_bytes() == content
        (tmp_path / "link.svg").unlink()
    token = blocklayer.CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        blocklayer.plot(path, tmp_path / "map.svg", cancel=token)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NotSupported, match="pip install matplotlib"):
        blocklayer.plot(path, tmp_path / "map.svg")
    assert sorted(os.listdir(tmp_path)) == before


def test_an_interrupted_picture_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    def fail(_: Figure, name: str, **options: object) -> None:
        Path(name).write_bytes(b"half a pic")
        raise KeyboardInterrupt

    path, target = image(tmp_path), tmp_path / "map.svg"
    target.write_bytes(b"old")
    (tmp_path / "map.svg.new").write_bytes(b"somebody's")
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(KeyboardInterrupt):
        blocklayer.plot(path, target)
    assert sorted(os.listdir(tmp_path)) == before
    assert target.read_bytes() == b"old"
    assert (tmp_path / "map.svg.new").read_bytes() == b"somebody's"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = str(image(tmp_path)), tmp_path / "map.svg"
    assert main(["map", "--plot", str(target), "-s", "1M", path]) == 0
    assert "from 1 MiB" in target.read_text("utf-8")
    assert capsys.readouterr().out == ""
    assert main(["map", "--plot", str(target), "--output=json", "-s", "1M", path]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "filename": str(target),
        "start": MiB,
        "length": SIZE - MiB,
        "layers": [
            {"depth": 0, "filename": path, "data": 3 * MiB},
            {"depth": 1, "filename": str(tmp_path / "below.qed"), "data": 4 * MiB},
        ],
        "zero": MiB,
        "hole": 7 * MiB,
    }
    assert main(["map", "--plot", str(tmp_path / "map.txt"), path]) == 1
    assert "Cannot draw" in capsys.readouterr().err
