# SPDX-License-Identifier: Apache-2.0
"""QED, the QEMU Enhanced Disk format.

layout      header and table entries as they stand on disk; address arithmetic
header      reading, validating and rewriting the header
tables      L1 and L2 tables: loading, the bounded cache, writing
driver      the node: mapping, allocation, commit order, the NEED_CHECK bit
check       consistency check and repair
compact     giving leaked clusters back
create      new images
"""
