"""The policies that `inspect`, `audit` and reports show."""

from __future__ import annotations

from spurmix import policies
from spurmix.cli.correlations import default_policies


def test_default_policies_are_all_without_required_arguments() -> None:
    assert set(default_policies()) == {*policies.__all__} - {"upweight"}
