"""Whether a finished output is of the settings that are asked for now: an old answer is never shown as a new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(asked: Mapping[str, Any], found: Mapping[str, Any], path: str = "") -> list[str]:
    """What `found` has otherwise, a phrase for each, such as `k [10] (asked for [100])`; empty when nothing.

    What it does not tell does not count: an older version may have written it. Values are those of JSON documents;
    mappings are compared name by name.
    """
    phrases = []
    for name, value in asked.items():
        recorded = found.get(name, value)
        if isinstance(value, Mapping) and isinstance(recorded, Mapping):
            phrases += differences(value, recorded, f"{path}{name}.")
        elif recorded != value:
            phrases.append(f"{path}{name} {recorded!r} (asked for {value!r})")
    return phrases
