"""The manifests of tests/unit/api_crd/cases.yaml: a unit test asks our types, an e2e test a real API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from merge_patch import merge_patch

CASES = yaml.safe_load((Path(__file__).parents[1] / "unit" / "api_crd" / "cases.yaml").read_text())


def manifest(case: dict[str, Any], patch: str = "patch") -> dict[str, Any]:
    """The table's manifest with one of the case's patches."""
    document = merge_patch(CASES["manifest"], case.get(patch, {}))
    if "repeat" in case:
        return merge_patch(document, _repeated(**case["repeat"]))
    return document


def _repeated(path: list[str], times: int, text: str = "", key: str = "") -> dict[str, Any]:
    """A patch with a long text, or with a long key."""
    inner: Any = text * times if text else {key * times: "x"}
    for name in reversed(path):
        inner = {name: inner}
    return inner
