# SPDX-License-Identifier: Apache-2.0
"""query-block-exports while jobs begin and end on what is exported."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from blocklayer.core.filter import FilterNode
from blocklayer.core.node import Node
from blocklayer.qmp.daemon import Daemon
from blocklayer.qmp.dispatch import Session


class Above(FilterNode):
    """Stands where the filter of a job does."""

    driver = "above"


def test_the_filter_of_a_job_goes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon()
    session, graph = Session(daemon.context), daemon.context.graph

    def do(command: str, **arguments: Any) -> Any:
        answer = session.answer({"execute": command, "arguments": arguments})
        assert "return" in answer, answer
        return answer["return"]

    try:
        do("qmp_capabilities")
        do("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp_path / "nbd")}})
        do("blockdev-add", **{"driver": "memory", "node-name": "s", "size": 1 << 16})
        do("block-export-add", **{"type": "nbd", "id": "e", "node-name": "s"})
        filter_node = Above(graph.find("s"))
        graph.insert_filter(filter_node, graph.find("s"), "f")
        removal = threading.Thread(target=lambda: graph.remove_filter(filter_node))
        name_of = graph.name_of

        def as_it_goes(node: Node) -> str:
            if node is filter_node and removal.ident is None:
                removal.start()
                removal.join(0.5)
            return name_of(node)

        monkeypatch.setattr(graph, "name_of", as_it_goes)
        assert do("query-block-exports")[0]["node-name"] == "f"
        removal.join()
        assert do("query-block-exports")[0]["node-name"] == "s"
    finally:
        daemon.close()
