# SPDX-License-Identifier: Apache-2.0
"""Formats: each maps guest offsets onto its children, and knows in which order to write tables."""
