# SPDX-License-Identifier: Apache-2.0
"""Commit: what layers hold goes down into the one below them, while guests go on.

active        from the layer that guests write to: a mirror into the base, which becomes ready,
              and on `complete` everybody stands on the base
intermediate  from a layer further down: ends by itself, and the layer above it then lies
              directly over the base
"""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import MiB
from blocklayer.core.graph_edges import skip_filters
from blocklayer.core.node import FormatNode
from blocklayer.core.permissions import READ
from blocklayer.jobs import chains
from blocklayer.jobs.copying import CopyingJob, CopyOptions
from blocklayer.jobs.mirror import MirrorJob
from blocklayer.jobs.policies import REPORT, check_policy

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Unpack

    from blocklayer.base.extent import Row
    from blocklayer.core.graph import Graph
    from blocklayer.core.graph_disk import GraphDisk
    from blocklayer.core.node import Node
    from blocklayer.jobs.job import JobOptions
    from blocklayer.jobs.manager import Jobs

TAIL_PIECE = 256 * MiB


class _IntoBase(CopyingJob):
    """What both kinds do with the base: write to it although it lies below others.

    layers  all above the base that are committed, the source first
    """

    type = "commit"
    _was_read_only = False

    def __init__(
        self,
        graph: Graph,
        jobs: Jobs,
        job_id: str,
        source: Node,
        options: CopyOptions,
        *,
        layers: list[Node],
        **common: Unpack[JobOptions],
    ) -> None:
        self._layers = layers
        self._held: list[GraphDisk] = []
        super().__init__(graph, jobs, job_id, source, options, **common)

    def open_target(self, node: Node) -> GraphDisk:
        """The base, which may be read-only until now, and may have to grow.

        Who reads through the layers finds the same as ever; but not who begins further down, in
        another chain over the base or over a layer in between: those must have no other users.
        """
        for layer in self._layers:
            self._take_over(layer)
        chains.hold(self.graph, self._layers[1:], self._user, self._held, frozenset())
        self._was_read_only = node.read_only
        if node.read_only:
            self.graph.set_read_only(node, False)
        return self.graph.open_disk(
            node,
            writable=True,
            resizes=True,
            user=self._user,
            role="target",
            shares=frozenset({READ}),
            follows=False,
        )

    @property
    def _user(self) -> str:
        return f"commit job '{self.id}'"

    def _take_over(self, layer: Node) -> None:
        """Nobody else changes what lies below a layer, and its bytes stay what they are."""
        self.graph.block(layer, self, self.busy)
        self.graph.vouch(layer, self)

    def clean(self) -> None:
        """Let go of everything."""
        for disk in self._held:
            disk.close()
        super().clean()
        self.graph.vouch_no_more(self)

    def grow_base(self) -> None:
        """The base must have room for everything."""
        if self.target.size < self.source.size:
            with self.graph.drained(self.target.node):
                self.target.resize(self.source.size)

    def is_above(self, row: Row) -> bool:
        """Whether an extent's answer comes from above the base."""
        return row[5] < len(self._layers) and (row[4] or row[3])

    def restore_base(self) -> None:
        """The base is only read from now on, as before."""
        if self._was_read_only:
            chains.only_read_again(self.graph, self.options.target)


class ActiveCommitJob(_IntoBase, MirrorJob):
    """Commit of the layer that guests write to."""

    type = "commit"

    def check_sizes(self) -> None:
        """The base may grow."""
        self.grow_base()

    def mark_first(self) -> None:
        """All that lies above the base."""
        self.mark(self.is_above)

    def prepare(self) -> None:
        """As a mirror; the base lies below others again if nobody has moved to it."""
        super().prepare()
        if not self.completing:
            self._restore_when_clean = True

    _restore_when_clean = False

    def abort(self) -> None:
        """Everybody goes on where they are."""
        super().abort()
        self._restore_when_clean = True

    def clean(self) -> None:
        """Let go of the base."""
        super().clean()
        if self._restore_when_clean:
            self.restore_base()


