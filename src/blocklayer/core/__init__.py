# SPDX-License-Identifier: Apache-2.0
"""How bytes are moved: nodes, the request gate, mapping, opening. Never imports a driver."""
