# SPDX-License-Identifier: Apache-2.0
"""Filters: nodes that pass requests on with another behaviour. Found by name only."""
