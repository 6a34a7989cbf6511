"""MLflow's limits. What is longer is cut, never refused: these texts are for people, and no step may fail over them."""

from __future__ import annotations

# The narrowest columns of MLflow's schema (store/model_registry/dbmodels/models.py: tag value and description of a
# version; a run's tag may have 8000). SQLite does not enforce them, PostgreSQL answers with an error for ever.
TAG_VALUE_MAX_CHARS = 5000
DESCRIPTION_MAX_CHARS = 5000


def cut_tag(value: str) -> str:
    return value if len(value) <= TAG_VALUE_MAX_CHARS else value[: TAG_VALUE_MAX_CHARS - 1] + "…"


def cut_description(text: str) -> str:
    """Cut at the end of a line, so that a Markdown table stays one."""
    if len(text) <= DESCRIPTION_MAX_CHARS:
        return text
    whole_lines, newline, rest = text[: DESCRIPTION_MAX_CHARS - 3].rpartition("\n")
    return f"{whole_lines}\n\n…" if newline else f"{rest}…"
