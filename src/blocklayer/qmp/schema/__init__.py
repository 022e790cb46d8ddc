# SPDX-License-Identifier: Apache-2.0
"""The types of QMP that this daemon speaks, one module a family. Names and meanings are QEMU's."""
