# SPDX-License-Identifier: Apache-2.0
"""A server's counters for Prometheus, by its own client library (extra ``metrics``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.export.server import NbdServer
from blocklayer.nbd import wire

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

_LABEL = ["export"]


class _Collector:
    """Reads the counters when they are asked for."""

    def __init__(self, server: NbdServer) -> None:
        self._server = server

    def collect(self) -> Iterator[Any]:
        """Metric families, as the library calls them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        requests = CounterMetricFamily(
            "blocklayer_nbd_requests", "Requests answered", labels=[*_LABEL, "command"]
        )
        moved = CounterMetricFamily(
            "blocklayer_nbd_bytes", "Bytes read and written", labels=[*_LABEL, "direction"]
        )
        errors = CounterMetricFamily(
            "blocklayer_nbd_errors", "Requests answered by an error", labels=_LABEL
        )
        connections = CounterMetricFamily(
            "blocklayer_nbd_connections", "Clients that came", labels=_LABEL
        )
        clients = GaugeMetricFamily(
            "blocklayer_nbd_clients", "Clients that are connected", labels=_LABEL
        )
        size = GaugeMetricFamily("blocklayer_nbd_size_bytes", "Size of the disk", labels=_LABEL)
        for export in self._server.exports:
            name, stats = export.name, export.stats
            for command, count in list(stats.requests.items()):
                what = wire.COMMAND_NAMES.get(command, "unknown").replace(" ", "_")
                if command != wire.CMD_DISC:
                    requests.add_metric([name, what], count)
            moved.add_metric([name, "read"], stats.bytes_read)
            moved.add_metric([name, "write"], stats.bytes_written)
            errors.add_metric([name], stats.errors)
            connections.add_metric([name], stats.connections)
            clients.add_metric([name], stats.clients)
            size.add_metric([name], export.disk.size)
        yield from (requests, moved, errors, connections, clients, size)


@contextmanager
def serve_metrics(server: NbdServer, host: str, port: int) -> Iterator[int]:
    """Answer HTTP on an address meanwhile; the port. Raises `NotSupported`, `InvalidArgument`."""
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise NotSupported(
            "Metrics need the package prometheus-client, which is not installed:"
            " pip install prometheus-client"
        ) from None
    registry = CollectorRegistry()
    registry.register(_Collector(server))
    try:
        httpd, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidArgument(f"Cannot serve metrics on {host}:{port}: {reason}") from None
    try:
        yield httpd.server_address[1]
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
