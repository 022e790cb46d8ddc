# SPDX-License-Identifier: Apache-2.0
"""What is done with whole images: create, convert, compare, check, resize, rebase, commit, …

Each module is one operation on open disks or names, with progress and cancellation; none knows a
format.
"""
