"""From pydantic's JSON schema to the structural schema of a CustomResourceDefinition.

Structural: every value has one type, no $ref, no anyOf, no `additionalProperties: false` (unknown fields are pruned, or
refused by `fieldValidation: Strict`). There are no defaults: an object is stored as it was written, and hashes are over
what was set. https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from retrieval_operator.api.crd.rules import FORMAT_RULES, MODEL_RULES, Rule
from retrieval_operator.api.types import DECIMAL_PATTERN

Schema = dict[str, Any]

_COPIED = (  # in the order in which people read them
    *("type", "description", "enum", "format", "pattern", "minLength", "maxLength"),
    *("minimum", "maximum", "minItems", "maxItems", "maxProperties"),
)
_RULES = "x-kubernetes-validations"
_RULES_BY_NAME = {model.__name__: rules for model, rules in MODEL_RULES.items()}  # JSON schema knows models by name
_COMPARISONS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_DECIMAL_MAX_LENGTH = 20  # the longest text of DECIMAL_PATTERN: a sign, six digits, the point, twelve digits
_OPEN_WORD_MAX_LENGTH = 64  # the longest word of a closed set today has 24
_INT32_MAX = 2**31 - 1

# How server-side apply merges lists, by model and field. Others are replaced as a whole.
LIST_MERGES: Mapping[tuple[str, str], Schema] = {
    ("Pod", "env"): {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    ("Pod", "volumes"): {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    ("Pod", "imagePullSecrets"): {"x-kubernetes-list-type": "set"},
    ("Rollback", "checks"): {"x-kubernetes-list-type": "set"},
    ("RetrievalModelStatus", "conditions"): {
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    },
}


def structural_schema(model: type[BaseModel], *, closed_words: bool = True) -> Schema:
    """The structural schema of a model, its rules included.

    closed_words=False leaves enums out (for a status): a definition that was not upgraded with the operator must not
    refuse what the operator writes. Raises ValueError for what a structural schema cannot say, and for an integer or
    a map without bounds.
    """
    document = model.model_json_schema()
    return _Conversion(document.get("$defs", {}), closed_words).model(document)


@dataclass(frozen=True)
class _Conversion:
    definitions: Mapping[str, Any]
    closed_words: bool

    def model(self, node: Mapping[str, Any]) -> Schema:
        """An object with named fields."""
        properties = {name: self._field(node["title"], name, inner) for name, inner in node["properties"].items()}
        converted: Schema = {"type": "object", "description": _one_line(node["description"])}
        if "required" in node:
            converted["required"] = node["required"]
        converted["properties"] = properties
        return _with_rules(converted, _RULES_BY_NAME.get(node["title"], ()))

    def _field(self, model: str, name: str, node: Mapping[str, Any]) -> Schema:
        converted = self._value(node)
        described = "description" in _without_null(node)
        if not described and converted["type"] == "object":  # the type says what the field is
            converted["description"] = f"{name}: {converted['description']}"
        return converted | LIST_MERGES.get((model, name), {})

    def _value(self, node: Mapping[str, Any]) -> Schema:
        node = _without_null(node)
        if "$ref" in node:
            definition = self.definitions[node["$ref"].rpartition("/")[2]]
            converted = self.model(definition) if "properties" in definition else self._value(definition)
            return converted | ({"description": node["description"]} if "description" in node else {})
        if "anyOf" in node:
            return _decimal(node)
        return self._of_type(node)

    def _of_type(self, node: Mapping[str, Any]) -> Schema:
        converted = {key: node[key] for key in _COPIED if key in node}
        match node.get("type"):
            case "object" if node["additionalProperties"] is True or "propertyNames" in node:
                return self._map(converted, node)
            case "array":
                return converted | {"items": self._value(node["items"]), "x-kubernetes-list-type": "atomic"}
            case "string":
                return self._string(converted, node)
            case "integer" if "maximum" in node:
                return converted | {"format": "int32" if node["maximum"] <= _INT32_MAX else "int64"}
            case "boolean" | "number":
                return converted
        raise ValueError(f"no structural schema for {dict(node)}: no type, or no bounds")

    def _map(self, converted: Schema, node: Mapping[str, Any]) -> Schema:
        if node["additionalProperties"] is True:  # a document of its own, checked where it is used
            return converted | {"x-kubernetes-preserve-unknown-fields": True}
        longest = node["propertyNames"]["maxLength"]
        key_rule = Rule(f"self.all(key, key.size() <= {longest})", f"expected keys of at most {longest} characters")
        return _with_rules(converted | {"additionalProperties": self._value(node["additionalProperties"])}, (key_rule,))

    def _string(self, converted: Schema, node: Mapping[str, Any]) -> Schema:
        if "const" in node:
            converted["enum"] = [node["const"]]
        if "enum" in converted and not self.closed_words:
            del converted["enum"]
            converted["maxLength"] = _OPEN_WORD_MAX_LENGTH
        rules = FORMAT_RULES.get(node.get("format", ""))
        if rules is None:
            return converted
        del converted["format"]  # ours, not one that Kubernetes knows
        return _with_rules(converted, rules)


def _decimal(node: Mapping[str, Any]) -> Schema:
    """types.DecimalString: pydantic says "number or string", with the bounds beside it."""
    if {branch.get("type") for branch in node["anyOf"]} != {"number", "string"}:
        raise ValueError(f"no structural schema for a union: {node}")
    bounds = [(sign, node[key]) for key, sign in _COMPARISONS.items() if key in node]
    shape = f"self.matches(r'{DECIMAL_PATTERN}')"
    cel = " && ".join([shape, *(f"double(self) {sign} {float(bound)!r}" for sign, bound in bounds)])
    words = " and ".join(f"{sign} {bound}" for sign, bound in bounds)
    converted = {"type": "string", "maxLength": _DECIMAL_MAX_LENGTH, "pattern": DECIMAL_PATTERN}
    described = {"description": node["description"]} if "description" in node else {}
    return _with_rules(converted | described, (Rule(cel, f'expected a decimal such as "0.02", {words}'),))


def _without_null(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """`T | None` is T that may be left out; the field's own description stays with it."""
    branches = [branch for branch in node.get("anyOf", []) if branch.get("type") != "null"]
    if len(branches) != 1:
        return node
    return {**branches[0], **({"description": node["description"]} if "description" in node else {})}


def _with_rules(converted: Schema, rules: tuple[Rule, ...]) -> Schema:
    return converted | ({_RULES: [rule.document() for rule in rules]} if rules else {})


def _one_line(text: str) -> str:
    """The first paragraph of a docstring."""
    return " ".join(text.partition("\n\n")[0].split())
