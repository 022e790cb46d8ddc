# SPDX-License-Identifier: Apache-2.0
"""New QED images. Options are checked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable

from blocklayer.base.align import align_up
from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.base.units import SECTOR, parse_size
from blocklayer.core.drivers import CreateOption
from blocklayer.core.node import Node
from blocklayer.formats.qed.header import encode_backing_name, with_backing
from blocklayer.formats.qed.layout import (
    BACKING_FILENAME_MAX,
    CLUSTER_SIZE_DEFAULT,
    CLUSTER_SIZE_MAX,
    CLUSTER_SIZE_MIN,
    MAGIC,
    TABLE_SIZE_DEFAULT,
    TABLE_SIZE_MAX,
    TABLE_SIZE_MIN,
    Geometry,
    Header,
    is_cluster_size_valid,
    is_table_size_valid,
)

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

OPTIONS = (
    CreateOption("backing_file", "str", "File name of a base image"),
    CreateOption("backing_fmt", "str", "Image format of the base image"),
    CreateOption("cluster_size", "size", "Cluster size (in bytes)", str(CLUSTER_SIZE_DEFAULT)),
    CreateOption("size", "size", "Virtual disk size"),
    CreateOption("table_size", "size", "L1/L2 table size (in clusters)", str(TABLE_SIZE_DEFAULT)),
)


def resolve(options: dict[str, Any]) -> dict[str, Any]:
    """Complete and validate create options. Raises `InvalidArgument`, `NotSupported`."""
    cluster_size = parse_size(options.get("cluster_size", CLUSTER_SIZE_DEFAULT), "cluster_size")
    table_size = parse_size(options.get("table_size", TABLE_SIZE_DEFAULT), "table_size")
    if not is_cluster_size_valid(cluster_size):
        raise InvalidArgument(
            f"QED cluster size must be within range [{CLUSTER_SIZE_MIN}, {CLUSTER_SIZE_MAX}]"
            " and power of 2"
        )
    if not is_table_size_valid(table_size):
        raise InvalidArgument(
            f"QED table size must be within range [{TABLE_SIZE_MIN}, {TABLE_SIZE_MAX}]"
            " and power of 2"
        )
    mode = options.get("preallocation", "off")
    if mode != "off":
        raise NotSupported(f"Unsupported preallocation mode '{mode}' for QED")
    size = align_up(options["size"], SECTOR)
    maximum = Geometry(cluster_size, table_size).image_size_max
    if size > maximum:
        raise InvalidArgument(
            "QED image size must be a multiple of 512 and no more than"
            f" {maximum} bytes with this cluster and table size; {size} were asked for"
        )
    name = options.get("backing_file")
    if name:
        length = len(encode_backing_name(name))
        room = min(cluster_size - Header.SIZE, BACKING_FILENAME_MAX)
        if length > room:
            raise InvalidArgument(
                f"The backing file name has {length} bytes; the header has room for {room}"
            )
    return {**options, "size": size, "cluster_size": cluster_size, "table_size": table_size}


def create(storage: Node, options: dict[str, Any]) -> None:
    """Write header and an empty L1 table into empty storage; `options` come from `resolve`.

    The image grows at its end, so storage of a fixed size, full from the start, is none for it:
    raises `NotSupported`.
    """
    if not _grows(storage):
        raise NotSupported("Cannot resize device files")
    cluster_size: int = options["cluster_size"]
    geometry = Geometry(cluster_size, options["table_size"])
    header = Header(
        magic=MAGIC,
        cluster_size=cluster_size,
        table_size=options["table_size"],
        header_size=1,
        l1_table_offset=cluster_size,
        image_size=options["size"],
    )
    header, name = with_backing(
        header, options.get("backing_file") or None, options.get("backing_fmt"), Header.SIZE
    )
    length = cluster_size + geometry.table_bytes
    storage.truncate(length)
    # The magic number comes last and in one sector: what is half made is no QED image.
    if name:
        storage.writev(Header.SIZE, [memoryview(name)])
        storage.flush()
    storage.writev(0, [memoryview(header.pack())])


def _grows(storage: Node) -> bool:
    """Whether storage can become larger: also a raw disk, which is as large as its file."""
    inside = storage.children.get("file") if storage.driver == "raw" else None
    return storage.grows_zeroed if inside is None else _grows(inside)


def measure(options: dict[str, Any], data: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """File size for the given data ranges (ascending), and for a full disk; bytes."""
    geometry = Geometry(options["cluster_size"], options["table_size"])
    clusters, tables = 0, 0
    next_cluster = next_table = 0
    for offset, length in data:
        first = max(next_cluster, geometry.cluster_start(offset) // geometry.cluster_size)
        end = geometry.cluster_up(offset + length) // geometry.cluster_size
        clusters += max(0, end - first)
        next_cluster = max(next_cluster, end)
        first = max(next_table, geometry.l1_index(offset))
        end = geometry.l1_index(offset + length - 1) + 1
        tables += max(0, end - first)
        next_table = max(next_table, end)
    size: int = options["size"]
    all_tables = geometry.l1_index(size - 1) + 1 if size else 0
    return (
        _file_size(geometry, clusters, tables),
        _file_size(geometry, geometry.clusters(size), all_tables),
    )


def _file_size(geometry: Geometry, clusters: int, tables: int) -> int:
    return (1 + clusters) * geometry.cluster_size + (1 + tables) * geometry.table_bytes
