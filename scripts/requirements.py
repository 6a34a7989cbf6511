"""Print what the given extras need from outside this project, one requirement per line, for pip's -r.

    python3 scripts/requirements.py trainer

An image installs these in a layer of their own, which a change of the code leaves as it is. Standard library only.
"""

from __future__ import annotations

import re
import sys

from environment import ROOT, dependency_lists

_OWN = re.compile(r"retrieval-operator\[([a-z,-]+)\]")


def requirements(extras: list[str]) -> list[str]:
    """The base dependencies and those of the extras, references between extras followed. Raises KeyError."""
    lists = dependency_lists()
    assert isinstance(lists["extras"], dict) and isinstance(lists["base"], list)
    found: set[str] = set(lists["base"])
    waiting = list(extras)
    for extra in waiting:  # grows while it is read; the references have no cycle
        for entry in lists["extras"][extra]:
            own = _OWN.fullmatch(entry)
            waiting += own.group(1).split(",") if own else []
            found |= set() if own else {entry}
    return sorted(found)


def main() -> None:
    try:
        print("\n".join(requirements(sys.argv[1:])))
    except KeyError as error:
        sys.exit(f"requirements: found {error}, expected extras of {ROOT / 'pyproject.toml'}")


if __name__ == "__main__":
    main()
