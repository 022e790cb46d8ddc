# SPDX-License-Identifier: Apache-2.0
"""Importing a module by a name that is known only when it is needed."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from types import ModuleType


def module_named(name: str) -> ModuleType:
    """As `importlib.import_module`, which costs a short command a thirtieth of its time."""
    __import__(name)
    return sys.modules[name]
