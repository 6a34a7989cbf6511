"""A simulated world with files: what a decision about them must keep is seen to be there."""

from __future__ import annotations

from dataclasses import dataclass, field

from retrieval_operator.api.constants import ExitCode
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.history import promoted_records
from retrieval_operator.domain.simulate import Outcome, World
from retrieval_operator.domain.simulated_reports import passing_report
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep

ROOT = "/store/default/feed"


@dataclass
class Disk(World):
    """A world with files: programs make directories, need what they read, and removals take directories away."""

    files: set[str] = field(default_factory=set)
    removed: list[str] = field(default_factory=list)
    removal: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self.outcomes = self.run

    def run(self, work: WorkloadSpec) -> Outcome:
        """What a program does here, as long as a test says nothing else."""
        if work.step is WorkloadStep.COLLECT:
            if not self.removal.exit_code:
                self._remove(work.arguments)
            return self.removal
        words = [word for word in work.arguments if word.startswith(ROOT)]
        out = work.arguments[work.arguments.index("--out") + 1]
        missing = [word for word in words if word != out and _is_made(word) and word not in self.files]
        if missing:
            return Outcome(exit_code=ExitCode.BAD_INPUT, message=f"{missing} does not exist")
        self.files.add(out)
        return Outcome(report=passing_report(work))

    def _remove(self, arguments: tuple[str, ...]) -> None:
        gone = {path for path in self.files for name in arguments[2:] if path.startswith(f"{ROOT}/{name}")}
        gone |= self.files if "--all" in arguments else set()
        self.removed += sorted(gone)
        self.files -= gone


def _is_made(word: str) -> bool:
    return word.startswith((f"{ROOT}/revisions/", f"{ROOT}/indexes/")) and not word.endswith("/checkpoints")


def needed(model: RetrievalModel, world: Disk) -> set[str]:
    """What the champion, whatever runs, and every stack that a rollback may name refer to."""
    records = [*promoted_records(model.status.history), *[stack.record for stack in world.stacks.values()]]
    records += [world.traffic.live] if world.traffic.live else []
    return {uri for record in records for uri in (record.bundle_uri, record.generation_uri)}
