"""Everything that is wrong with a dataset, collected so that a person repairs it in one round."""

from __future__ import annotations

from retrieval_core.errors import BadInput

# More would not be read; the count of the rest is still said.
SHOWN = 20


class Problems:
    """Collects sentences; `raise_if_any` turns them into one BadInput."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._sentences: list[str] = []

    def add(self, sentence: str) -> None:
        self._sentences.append(sentence)

    def __bool__(self) -> bool:
        return bool(self._sentences)

    def raise_if_any(self) -> None:
        if not self._sentences:
            return
        count = len(self._sentences)
        lines = [f"{self._source} is not a valid dataset, {count} problem{'s' if count > 1 else ''}:"]
        lines += [f"- {sentence}" for sentence in self._sentences[:SHOWN]]
        if count > SHOWN:
            lines.append(f"- and {count - SHOWN} more")
        raise BadInput("\n".join(lines))
