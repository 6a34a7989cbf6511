"""The command line of an index build says what the manifest says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain import commands
from retrieval_operator.domain.workloads import WorkloadStep


def index_arguments(model: RetrievalModel, step: WorkloadStep = WorkloadStep.INDEX_SERVING) -> str:
    workload = commands.index(model, step, key="k", bundle_id="b-1", bundle="/b", data_uri="/data")
    return " ".join(workload.arguments)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"spec.index.latencyTargetMs": 5}, "--latency-target-ms 5"),
        ({"spec.index.members": True}, "--members"),
        ({"spec.index.servedK": 100}, "--served-k 100"),
        ({"spec.index.factory": "IVF64,Flat"}, "--factory IVF64,Flat"),
        ({"spec.index.encodeShards": 4}, "--shards 4"),
        ({"spec.model.servedDimension": 64}, "--served-dimension 64"),
    ],
    ids=str,
)
def test_a_setting_of_the_index_reaches_the_program(
    make: Callable[..., RetrievalModel], changes: dict[str, Any], expected: str
) -> None:
    assert expected in index_arguments(make(changes))
    assert expected not in index_arguments(make())


def test_an_evaluation_asks_no_index_so_its_generation_has_neither_members_nor_a_latency_target(
    make: Callable[..., RetrievalModel],
) -> None:
    model = make({"spec.index": {"members": True, "latencyTargetMs": 5}})
    for step in (WorkloadStep.INDEX_EVALUATION, WorkloadStep.INDEX_CHAMPION):
        assert index_arguments(model, step) == index_arguments(make(), step)
