# SPDX-License-Identifier: Apache-2.0
"""The NBD protocol, both sides, without a socket: bytes in, bytes out."""