class CommitJob(_IntoBase):
    """Commit of a layer further down: nobody writes to it.

    overlay       the layer above it, which lies over the base afterwards
    backing_file  what the overlay's header is to call the base; None: by the name that it has
    """

    def __init__(
        self,
        graph: Graph,
        jobs: Jobs,
        job_id: str,
        source: Node,
        options: CopyOptions,
        *,
        layers: list[Node],
        overlay: FormatNode,
        backing_file: str | None,
        **common: Unpack[JobOptions],
    ) -> None:
        self._overlay = overlay
        self._backing_file = backing_file
        super().__init__(graph, jobs, job_id, source, options, layers=layers, **common)

    def open_target(self, node: Node) -> GraphDisk:
        """Of the layer to commit, too, nobody may change what it shows."""
        self._take_over(self._overlay)
        chains.hold(self.graph, [self.source], self._user, self._held)
        return super().open_target(node)

    def run(self) -> None:
        """Copy. Raises `JobCancelled`, and what went wrong."""
        self.grow_base()
        self.mark(self.is_above)
        self.copy_all()
        self._hide_tail()
        self.flush_target()

    def _hide_tail(self) -> None:
        """A base that is longer than the layers must not show through to the layer above them."""
        start = self.source.size
        end = min(self.target.size, self._overlay.size)
        while start < end:
            self.pause_point()
            count = min(TAIL_PIECE, end - start)
            self.target.write_zeroes(start, count)
            start += count

    def prepare(self) -> None:
        """The layer above lies over the base from now on, here and in its header."""
        base = self.target.node
        with self.graph.drained(self._overlay):
            self.make_real()
            chains.store_backing(self.graph, self._overlay, base, self._backing_file)
            self.graph.set_backing(self._overlay, base)

    def clean(self) -> None:
        """Let go of the base."""
        super().clean()
        self.restore_base()


def start(
    graph: Graph,
    jobs: Jobs,
    *,
    device: str,
    job_id: str | None = None,
    base_node: str | None = None,
    base: str | None = None,
    top_node: str | None = None,
    top: str | None = None,
    backing_file: str | None = None,
    on_error: str = REPORT,
    filter_node_name: str | None = None,
    **common: Unpack[JobOptions],
) -> MirrorJob | CommitJob:
    """Commit layers of the chain of node `device`; the names are QMP's. Returns the job.

    From `top` (default: the active layer) down into `base` (default: the lowest). Raises
    `InvalidArgument` and other errors of the package; then nothing has changed.
    """
    active = graph.find(device)
    job_id = jobs.id_for(device, job_id)
    if top_node is not None and top is not None:
        raise InvalidArgument("'top-node' and 'top' are mutually exclusive")
    if base_node is not None and base is not None:
        raise InvalidArgument("'base-node' and 'base' are mutually exclusive")
    chain = graph.backing_chain(active)
    first, last = _ends(graph, chain, top_node, top, base_node, base)
    at, end = chains.index(chain, first), chains.index(chain, last)
    if at == end:
        raise InvalidArgument("cannot commit an image into itself")
    if at > end:
        name = graph.name_of(last)
        raise InvalidArgument(f"'{name}' is not in this backing file chain")
    for layer in chain[at : end + 1]:
        graph.require_unblocked(layer)
    if filter_node_name is not None:
        graph.check_new_name(filter_node_name)
    layers = chain[at:end]
    options = CopyOptions(
        target=last,
        on_source_error=check_policy("on-error", on_error),
        on_target_error=on_error,
        filter_node_name=filter_node_name,
        unmap=False,
    )
    job: ActiveCommitJob | CommitJob
    if first is skip_filters(active):
        if backing_file is not None:
            raise InvalidArgument("'backing-file' specified, but 'top' is the active layer")
        job = ActiveCommitJob(graph, jobs, job_id, active, options, layers=layers, **common)
    else:
        overlay = chain[at - 1]
        graph.require_unblocked(overlay)
        assert isinstance(overlay, FormatNode)
        job = CommitJob(
            graph,
            jobs,
            job_id,
            first,
            options,
            layers=layers,
            overlay=overlay,
            backing_file=backing_file,
            **common,
        )
    job.start_if_alone()
    return job


def _ends(
    graph: Graph,
    chain: list[Node],
    top_node: str | None,
    top: str | None,
    base_node: str | None,
    base: str | None,
) -> tuple[Node, Node]:
    """The layers to commit from and into. Raises `InvalidArgument`."""
    first: Node | None = chain[0]
    last: Node | None = chain[-1]
    words = "'{}' is not in this backing file chain"
    if top_node is not None:
        first = chains.find_node(graph, chain, top_node, words.format(top_node))
    elif top is not None:
        first = chains.find_file(chain, top)
    if first is None:
        raise InvalidArgument(f"Top image file {top} not found")
    if base_node is not None:
        last = chains.find_node(graph, chain, base_node, words.format(base_node))
    elif base is not None:
        last = chains.find_file(chain, base)
    if last is None:
        raise InvalidArgument(f"Can't find '{base}' in the backing chain")
    return first, last
