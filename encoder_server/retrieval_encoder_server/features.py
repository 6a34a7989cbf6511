"""What a caller's features must be, by the bundle's prompts: known fields, right types, a history of bounded length.

The renderer treats a missing field as unknown and would treat a misspelt one the same way; here it is refused, because
a prompt that silently lacks a field gives a worse vector and no error anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from retrieval_core.prompts.spec import HistorySpec, PromptField, PromptSpec, Rendering
from retrieval_encoder_server.refusals import Malformed
from retrieval_encoder_server.schemas import FeaturesInput

HISTORY = "history"
# A list<string> column holds tags; far more than any prompt has room for.
MAX_LIST_LENGTH = 1000

FieldRenderings = Mapping[str, Rendering]


class FeatureChecks:
    """Checks features against one PromptSpec; built once."""

    def __init__(self, prompts: PromptSpec) -> None:
        self._history: HistorySpec | None = prompts.member.history
        self._fields: dict[str, FieldRenderings] = {
            "member": _renderings(prompts.member.fields),
            "item": _renderings(prompts.item.fields),
        }
        # An entry of a history is an item; what only the item's own prompt shows is allowed there and not rendered.
        shown = self._history.fields if self._history else ()
        self._history_fields = {**self._fields["item"], **_renderings(shown)}

    def check(self, given: FeaturesInput) -> None:
        """Raise Malformed, naming the path of the first field that is not right."""
        features = dict(given.features)
        if given.side == "member" and features.get(HISTORY) is not None:
            self._check_history(features[HISTORY], f"{given.path}.{HISTORY}")
        if given.side == "member":
            features.pop(HISTORY, None)
        _check_fields(features, self._fields[given.side], given.path)

    def _check_history(self, history: Any, path: str) -> None:
        limit = self._history.max_items if self._history else 0
        if not isinstance(history, list):
            raise Malformed(f"{path}: found {_describe(history)}, expected a list of items, oldest first")
        if len(history) > limit:
            raise Malformed(f"{path}: found {len(history)} items, this bundle takes at most {limit}; send the newest")
        for index, item in enumerate(history):
            if not isinstance(item, dict):
                raise Malformed(f"{path}[{index}]: found {_describe(item)}, expected an object of item features")
            _check_fields(item, self._history_fields, f"{path}[{index}]")


def _renderings(fields: Iterable[PromptField]) -> FieldRenderings:
    return {field.name: field.rendering for field in fields}


def _check_fields(features: Mapping[str, Any], known: FieldRenderings, path: str) -> None:
    for name, value in features.items():
        if name not in known:
            raise Malformed(f"{path}.{name:.80}: unknown field; this bundle's prompt has {', '.join(sorted(known))}")
        if value is not None:
            _check_value(value, known[name], f"{path}.{name}")


def _check_value(value: Any, rendering: Rendering, path: str) -> None:
    if rendering == "percentile":
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Malformed(f"{path}: found {_describe(value)}, expected a finite number or null")
        return
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise Malformed(f"{path}: found {_describe(value)}, expected a string, a list of strings, a number or null")
    if len(value) > MAX_LIST_LENGTH:
        raise Malformed(f"{path}: found {len(value)} strings, expected at most {MAX_LIST_LENGTH}")


def _describe(value: Any) -> str:
    """The JSON type of a value, and the value itself only where it is short by nature: a text may be private."""
    match value:
        case bool() | None:
            return "null" if value is None else str(value).lower()
        case int() | float():
            return f"the number {value!r:.40}"
        case str():
            return "a string"
        case list():
            return "a list"
    return "an object"
