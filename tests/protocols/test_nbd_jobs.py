# SPDX-License-Identifier: Apache-2.0
"""Exports as nodes of a graph: a disk in use is mirrored onto one, which dies on the way."""

import random
from pathlib import Path

from blocklayer.base.units import KiB, MiB
from blocklayer.jobs import mirror
from blocklayer.protocols.memory import MemoryNode
from tests.jobs.scenes import stage, wait_end, wait_ready
from tests.support import needs
from tests.support.graphs import snapshot
from tests.support.nbd_servers import nbdkit, running


@needs("nbdkit")
def test_a_mirror_onto_an_export(tmp_path: Path, rng: random.Random) -> None:
    image, path = tmp_path / "image", tmp_path / "s"
    size = 8 * MiB
    image.write_bytes(bytes(size))
    with running(nbdkit(path, "file", str(image)), path) as peer, stage() as scene:
        source = scene.put("source", MemoryNode(size))
        for _ in range(20):
            source.writev(rng.randrange(100) * 64 * KiB, [memoryview(rng.randbytes(64 * KiB))])
        scene.graph.add(
            {
                "driver": "nbd",
                "node-name": "target",
                "server": {"type": "unix", "path": str(path)},
                "reconnect-delay": 30,
            }
        )
        with scene.graph.open_disk("source", writable=True, user="guest") as guest:
            job = mirror.start(
                scene.graph, scene.jobs, job_id="m", device="source", target="target", sync="full"
            )
            wait_ready(job)
            for round_ in range(20):
                if round_ == 10:
                    peer.kill()
                    peer.start()
                guest.write(rng.randrange(size - 70000), rng.randbytes(rng.randrange(1, 70000)))
            job.complete()
            wait_end(job)
            assert job.error is None
        assert image.read_bytes() == snapshot(source)
