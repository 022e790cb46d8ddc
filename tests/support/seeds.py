# SPDX-License-Identifier: Apache-2.0
"""Seeds of random tests: chosen anew in every run, told when a test fails, given to repeat it."""

import os
import random

SEED_VARIABLE = "BLOCKLAYER_SEED"


def chosen_seed() -> int:
    """The seed that the user asks for, else a fresh one."""
    asked = os.environ.get(SEED_VARIABLE)
    return random.SystemRandom().getrandbits(32) if asked is None else int(asked, 0)
