"""What an MLflow server answers in the scripts of tests/unit/mlflow."""

from __future__ import annotations

EXPERIMENT = ("GET experiments/get-by-name", {"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}})
OWNED = {"name": "default.feed", "tags": [{"key": "owner", "value": "local/default/feed"}]}
MAINTENANCE = {"status": "maintenance"}  # a gateway in front of MLflow


def version_entry(number: str, bundle_id: str = "b-1", **tags: str) -> dict:
    named = {"owner": "local/default/feed", "bundle_id": bundle_id} | tags
    return {"version": number, "tags": [{"key": key, "value": value} for key, value in named.items()]}


def failed(code: str, status: int = 400) -> tuple[int, dict[str, str]]:
    return status, {"error_code": code, "message": "no"}
