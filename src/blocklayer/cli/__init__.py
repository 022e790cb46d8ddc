# SPDX-License-Identifier: Apache-2.0
"""The command `blk`: one module a command, with no business of its own.

Whatever a command does can be done from Python; a module here turns arguments into a call, and its
result into the text or JSON that scripts written for qemu-img and qemu-io expect.
"""
