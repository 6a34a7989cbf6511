"""Every namespace that a story makes, and removes at its end."""

from __future__ import annotations

from collections.abc import Iterable

OPERATOR, MLFLOW, FEED = "retrieval-operator", "mlflow", "feed"
# Each with a claim and data like those of `feed`: story 7 deletes one, story 6 kills the operator at work in one ...
DOOMED, KILLED, UNINSTALLED = "deletion", "killed", "uninstalled"
# ... and those of `full`.
INTERRUPTED, IMPORTED, EAST, WEST = "interrupted", "imported", "east", "west"
PLACES = frozenset({DOOMED, KILLED, UNINSTALLED, INTERRUPTED, IMPORTED, EAST, WEST})
ALL = PLACES | {OPERATOR, MLFLOW, FEED}
ENFORCED = "pod-security.kubernetes.io/enforce"


def taken(existing: Iterable[str]) -> str:
    """Which of them are there already, in a sentence; "" when none is. Stories overwrite and remove what they find."""
    found = sorted(ALL & set(existing))
    if not found:
        return ""
    return (
        f"the named cluster has {', '.join(found)}, which the stories would overwrite and delete: delete these "
        "namespaces yourself if nobody needs them, or name another cluster"
    )
