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

from retrieval_operator.api.crd import calendar
from retrieval_operator.api.pod import EnvironmentVariable, Volume
from retrieval_operator.api.prompts import ITEM_DERIVED, ItemPrompt, MemberPrompt, PromptField, PromptHistory
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
from retrieval_operator.api.types import CREDENTIALS_PATTERN

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


# In rules about prompts any field may be missing, required or not: older definitions took any document. A stored object
# that does not meet a rule still gets its status written, one for which a rule cannot be evaluated does not.
_IS_PERCENTILE = '(has(field.rendering) && field.rendering == "percentile")'


def _most_tokens(fields: str) -> str:
    """CEL for PromptField.most_tokens, summed over a list of them."""
    return f"{fields}.map(field, {_IS_PERCENTILE} ? 2 : 1 + field.?maxTokens.orValue(0)).sum()"


def _each_field(cel: str) -> str:
    return f"!has(self.fields) || self.fields.all(field, {cel})"


def _named(cel: str) -> str:
    return _each_field(f"!has(field.name) || {cel}")


_DISTINCT_FIELDS = Rule(
    _named("self.fields.exists_one(other, has(other.name) && other.name == field.name)"),
    "expected each name once",
    path=".fields",
    validator="distinct_fields",
)
_ITEM_PROMPT_RULES = (
    _DISTINCT_FIELDS,
    Rule(
        f"!has(self.fields) || !has(self.maxTokens) || {_most_tokens('self.fields')} <= self.maxTokens",
        "expected at least what its fields may take: their maxTokens, and 1 for each field, 2 for a percentile",
        path=".maxTokens",
        validator="fields_fit",
    ),
)

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
    PromptField: (
        Rule(
            '!has(self.rendering) || self.rendering != "percentile" || !has(self.maxTokens)',
            "expected none with rendering percentile: it is always one token",
            path=".maxTokens",
            reason="FieldValueForbidden",
            validator="percentile_has_no_budget",
        ),
    ),
    PromptHistory: (
        _DISTINCT_FIELDS,
        Rule(
            _named(f"!(field.name in {json.dumps(ITEM_DERIVED)})"),
            f"expected columns that do not change with time: none of {', '.join(ITEM_DERIVED)}",
            path=".fields",
            validator="fixed_columns",
        ),
        Rule(
            _each_field(f"{_IS_PERCENTILE} || has(field.maxTokens)"),
            "expected maxTokens of every text and category: one long past item would push out all others",
            path=".fields",
            reason="FieldValueRequired",
            validator="bounded_fields",
        ),
    ),
    ItemPrompt: _ITEM_PROMPT_RULES,
    MemberPrompt: (
        *_ITEM_PROMPT_RULES,
        Rule(
            _named('field.name != "history"'),
            "expected past items in history beside fields",
            path=".fields",
            validator="history_is_no_field",
        ),
        Rule(
            "!has(self.history) || !has(self.history.fields) || !has(self.fields) || !has(self.maxTokens) || "
            f"{_most_tokens('self.fields')} + {_most_tokens('self.history.fields')} <= self.maxTokens",
            "expected room for the fields and one past item, or a history might never be shown",
            path=".maxTokens",
            validator="history_fits",
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

# By the `format` of a type in types.py. What the API server cannot tell (calendar.py says what), the operator tells in
# a condition.
FORMAT_RULES: dict[str, tuple[Rule, ...]] = {
    "uri": (
        Rule(
            f"!self.matches('{CREDENTIALS_PATTERN}')",
            "found credentials in the URI; leave them out and name their Secret in storage.secretRef",
        ),
    ),
    "cron": (
        Rule(
            calendar.IS_CRON,
            'is not a cron expression; expected five fields such as "0 3 * * *": minute 0-59, hour 0-23, day 1-31, '
            "month 1-12 or JAN-DEC, weekday 0-7 or SUN-SAT",
        ),
        Rule(calendar.RANGES_ASCEND, "is not a cron expression; expected ranges whose first value is the smaller one"),
        Rule(calendar.SOME_DAY_MATCHES, "is not a cron expression; expected a day that one of the months has"),
    ),
    "time-zone": (Rule(calendar.IS_TIME_ZONE, "is no time zone; expected an IANA name such as Europe/Berlin, or UTC"),),
}

ROOT_RULES = (
    Rule(
        "self.metadata.name.size() <= 32 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name: expected a lower-case letter, then letters, digits and -, at most 32 characters: "
        "names of children are made from it",
    ),
)
