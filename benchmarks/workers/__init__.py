# SPDX-License-Identifier: Apache-2.0
"""Programs the benches run as processes of their own, so that a CPU reading is theirs alone.

Each takes one JSON object as its only argument and prints one JSON object. Only these import
blocklayer.
"""
