"""Resolve the dependency lists of pyproject.toml anew and write requirements.lock (exact versions, for images and CI).

Takes several minutes: it installs everything into a temporary environment, because only an installation shows which
versions work together. Standard library only, like environment.py beside it.
"""

from __future__ import annotations

import subprocess
import tempfile
import venv
from pathlib import Path

from environment import LOCK, dependency_lists, third_party


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "environment"
        venv.EnvBuilder(with_pip=True).create(target)
        pip = [str(target / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--no-compile", *third_party(dependency_lists())], check=True)
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True).stdout
    LOCK.write_text(frozen)
    print(f"{LOCK}: {len(frozen.splitlines())} packages")


if __name__ == "__main__":
    main()
