"""What the stub programs share: the file contracts (docs/contracts.md) without any learning, in milliseconds.

They stand in for the real packages on PYTHONPATH, so that a whole life of a model can be told through the real command
line, the real adapters and a real MLflow. What a model is worth is written in its dataset's directory: the file
`quality` holds the recall that an evaluation will report. The file `fail` holds an exit code and a message.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any


def options(arguments: list[str]) -> dict[str, str]:
    """`--name value` pairs; a flag without value is "true"."""
    found: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            following = arguments[position + 1 : position + 2]
            found[argument] = following[0] if following and not following[0].startswith("--") else "true"
    return found


def hex16(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def stop_if_told(dataset: str) -> None:
    """End as the dataset's file `fail` says: `<exit code> <message>`."""
    order = Path(dataset, "fail")
    if order.exists():
        code, _, message = order.read_text().strip().partition(" ")
        print(message, flush=True)
        log = os.environ.get("RETRIEVAL_TERMINATION_LOG")
        if log:
            Path(log).write_text(json.dumps({"reason": "BadInput", "message": message}))
        sys.exit(int(code))


def finish(out: str, name: str, document: dict[str, Any]) -> None:
    """Write the last file and report it to MLflow, as contract section 2 says."""
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"formatVersion": 1, **document}).encode()
    (directory / name).write_bytes(content)
    server, run_id = os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("RETRIEVAL_RUN_ID")
    if not server or not run_id:
        return
    query = urllib.parse.urlencode({"run_id": run_id})
    run = json.load(urllib.request.urlopen(f"{server}/api/2.0/mlflow/runs/get?{query}"))["run"]
    root = run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:")
    artifacts = f"{server}/api/2.0/mlflow-artifacts/artifacts{root}"
    if name == "bundle.json":
        _send("PUT", f"{artifacts}/bundle/bundle.json", content)
    _send("PUT", f"{artifacts}/report.json", content)
    tag = {"run_id": run_id, "key": "retrieval.report", "value": hashlib.sha256(content).hexdigest()}
    _send("POST", f"{server}/api/2.0/mlflow/runs/set-tag", json.dumps(tag).encode())
    print(f"{name} written and reported", flush=True)


def _send(method: str, url: str, content: bytes) -> None:
    request = urllib.request.Request(url, data=content, method=method, headers={"Content-Type": "application/json"})
    urllib.request.urlopen(request).read()
