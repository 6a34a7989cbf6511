"""What `make e2e-full` tells besides: faults, and lives beside each other. Most begin with an import: no training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lives.full.refreshes import Refreshes
from lives.place import Place, importing


@pytest.fixture(scope="session")
def imported(new_import: Callable[[str], Place]) -> Place:
    """A namespace whose object `feed` has the imported bundle as its champion. Several stories change it in turn."""
    place = new_import("imported")
    place.apply(importing(serving={"connectionAgeSeconds": 20}))
    place.until_promoted("feed")
    return place


@pytest.fixture
def refreshes(imported: Place) -> Refreshes:
    return Refreshes(imported)
