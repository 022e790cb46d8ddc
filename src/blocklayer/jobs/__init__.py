# SPDX-License-Identifier: Apache-2.0
"""Background operations on nodes of a graph: mirror, backup, commit, stream, create."""
