# SPDX-License-Identifier: Apache-2.0
"""`queue.SimpleQueue` alone: the module around it imports heapq, which costs start-up time."""

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from queue import Empty, SimpleQueue
else:
    try:
        from _queue import Empty, SimpleQueue
    except ImportError:  # another Python than CPython
        from queue import Empty, SimpleQueue

__all__ = ["Empty", "SimpleQueue"]
