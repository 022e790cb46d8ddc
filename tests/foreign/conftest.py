# SPDX-License-Identifier: Apache-2.0
"""Assertions of the helpers here explain themselves, as those of tests do."""

import pytest

pytest.register_assert_rewrite("tests.foreign.qemu", "tests.foreign.views")
