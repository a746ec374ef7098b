"""`spurmix audit`: text and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_audit_prints_correlations(packed: Path, command: Any) -> None:
    result = json.loads(command("audit", packed, "--json").stdout)
    assert result["residual"] < 1e-6 < result["raw"]
    assert result["residual_given_lam"] > 0.1
    assert (
        "0.6000 in the data, 0.6000 after mixing, 0.6000 given lam\n(0 after mixing means"
        in command("audit", packed, "--policy", "erm").stdout
    )
