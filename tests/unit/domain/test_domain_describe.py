"""The text on a model version's page."""

from __future__ import annotations

from retrieval_operator.api.status import GateVerdict
from retrieval_operator.domain.describe import version_description


def test_a_segment_with_a_bar_stays_in_its_cell() -> None:
    gate = GateVerdict(gate="recall@10 (matched, category:a=b|c)", verdict="Passed", message="reaches min", value=0.5)
    [row] = [line for line in version_description([gate], "Promoted", "").splitlines() if "Passed" in line]
    assert row.startswith(r"| recall@10 (matched, category:a=b\|c) | Passed |")
    assert row.replace(r"\|", "").count("|") == 8


def test_what_a_gate_says_of_the_member_is_on_the_page() -> None:
    message = "0.4000 reaches min 0.20; not shown to be personal: +0.0000 (-0.0100 to +0.0100) against ..."
    gate = GateVerdict(gate="recall@10 (matched, all)", verdict="Passed", message=message, value=0.4)
    assert f"- recall@10 (matched, all): {message}" in version_description([gate], "Promoted", "")
