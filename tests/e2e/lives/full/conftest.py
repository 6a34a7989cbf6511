"""What `make e2e-full` tells besides: faults, and lives beside each other. Most begin with an import: no training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lives.full.refreshes import Refreshes
from lives.namespaces import EAST, IMPORTED, WEST
from lives.place import Place, importing


@pytest.fixture(scope="session")
def begun(new_import: Callable[[str], Place]) -> dict[str, Place]:
    """Three namespaces with an object `feed` each, on their way side by side: two cores have room for them."""
    places = {name: new_import(name) for name in (IMPORTED, EAST, WEST)}
    for name, place in places.items():
        # Room for what is looked at after a switch, and no more: each refresh waits until the stack before is gone.
        settings = {"serving": {"connectionAgeSeconds": 20}, "rollback": {"windowSeconds": 30}}
        place.apply(importing(**settings if name == IMPORTED else {}))
    return places


@pytest.fixture(scope="session")
def imported(begun: dict[str, Place]) -> Place:
    """A namespace whose object `feed` has the imported bundle as its champion. Several stories change it in turn."""
    begun[IMPORTED].until_promoted("feed")
    return begun[IMPORTED]


@pytest.fixture(scope="session")
def twins(begun: dict[str, Place]) -> tuple[Place, Place]:
    """Two of the same manifest, created before either was promoted."""
    for name in (EAST, WEST):
        begun[name].until_promoted("feed")
    return begun[EAST], begun[WEST]


@pytest.fixture
def refreshes(imported: Place) -> Refreshes:
    return Refreshes(imported)
