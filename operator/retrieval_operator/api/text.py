"""Other people's words: of programs, of the cluster, of MLflow, of whoever wrote a manifest."""

from __future__ import annotations

import re

# C0 and C1 without tab and line feed, delete, and what changes the direction of reading (Unicode TR 9, TR 36).
_ACTS_ON_TERMINALS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text without what a terminal acts on: nobody's message rewrites the lines of others, or sets a clipboard."""
    return _ACTS_ON_TERMINALS.sub("", text)
