# SPDX-License-Identifier: Apache-2.0
"""What tests of every layer share."""

from tests.support.seeds import chosen_seed
from tests.support.tools import NEEDS, needs, needs_root

__all__ = ["NEEDS", "chosen_seed", "needs", "needs_root"]
