"""Makes the `assert` statements of the handlers show their values, as in a test module."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("parity.harness", "parity.kinds")
