# SPDX-License-Identifier: Apache-2.0
"""One prison for all tests of a worker."""

from collections.abc import Iterator

import pytest

from tests.hostile.prison import Prison


@pytest.fixture(scope="session")
def prison() -> Iterator[Prison]:
    """Where images are opened that may do anything."""
    prison = Prison()
    yield prison
    prison.close()
