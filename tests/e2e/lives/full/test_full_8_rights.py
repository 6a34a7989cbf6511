"""Told last of all: what goes wrong in clusters asks for rights that an undisturbed life does not need."""

from __future__ import annotations

from pathlib import Path

import audit
import pytest
from lives.deployments import ACCOUNT
from lives.namespaces import OPERATOR

pytestmark = [pytest.mark.e2e, pytest.mark.e2e_full, pytest.mark.timeout(600)]


def test_every_right_was_used_by_some_story_and_none_was_missed(operator: float, audit_log: Path) -> None:
    """Since the first installation of this run: of all its stories, so it fails for some of them alone."""
    requests = [request for request in audit.read(audit_log) if request.asked_at >= operator]
    used = audit.compare(requests, ACCOUNT, OPERATOR, excused=audit.EXCUSED_IN_FULL)
    assert used.problems() == [], f"all but what audit.EXCUSED_IN_FULL explains ({len(audit.EXCUSED_IN_FULL)} rights)"
