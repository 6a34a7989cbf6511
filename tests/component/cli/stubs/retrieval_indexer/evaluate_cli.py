"""`run` reports the qualities that the bundles carry; `verify` asks the stack for its ids."""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from stub_work import finish, options

MEMBERS = 1000
HALF_WIDTH = 0.01  # of the interval of the difference


def read(directory: str, name: str) -> dict[str, Any]:
    return json.loads(Path(directory, name).read_text())


def subject(chosen: dict[str, str], who: str) -> tuple[dict[str, str], float]:
    bundle = read(chosen[f"--{who}-bundle"], "bundle.json")
    generation = read(chosen[f"--{who}-generation"], "MANIFEST.json")
    return {"bundleId": bundle["id"], "generationId": generation["id"]}, bundle["quality"]


def gate_entry(gate: dict[str, Any], value: float, champion: float | None) -> dict[str, Any]:
    entry = {name: gate[name] for name in ("metric", "k", "pool", "segment")}
    entry |= {"n": MEMBERS, "discordant": MEMBERS // 5, "value": value, "method": "bootstrap"}
    if champion is not None:
        delta = value - champion
        bounds = {"lower": delta - HALF_WIDTH, "upper": delta + HALF_WIDTH}
        entry |= {"championValue": champion, "delta": delta, **bounds}
    return entry


def run(chosen: dict[str, str]) -> None:
    candidate, value = subject(chosen, "candidate")
    champion, champion_value = subject(chosen, "champion") if "--champion-bundle" in chosen else (None, None)
    document = {
        "kind": "evaluation",
        "asOf": 1,
        "candidate": candidate,
        "champion": champion,
        "leakage": {"candidate": None, "champion": None},
        "gates": [gate_entry(gate, value, champion_value) for gate in json.loads(chosen["--gates"])],
        "collapsed": False,
    }
    finish(chosen["--out"], "evaluation.json", document)


def verify(chosen: dict[str, str]) -> None:
    ids = json.load(urllib.request.urlopen(f"{chosen['--url']}/v1/ids"))
    document = {
        "kind": "verification",
        "bundleId": ids["bundle_id"],
        "generationId": ids["generation_id"],
        "asked": 50,
        "matched": 50,
        "maxScoreError": 0.0,
        "latencyMs": {"p50": 1.0, "p95": 1.0, "p99": 1.0},
    }
    finish(chosen["--out"], "verification.json", document)


{"run": run, "verify": verify}[sys.argv[1]](options(sys.argv[2:]))
