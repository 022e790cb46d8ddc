# SPDX-License-Identifier: Apache-2.0
"""Vocabulary: units, alignment, errors, layouts, buffers. Imports only the standard library."""
