"""What a workload is, as data: which program with which arguments. How it runs is the adapters' business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class WorkloadStep(StrEnum):
    """The short word in a workload's name: <object>-<hash8>-<step>-<attempt>.

    ENCODE goes before an index build with several shards, under the same key. It reports to no run of its own.
    """

    TRAIN = "train"
    ENCODE = "encode"
    INDEX_EVALUATION = "idxeval"
    INDEX_CHAMPION = "idxchamp"
    EVALUATE = "eval"
    INDEX_SERVING = "index"
    VERIFY = "verify"
    COLLECT = "collect"


_INDEX_STEPS = frozenset({WorkloadStep.INDEX_EVALUATION, WorkloadStep.INDEX_CHAMPION, WorkloadStep.INDEX_SERVING})


def piece(step: str, key: str) -> str:
    """A piece of work as a candidate's `attempts` name it."""
    return f"{step}-{key}"


@dataclass(frozen=True, kw_only=True)
class WorkloadSpec:
    """One attempt at one piece of work.

    `key` names what is computed (a hash of its inputs): another attempt has the same key. `run_id` is the MLflow run
    the program reports to, "" when it does not report. `processes` > 1 asks for torchrun on one node. `shards` > 1: the
    program does that many parts one after the other, or the one that JOB_COMPLETION_INDEX names. `deadline_s` bounds
    the attempt, in seconds.
    """

    name: str
    step: WorkloadStep
    key: str
    attempt: int
    program: str
    arguments: tuple[str, ...]
    run_id: str = ""
    nodes: int = 1
    processes: int = 1
    shards: int = 1
    deadline_s: int = 86_400
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def piece(self) -> str:
        """The piece of work, by which attempts at it are counted."""
        return piece(self.step, self.key)


@dataclass(frozen=True, kw_only=True)
class WorkloadObserved:
    """An attempt that exists. Times are seconds since the epoch; `exit_code` is None while running or when lost.

    `message` is what the program said when it failed (its termination message), for people. `image` is what its pods
    run, by digest; "" while that is not known, and on one machine. `overdue`: it goes on though its deadline is long
    over, and nothing but `stop` ends it.
    """

    name: str
    step: WorkloadStep
    key: str
    attempt: int
    state: Literal["Running", "Succeeded", "Failed"]
    exit_code: int | None = None
    reason: str = ""
    message: str = ""
    started_at: int = 0
    finished_at: int = 0
    image: str = ""
    overdue: bool = False

    @property
    def piece(self) -> str:
        """The piece of work, by which attempts at it are counted."""
        return piece(self.step, self.key)

    def is_part_of(self, step: str, key: str) -> bool:
        """Whether it is an attempt at the work of the run of this step and key, or at encoding for that work."""
        return self.key == key and (self.step == step or (self.step is WorkloadStep.ENCODE and step in _INDEX_STEPS))
