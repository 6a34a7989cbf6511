"""How long the API server of `make e2e-api` and of the benchmark is waited for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lone_api_server import _answers


@pytest.mark.parametrize("write", [lambda _: None, Path.touch], ids=["not there", "still empty"])
def test_a_server_whose_certificate_is_not_written_yet_does_not_answer(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    """It makes the file, and fills it a moment later."""
    authority = tmp_path / "apiserver.crt"
    write(authority)
    assert not _answers("https://127.0.0.1:9/readyz", authority)
