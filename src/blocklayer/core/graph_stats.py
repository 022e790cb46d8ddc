# SPDX-License-Identifier: Apache-2.0
"""Disks of a graph that count their requests: of exports and guests, not of jobs."""

from __future__ import annotations

from blocklayer.core.graph_disk import GraphDisk
from blocklayer.core.stats import CountingDisk


class CountingGraphDisk(GraphDisk, CountingDisk):
    """One that counts its requests."""
