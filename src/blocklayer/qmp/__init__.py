# SPDX-License-Identifier: Apache-2.0
"""QMP, QEMU's monitor protocol: framing, declarations, dispatch, commands, monitors."""
