# SPDX-License-Identifier: Apache-2.0
"""A picture of an image: what its disk holds, in which layer, and how it lies in the files.

Drawn by matplotlib, which is an optional dependency (the extra ``plot``). Above, the disk runs in
rows from left to right; below, a diagram for each file tells where in it the bytes of the disk are:
a straight line rises where they lie in order, and breaks where they do not.
"""

from __future__ import annotations

import os

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.base.progress import CancelToken, ProgressCallback
from blocklayer.base.record import Record
from blocklayer.base.units import format_size
from blocklayer.core.disk import Disk
from blocklayer.core.identity import is_file_of
from blocklayer.core.names import FilenameLike
from blocklayer.core.trust import printable
from blocklayer.ops.map import map_disk, part_of
from blocklayer.ops.open_image import leaves, open_disk
from blocklayer.ops.plot_letters import Letters
from blocklayer.ops.survey import COLUMNS, LAYERS_MAX, Survey, survey

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from blocklayer.core.trust import Trust

    Axes: TypeAlias = Any  # of matplotlib, which need not be there
    Figure: TypeAlias = Any

FORMATS = ("png", "svg", "pdf")

COLOURS = ("#1f6fb4", "#e8772e", "#2e9e5b", "#9b59b6", "#c0392b", "#8c6d46")
ZERO_COLOUR, HOLE_COLOUR = "#c3cad4", "#f4f6f8"

VISIBLE = 0.6
"""How much of a cell's colour is at least that of data, however little there is."""

LINES_MAX = 4000
"""Lines in a diagram of an SVG: more than that become one picture."""

NAME_LENGTH_MAX = 48
"""Letters of a file's name in the legend."""


class PlotResult(Record, frozen=True):
    """What was drawn, in bytes: the part of the disk; zeroes, and what no layer has.

    layers  those that have data, the top first: (depth, file, bytes of data)
    """

    start: int
    length: int
    layers: tuple[tuple[int, str, int], ...]
    zero: int
    hole: int


def plot(
    name: FilenameLike,
    target: str | os.PathLike[str],
    *,
    format: str | None = None,
    offset: int = 0,
    length: int | None = None,
    force_share: bool = False,
    trust: Trust | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> PlotResult:
    """Draw the map of an image into `target`: a ``.png``, ``.svg`` or ``.pdf`` file.

    Raises `NotSupported` where matplotlib is not installed, `InvalidArgument`, `OpenError`,
    `Cancelled`.
    """
    path = os.fspath(target)
    kind = os.path.splitext(path)[1][1:].lower()
    if kind not in FORMATS:
        raise InvalidArgument(
            f"Cannot draw '{path}': the name of a picture ends in .{', .'.join(FORMATS)}"
        )
    _require_library()
    with open_disk(name, format=format, force_share=force_share, trust=trust) as disk:
        _refuse_own_files(disk, path)
        start, end = part_of(disk, offset, length)
        found = survey(map_disk(disk, start, end, progress, cancel), start, end)
    first = found.files[0].name if 0 in found.files else "image"
    shown = name if isinstance(name, str | os.PathLike) else first
    _save(found, os.path.basename(os.fspath(shown)), path, kind)
    files = found.files
    layers = tuple((depth, files[depth].name, files[depth].data) for depth in found.depths)
    return PlotResult(start, end - start, layers, found.bytes_of(-1), found.bytes_of(-2))


def _require_library() -> None:
    try:
        import matplotlib  # noqa: F401 -- to know whether it is there
    except ImportError:
        raise NotSupported(
            "Drawing needs matplotlib, which is not installed: pip install matplotlib"
        ) from None


# --- drawing --------------------------------------------------------------------------------------


def _refuse_own_files(disk: Disk, target: str) -> None:
    """A picture must not take the place of what it shows."""
    for node in leaves(disk.node):
        if is_file_of(node, target):
            raise InvalidArgument(f"'{target}' is part of the image and cannot be its picture")


def _save(found: Survey, title: str, path: str, kind: str) -> None:
    """Draw into another file first: what has the name is a whole picture."""
    import tempfile
    import warnings

    import matplotlib as mpl

    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "blocklayer",
        "text.parse_math": False,
        "font.size": 9,
        "axes.edgecolor": "#5b6470",
        "axes.linewidth": 0.6,
    }
    names = [os.path.basename(each) for each in (title, *(f.name for f in found.files.values()))]
    # Who looks at an SVG has fonts of their own: names are texts in it.
    letters = Letters(() if kind == "svg" else map(printable, names))
    settings["font.family"] = letters.families
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with mpl.rc_context(settings), warnings.catch_warnings():  # type: ignore[arg-type, unused-ignore]
        warnings.simplefilter("ignore")  # of names that the font has no letters for
        figure = draw(found, title, letters)
        try:
            # In a directory of its own, beside the target: it has a mode as any new file has.
            with tempfile.TemporaryDirectory(dir=os.path.dirname(path) or ".") as directory:
                new = os.path.join(directory, "picture")
                figure.savefig(new, format=kind, dpi=150, metadata=metadata)
                os.replace(new, path)
        except OSError as error:
            raise InvalidArgument(f"Cannot draw '{path}': {error.strerror or error}") from None


