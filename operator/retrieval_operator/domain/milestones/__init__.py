"""What a candidate must have behind it, in order. Each milestone returns Passed, Waiting or Ended.

Reading order is priority: the first milestone that is not passed says what happens next. Nothing is remembered that can
be seen: each pass walks all milestones again from the observed world.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from retrieval_operator.api.status import Candidate, CandidateKind
from retrieval_operator.domain.context import Context, Progress
from retrieval_operator.domain.milestones.learning import registered, trained
from retrieval_operator.domain.milestones.measuring import champion_indexed, evaluated, evaluation_indexed, gates_passed
from retrieval_operator.domain.milestones.rollout import approved, deployed, promoted, serving_indexed, verified

Milestone = Callable[[Context, Candidate], Progress]

MILESTONES: Mapping[CandidateKind, tuple[Milestone, ...]] = {
    CandidateKind.REVISION: (
        trained,
        registered,
        evaluation_indexed,
        champion_indexed,
        evaluated,
        gates_passed,
        serving_indexed,
        deployed,
        verified,
        approved,
        promoted,
    ),
    CandidateKind.REFRESH: (serving_indexed, deployed, verified, promoted),
    CandidateKind.SERVING: (deployed, verified, promoted),
    CandidateKind.ROLLBACK: (deployed, promoted),
}
