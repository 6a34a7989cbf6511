"""Which image and which command each workload is in a cluster, and how it reaches MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retrieval_operator.adapters.kubernetes.pods import Program
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.spec import Training
from retrieval_operator.domain.commands import section
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep
from retrieval_operator.ports import Rejected

# Which of the configured images a program is in.
_IMAGES = {
    "retrieval-train": "trainer",
    "retrieval-index": "indexer",
    "retrieval-evaluate": "indexer",
    "retrieval-data": "data",
}
_TORCHRUN = {"retrieval-train": "retrieval_trainer.cli"}  # the module that torchrun starts, for several processes
# The trainer's own default, written down: without it a lost node would hang its peers.
_COLLECTIVE_TIMEOUT_S = 900


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """How pods reach an MLflow. `secret` names a Secret in the object's namespace, "" for none.

    Its keys become variables of the pod: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD. Only the pod reads it.
    """

    tracking_uri: str
    secret: str = ""


def image(images: Mapping[str, str], name: str, chosen: str | None = None) -> str:
    """The image that the manifest chose, else the operator's own. Raises Rejected when there is neither."""
    found = chosen or images.get(name, "")
    if not found:
        raise Rejected(f"found no image of {name!r}: name it in the operator's setting RETRIEVAL_OPERATOR_IMAGES")
    return found


def program(
    model: RetrievalModel,
    workload: WorkloadSpec,
    *,
    container: str,
    images: Mapping[str, str],
    reporting: Mapping[str, Reporting],
    launcher: tuple[str, ...] = (),
) -> Program:
    """What the pods of an attempt run. `launcher` is the start of a torchrun command line, empty for none.

    Raises Rejected for a program or a registry connection that is not configured.
    """
    if workload.program not in _IMAGES:
        raise Rejected(f"found program {workload.program!r}, expected one of {', '.join(sorted(_IMAGES))}")
    part = section(model, workload.step)
    chosen = part.image if isinstance(part, Training) else None
    command = (*launcher, "--module", _TORCHRUN[workload.program]) if launcher else (workload.program,)
    environment, secret = _reporting(model, workload, reporting)
    timeout = {"RETRIEVAL_COLLECTIVE_TIMEOUT_SECONDS": str(_COLLECTIVE_TIMEOUT_S)} if launcher else {}
    return Program(
        container=container,
        image=image(images, _IMAGES[workload.program], chosen),
        command=command,
        arguments=workload.arguments,
        environment={**workload.environment, **environment},
        defaults={"RETRIEVAL_LOG_FORMAT": "json", **timeout},
        secrets=(secret,),
        processes=workload.processes if workload.step is WorkloadStep.TRAIN else 1,
    )


def _reporting(
    model: RetrievalModel, workload: WorkloadSpec, reporting: Mapping[str, Reporting]
) -> tuple[dict[str, str], str]:
    """The variables of a workload that reports, and the Secret with its credentials."""
    if not workload.run_id:
        return {}, ""
    name = model.spec.registry.connection
    if name not in reporting:
        known = ", ".join(sorted(reporting)) or "none"
        raise Rejected(f"registry.connection: found {name}, expected one that the operator is configured with: {known}")
    found = reporting[name]
    return {"MLFLOW_TRACKING_URI": found.tracking_uri, "RETRIEVAL_RUN_ID": workload.run_id}, found.secret