def draw(found: Survey, title: str, letters: Letters) -> Figure:
    """The whole picture."""
    from matplotlib.figure import Figure

    shown = found.depths[:LAYERS_MAX]
    files = max(1, len(shown))
    figure = Figure(figsize=(11, 4.6 + 1.75 * files), layout="constrained")
    grid = figure.add_gridspec(1 + files, 1, height_ratios=[2.6, *[1.0] * files])
    top = figure.add_subplot(grid[0])
    _draw_map(top, found)
    for place, depth in enumerate(shown, 1):
        _draw_file(figure.add_subplot(grid[place]), found, depth, letters, last=place == len(shown))
    if not shown:
        figure.add_subplot(grid[1]).set_axis_off()
    size = found.end - found.start
    part = f" from {format_size(found.start)}" if found.start else ""
    figure.legend(
        title=f"{_short(title, letters)}: {format_size(size)}{part}",
        title_fontproperties={"size": 14, "weight": "bold"},
        handles=_legend(found, letters),
        loc="outside upper center",
        ncols=2,
        frameon=False,
    )
    return figure


def colour_of(kind: int) -> str:
    """Of a layer's data, of zeroes, of what no layer has."""
    if kind < 0:
        return ZERO_COLOUR if kind == -1 else HOLE_COLOUR
    return COLOURS[min(kind, LAYERS_MAX - 1)]


def _legend(found: Survey, letters: Letters) -> list[Any]:
    from matplotlib.patches import Patch

    size = max(1, found.end - found.start)
    entries = []
    for kind in (*found.depths, -1, -2):
        count = found.bytes_of(kind)
        if kind >= 0:
            what = f"data in layer {kind}, {_short(found.files[kind].name, letters)}"
        else:
            what = "zeroes, known without reading" if kind == -1 else "hole: in no layer"
        label = f"{what}: {format_size(count)} ({count * 100 / size:.1f} %)"
        entries.append(Patch(facecolor=colour_of(kind), edgecolor="#8a929c", lw=0.5, label=label))
    return entries


def _short(name: str, letters: Letters) -> str:
    text = letters.writable(printable(os.path.basename(name))) or "?"
    half = NAME_LENGTH_MAX // 2
    return text if len(text) <= NAME_LENGTH_MAX else f"{text[:half]}…{text[1 - half :]}"


# --- the map --------------------------------------------------------------------------------------


def _draw_map(axes: Axes, found: Survey) -> None:
    """The disk in rows; a cell has the mixed colours of what lies in it."""
    rows, row_bytes = found.rows, found.row_bytes
    axes.imshow(
        cells(found),
        aspect="auto",
        interpolation="nearest",
        extent=(0, row_bytes, rows, 0),
    )
    axes.set_title("What the disk holds, in rows from left to right", loc="left", fontsize=10)
    axes.set_yticks([row + 0.5 for row in range(rows)])
    axes.set_yticklabels([format_size(found.start + row * row_bytes) for row in range(rows)])
    axes.set_ylabel("row begins at")
    axes.set_xlabel("from where the row begins")
    axes.hlines(range(1, rows), 0, row_bytes, colors="white", lw=1.5)
    _ticks(axes.xaxis, row_bytes)


def cells(found: Survey) -> Any:
    """Red, green and blue of every cell."""
    import numpy
    from matplotlib.colors import to_rgb

    weights = numpy.array(list(found.covered.values()))
    data = weights[:LAYERS_MAX]
    total = data.sum(axis=0)
    wanted = numpy.where(total > 0, numpy.maximum(total, VISIBLE), 0)
    data *= numpy.divide(wanted, total, out=numpy.zeros_like(total), where=total > 0)
    rest = weights[LAYERS_MAX:].sum(axis=0)
    left = numpy.clip(1 - wanted, 0, None)
    weights[LAYERS_MAX:] *= numpy.divide(left, rest, out=numpy.zeros_like(rest), where=rest > 0)
    colours = numpy.array([to_rgb(colour_of(kind)) for kind in found.covered])
    picture = numpy.clip(weights.T @ colours, 0, 1)
    picture[weights.sum(axis=0) < 0.01] = 1.0  # behind the end
    return picture.reshape(found.rows, COLUMNS, 3)


# --- files ----------------------------------------------------------------------------------------


def _draw_file(axes: Axes, found: Survey, depth: int, letters: Letters, *, last: bool) -> None:
    """Where in a layer's file the data of the disk lies."""
    import numpy
    from matplotlib.collections import LineCollection

    file, end = found.files[depth], found.files[depth].end
    file.thin(found)
    first = numpy.stack((file.starts, file.hosts), 1)
    lines = numpy.stack((first, first + file.lengths[:, None]), 1)
    collection = LineCollection(
        list(lines.astype(float)), colors=colour_of(depth), linewidths=2.2, capstyle="round"
    )
    collection.set_rasterized(len(lines) > LINES_MAX)
    axes.add_collection(collection)
    margin = max(1, found.end - found.start) * 0.004  # what lies at the edge must be seen
    axes.set_xlim(found.start - margin, found.end + margin)
    axes.set_ylim(-end * 0.05, end * 1.05)
    axes.grid(alpha=0.25, lw=0.5)
    pieces = file.fragments
    axes.set_title(
        f"Layer {depth}, {_short(file.name, letters)}: {format_size(file.placed)} in {pieces}"
        f" {'fragment' if pieces == 1 else 'fragments'}",
        loc="left",
        fontsize=10,
    )
    axes.set_ylabel("in the file")
    _ticks(axes.xaxis, found.end - found.start, found.start)
    _ticks(axes.yaxis, end, parts=4)
    if last:
        axes.set_xlabel("on the disk")
    else:
        axes.tick_params(labelbottom=False)


def _ticks(axis: Any, size: int, start: int = 0, parts: int = 8) -> None:
    """At multiples of a power of two, in the words of sizes."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    step = 1 << max(0, (max(1, size // parts) - 1).bit_length())
    first = -(-start // step) * step
    axis.set_major_locator(FixedLocator(list(range(first, start + size + 1, step))))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_size(int(value))))
