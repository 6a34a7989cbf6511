"""Fixtures every test may use."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from native_cluster.binaries import ready_programs
from native_cluster.layout import NotRun

GOLDEN = Path(__file__).parent / "golden"
Helm = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare text with `tests/golden/<name>`; `pytest --update-golden` rewrites the file."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return
        assert path.exists(), f"{path} does not exist; run pytest --update-golden and review it"
        assert text == path.read_text(), f"differs from {path}; if that is intended, run pytest --update-golden"

    return compare


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Runs helm: that of the cluster for tests, else that of the PATH. Keywords are subprocess.run's."""
    try:
        program: str | None = str(ready_programs("helm") / "helm")
    except NotRun as reason:
        program = shutil.which("helm")
        if program is None:
            pytest.skip(f"not run: there is no helm on the PATH, and {reason}")

    def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
        command = [program, *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, **{"timeout": 60, **settings})  # type: ignore[call-overload, no-any-return]

    return run
