# SPDX-License-Identifier: Apache-2.0
"""The `nbd` protocol on our own server, which has what no other here has: extended headers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blocklayer
from blocklayer.base.units import GiB, KiB, MiB, TiB
from blocklayer.core.disk import Disk
from blocklayer.export.export import Export
from blocklayer.export.listen import UnixAddress
from blocklayer.export.server import NbdServer
from blocklayer.nbd.client_handshake import EXTENDED
from blocklayer.nbd.client_list import list_exports
from blocklayer.nbd.uri import parse
from blocklayer.protocols.nbd import NbdNode
from blocklayer.testing.exercise import Exercise
from blocklayer.testing.model import ModelDisk


@contextmanager
def served(path: Path, disk: Disk, **settings: Any) -> Iterator[NbdServer]:
    server = NbdServer([UnixAddress(str(path))])
    server.add(Export("disk", disk, writable=not disk.read_only, **settings))
    server.start()
    try:
        yield server
    finally:
        server.stop(patience=1)


def opened(path: Path, **options: Any) -> Disk:
    file = {"driver": "nbd", "path": str(path), "export": "disk", **options}
    return blocklayer.open({"driver": "raw", "file": file}, mode="r+", discard="unmap")


def created(path: Path, size: int) -> Path:
    blocklayer.create(path, format="qed", size=size)
    return path


def test_random_requests(tmp_path: Path, seed: int) -> None:
    image = created(tmp_path / "image.qed", 8 * MiB)
    model = ModelDisk(8 * MiB)
    with blocklayer.open(image, mode="r+", discard="unmap") as disk, served(tmp_path / "s", disk):
        with opened(tmp_path / "s", connections=3) as remote:
            node = remote.node.children["file"]
            assert isinstance(node, NbdNode)
            assert node.client.agreement.mode == EXTENDED
            Exercise(remote, model, seed=seed).run(250)
        model.check(disk)
    assert not blocklayer.check(image).corruptions


def test_effects_of_more_than_32_bits(tmp_path: Path) -> None:
    image = created(tmp_path / "image.qed", 4 * TiB)
    with (
        blocklayer.open(image, mode="r+", discard="unmap") as disk,
        served(tmp_path / "s", disk),
        opened(tmp_path / "s") as remote,
    ):
        remote.write(3 * TiB, b"far")
        remote.write_zeroes(0, 20 * GiB, unmap=True)
        remote.discard(GiB, 10 * GiB)
        found = [(row.offset, row.length) for row in remote.extents() if row.data]
        assert found == [(3 * TiB, 64 * KiB)]
        assert remote.read(3 * TiB - 1, 5) == b"\0far\0"


def test_a_listing_of_ours(tmp_path: Path) -> None:
    image = created(tmp_path / "image.qed", MiB)
    with (
        blocklayer.open(image) as disk,
        served(tmp_path / "s", disk, description="a disk"),
    ):
        listing = list_exports(parse(f"nbd+unix:///?socket={tmp_path}/s"))
        (export,) = listing.exports
        assert (export.name, export.description) == ("disk", "a disk")
        assert export.info is not None
        assert export.info.size == MiB
        assert export.contexts == ["base:allocation"]
