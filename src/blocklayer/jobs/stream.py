# SPDX-License-Identifier: Apache-2.0
"""Stream: what lower layers hold comes up into a layer, which then lies directly over the base."""

from __future__ import annotations

from blocklayer.base.errors import BlocklayerError, InvalidArgument
from blocklayer.base.units import MiB
from blocklayer.core import io as core_io
from blocklayer.core.mapping import row_batches
from blocklayer.core.node import FormatNode
from blocklayer.jobs import chains
from blocklayer.jobs.job import Job
from blocklayer.jobs.policies import IGNORE, REPORT, check_policy

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Unpack

    from blocklayer.base.extent import Row
    from blocklayer.core.graph import Graph
    from blocklayer.core.graph_disk import GraphDisk
    from blocklayer.core.node import Node
    from blocklayer.jobs.job import JobOptions
    from blocklayer.jobs.manager import Jobs

PIECE = MiB


class StreamJob(Job):
    """See the module. Guests may write meanwhile: what they have written is not touched.

    layers        those between the node and its base: what they hold comes up
    base          what the node lies over afterwards, if anything
    backing_file  what its header is to call that; None: by the name that it has
    """

    type = "stream"

    def __init__(
        self,
        graph: Graph,
        jobs: Jobs,
        job_id: str,
        node: FormatNode,
        *,
        layers: list[Node],
        base: Node | None,
        backing_file: str | None,
        error_policy: str,
        **common: Unpack[JobOptions],
    ) -> None:
        self.graph = graph
        self.node = node
        self.base = base
        self._depth = 1 + len(layers)
        """Where the base is in the chain, from the node down."""
        self._backing_file = backing_file
        self._error_policy = error_policy
        self._ignored: BlocklayerError | None = None
        """The first error that was ignored: what it is about still lies below."""
        self._was_read_only = node.read_only
        super().__init__(jobs, job_id, **common)
        self._held: list[GraphDisk] = []
        for layer in (node, *layers):
            reason = "block device is in use by block job: stream"
            graph.block(layer, self, reason, writes=layer is node)
        try:
            chains.hold(graph, layers, f"stream job '{job_id}'", self._held)
        except BaseException:
            self.fail_early()
            raise

    def run(self) -> None:
        """Copy up. Raises `JobCancelled`, and what went wrong."""
        if self._was_read_only:
            self.graph.set_read_only(self.node, False)
        self.set_remaining(self.node.size)
        for batch in row_batches(self.node, 0, self.node.size):
            for row in batch:
                if self._is_wanted(row):
                    self._bring_up(row[0], row[1])
                else:
                    self.pause_point()
                    self.advance(row[1])
        self.node.flush()
        if self._ignored is not None:
            raise self._ignored  # the layers below are needed still

    def _is_wanted(self, row: Row) -> bool:
        """Whether an extent comes from a layer that is going to be left out."""
        depth = row[5]
        if row[4]:
            return 0 < depth < self._depth
        # Nobody has it. A base that is longer than what lies above it would show through.
        return self.base is not None and depth < self._depth and row[0] < self.base.size

    def _bring_up(self, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            self.hold_back()
            count = min(PIECE, end - offset)
            try:
                self._copy(offset, count)
            except BlocklayerError as error:
                reading = getattr(error, "operation", "read") == "read"
                operation = "read" if reading else "write"
                action = self.on_error(self._error_policy, operation, error)
                if action == REPORT:
                    raise
                if action != IGNORE:
                    continue
                self._ignored = self._ignored or error
            with self.changed:
                self.limit.account(count)
            self.advance(count)
            offset += count

    def _copy(self, offset: int, length: int) -> None:
        self.node.run(core_io.copy_up_all, self.node, offset, length)

    def prepare(self) -> None:
        """The layers in between are not needed any more."""
        with self.graph.drained(self.node):
            self.make_real()
            if self.node.backing is None:
                return  # there was nothing to bring up, and raw images have no header to note it in
            chains.store_backing(self.graph, self.node, self.base, self._backing_file)
            self.graph.set_backing(self.node, self.base)

    def clean(self) -> None:
        """Let go of the layers."""
        for disk in self._held:
            disk.close()
        try:
            if self._was_read_only:
                chains.only_read_again(self.graph, self.node)
        finally:
            self.graph.unblock(self)


def start(
    graph: Graph,
    jobs: Jobs,
    *,
    device: str,
    job_id: str | None = None,
    base: str | None = None,
    base_node: str | None = None,
    bottom: str | None = None,
    backing_file: str | None = None,
    on_error: str = REPORT,
    filter_node_name: str | None = None,
    **common: Unpack[JobOptions],
) -> StreamJob:
    """Bring what lies between node `device` and its base up into it; the names are QMP's.

    Without a base the image needs no other one afterwards. Raises `InvalidArgument` and other
    errors of the package; then nothing has changed.
    """
    node = graph.find(device)
    job_id = jobs.id_for(device, job_id)
    if base is not None and base_node is not None:
        raise InvalidArgument("'base' and 'base-node' cannot be specified at the same time")
    if bottom is not None and base is not None:
        raise InvalidArgument("'base' and 'bottom' cannot be specified at the same time")
    if bottom is not None and base_node is not None:
        raise InvalidArgument("'bottom' and 'base-node' cannot be specified at the same time")
    chain = graph.backing_chain(node)
    top = chain[0]
    if not isinstance(top, FormatNode):
        raise InvalidArgument(f"Node '{device}' has no layers")
    below = _base(graph, chain, device, base, base_node, bottom)
    depth = len(chain) if below is None else chains.index(chain, below)
    layers = chain[1:depth]
    if below is None and backing_file is not None:
        raise InvalidArgument("backing file specified, but streaming the entire chain")
    for layer in (top, *layers):
        graph.require_unblocked(layer)
    if filter_node_name is not None:
        graph.check_new_name(filter_node_name)
    job = StreamJob(
        graph,
        jobs,
        job_id,
        top,
        layers=layers,
        base=below,
        backing_file=backing_file,
        error_policy=check_policy("on-error", on_error),
        **common,
    )
    job.start_if_alone()
    return job


def _base(
    graph: Graph,
    chain: list[Node],
    device: str,
    base: str | None,
    base_node: str | None,
    bottom: str | None,
) -> Node | None:
    """What the image is to lie over afterwards; None for nothing. Raises `InvalidArgument`."""
    if base_node is not None:
        words = f"Node '{base_node}' is not a backing image of '{device}'"
        return chains.find_node(graph, chain[1:], base_node, words)
    if base is not None:
        found = chains.find_file(chain[1:], base)
        if found is None:
            raise InvalidArgument(f"Can't find '{base}' in the backing chain")
        return found
    if bottom is not None:
        words = f"Node '{bottom}' is not in a chain starting from '{device}'"
        last = chains.find_node(graph, chain, bottom, words)
        number = chains.index(chain, last)
        return chain[number + 1] if number + 1 < len(chain) else None
    return None
