"""One moment, one stack and one workload, for tests that only pass them through the controller."""

from __future__ import annotations

from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep

NOW = 1_700_000_000
RECORD = StackRecord(
    stack="s-1",
    bundle_id="b-1",
    bundle_uri="/b",
    generation_id="g-1",
    generation_uri="/g",
    generation_key="k-1",
    serving_hash="h",
    revision="r-1",
)
WORKLOAD = WorkloadSpec(
    name="feed-1-train-1", step=WorkloadStep.TRAIN, key="1", attempt=1, program="retrieval-train", arguments=()
)
