# SPDX-License-Identifier: Apache-2.0
"""Manual pages, a web page and shell completion, made from what the commands declare."""
