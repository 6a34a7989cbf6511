"""How long each story took, by the reports of its tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

_STORIES = Path("tests/e2e/lives")


def story_durations(reports: Iterable[pytest.TestReport]) -> list[str]:
    """A line for each story, as they are told, and one for all; none when no story was told.

    A story is a file. Its setups and teardowns count; what several stories share is set up for the first of them.
    """
    spent: dict[Path, float] = defaultdict(float)
    for report in reports:
        path = Path(report.location[0])
        if path.is_relative_to(_STORIES):
            spent[path] += report.duration
    if not spent:
        return []
    told = sorted(spent, key=lambda path: (path.parent, path.name))
    lines = {_title(path): spent[path] for path in told} | {"all": sum(spent.values())}
    width = max(map(len, lines))
    return [f"{title:<{width}} {seconds:6.0f} s" for title, seconds in lines.items()]


def _title(path: Path) -> str:
    return path.stem.removeprefix("test_").replace("_", " ")
