"""Fixtures of the tests of data."""

from __future__ import annotations

import pytest

from spurmix.data.sources import tokens


@pytest.fixture(params=["compiled", "numpy"])
def packer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Packing by the compiled helpers, and in NumPy."""
    if request.param == "numpy":
        monkeypatch.setattr(tokens, "host_module", lambda: None)
    else:
        assert tokens.host_module() is not None, "the compiled helpers are missing"
    return request.param
