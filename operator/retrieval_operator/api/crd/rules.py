"""What the API server checks beyond bounds: the CEL twin of every pydantic validator, and immutability.

One row per rule; `validator` names the method of the model that checks the same on this machine (a test finds
validators without a row). Messages say what was expected, in the validator's own words. Rules compare values as they
are in effect, so an optional field falls back to its default here, and the schema itself has no defaults: hashes are
over what a user set.

CEL as of Kubernetes 1.29 (optional types). Costs are estimated from maxItems and maxLength of what a rule walks over;
the API server refuses a definition that could become too slow.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from retrieval_operator.api.pod import EnvironmentVariable, Volume
from retrieval_operator.api.spec import (
    Gate,
    Hyperparameters,
    Index,
    Model,
    Promotion,
    Registry,
    Replicas,
    RetrievalModelSpec,
    Training,
)
from retrieval_operator.api.types import CREDENTIALS_PATTERN, CRON_PATTERN

# FieldValueDuplicate exists as well, but the API server leaves its message out.
Reason = Literal["FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired"]


@dataclass(frozen=True)
class Rule:
    """One x-kubernetes-validation. `path` is the field that is at fault, "" for the value itself."""

    cel: str
    message: str
    path: str = ""
    reason: Reason = "FieldValueInvalid"
    validator: str = ""

    def document(self) -> dict[str, str]:
        place = {"fieldPath": self.path} if self.path else {}
        return {"rule": self.cel, "message": self.message, "reason": self.reason, **place}


def _in_effect(model: type[BaseModel], field: str, of: str = "self") -> str:
    """CEL for an optional field's value or its default."""
    info = model.model_fields[field]
    return f"{of}.?{info.alias}.orValue({json.dumps(info.default)})"


def _exactly_one(*fields: str) -> str:
    return f"[{', '.join(f'has(self.{field})' for field in fields)}].exists_one(given, given)"


def _same(one: str, other: str, path: str, default: str) -> str:
    """CEL that a string at a dotted optional path is the same in effect in `one` and `other`.

    Spelled out, since an `orValue` or `?:` of strings has no size that the cost estimate knows.
    """
    here, there, otherwise = f"{one}.{path}", f"{other}.{path}", json.dumps(default)
    given = f"({_has(there)} ? {here} == {there} : {here} == {otherwise})"
    return f"({_has(here)} ? {given} : (!({_has(there)}) || {there} == {otherwise}))"


def _has(path: str) -> str:
    """CEL that an optional path of an object is there, and so its parents."""
    root, *names = path.split(".")
    return " && ".join(f"has({root}.{'.'.join(names[:depth])})" for depth in range(1, len(names) + 1))


def _same_gate(one: str, other: str) -> str:
    words = [_same(one, other, field, Gate.model_fields[field].default) for field in ("metric", "pool", "segment")]
    return " && ".join([f"{_in_effect(Gate, 'k', one)} == {_in_effect(Gate, 'k', other)}", *words])


def _immutable(path: str, default: str) -> Rule:
    cel = _same("self", "oldSelf", path, default)
    return Rule(cel, "immutable; delete the object to change it", f".{path}")


MODEL_RULES: dict[type[BaseModel], tuple[Rule, ...]] = {
    Model: (
        Rule(
            _exactly_one("base", "bundleUri"),
            "expected exactly one of base (train) and bundleUri (import)",
            validator="base_or_bundle",
        ),
        Rule(
            "!has(self.dimensions) || (self.dimensions.map(width, -width).isSorted() && "
            "self.dimensions.all(width, self.dimensions.exists_one(other, other == width)))",
            "expected distinct widths, largest first",
            path=".dimensions",
            validator="widths_descend",
        ),
        Rule(
            "!has(self.dimensions) || !has(self.servedDimension) || self.servedDimension in self.dimensions",
            "expected one of dimensions",
            path=".servedDimension",
            validator="widths_descend",
        ),
    ),
    Hyperparameters: (
        Rule(
            "!(has(self.steps) && has(self.epochs))",
            "found both steps and epochs, expected at most one",
            reason="FieldValueForbidden",
            validator="one_length",
        ),
    ),
    Training: (
        Rule(
            f'{_in_effect(Training, "backend")} != "Job" || {_in_effect(Training, "nodes")} == 1',
            "expected 1 (use PyTorchJob for several nodes)",
            path=".nodes",
            validator="one_machine_backend",
        ),
    ),
    Replicas: (
        Rule(
            f"!has(self.max) || self.max >= {_in_effect(Replicas, 'min')}",
            "expected at least min",
            path=".max",
            validator="bounds_in_order",
        ),
    ),
    Gate: (
        Rule(
            "has(self.min) || has(self.maxRegression) || has(self.maxDropFromBest)",
            "found no bound, expected at least one of min, maxRegression, maxDropFromBest",
            reason="FieldValueRequired",
            validator="some_bound",
        ),
        Rule(
            f'{_in_effect(Gate, "metric")} != "hitRate" || {_in_effect(Gate, "pool")} == "corpus"',
            'with metric hitRate, expected "corpus"',
            path=".pool",
            validator="some_bound",
        ),
    ),
    Promotion: (
        Rule(
            f"self.gates.all(gate, self.gates.exists_one(other, {_same_gate('gate', 'other')}))",
            "expected one gate per metric, k, pool and segment",
            path=".gates",
            validator="distinct_gates",
        ),
        Rule(
            f"self.gates.exists(gate, has(gate.min) && !{_in_effect(Gate, 'dry_run', 'gate')})",
            "found no gate with min that is not a dryRun, expected at least one: "
            "the first stack has no champion to be compared with",
            path=".gates",
            reason="FieldValueRequired",
            validator="something_decides",
        ),
    ),
    RetrievalModelSpec: (
        Rule(
            "!(has(self.model.bundleUri) && has(self.data.schedule))",
            "found with model.bundleUri, expected none: an imported bundle is not retrained",
            path=".data.schedule",
            reason="FieldValueForbidden",
            validator="import_has_no_retraining",
        ),
        _immutable("storage.uri", ""),
        _immutable("registry.connection", Registry.model_fields["connection"].default),
        # Its default holds the namespace, which CEL cannot see: writing the default down is a change here.
        _immutable("registry.name", ""),
        _immutable("index.engine", Index.model_fields["engine"].default),
    ),
    EnvironmentVariable: (
        Rule(
            _exactly_one("value", "secret", "configMap"),
            "expected exactly one of value, secret, configMap",
            validator="one_source",
        ),
    ),
    Volume: (
        Rule(
            _exactly_one("persistentVolumeClaim", "configMap", "secret", "emptyDirSize"),
            "expected exactly one of persistentVolumeClaim, configMap, secret, emptyDirSize",
            validator="one_source",
        ),
    ),
}

# By the `format` of a type in types.py. The API server has no calendar and no list of time zones: what it cannot
# check here, the operator refuses with a condition.
FORMAT_RULES: dict[str, Rule] = {
    "uri": Rule(
        f"!self.matches('{CREDENTIALS_PATTERN}')",
        "found credentials in the URI; leave them out and name their Secret in storage.secretRef",
    ),
    "cron": Rule(
        f"self.matches('{CRON_PATTERN}')",
        'is not a cron expression; expected five fields such as "0 3 * * *"',
    ),
    "time-zone": Rule(
        "self.matches('^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$')",
        "is no time zone; expected an IANA name such as Europe/Berlin",
    ),
}

ROOT_RULES = (
    Rule(
        "self.metadata.name.size() <= 32 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name: expected a lower-case letter, then letters, digits and -, at most 32 characters: "
        "names of children are made from it",
    ),
)
