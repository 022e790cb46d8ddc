# SPDX-License-Identifier: Apache-2.0
"""Serving disks to others: servers, sessions, what they offer."""
