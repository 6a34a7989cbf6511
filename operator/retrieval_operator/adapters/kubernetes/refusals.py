"""What events say of pods that are not made, or not started: a controller's or kubelet's words, and whose business they
are. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from retrieval_operator.adapters.kubernetes.kinds import PYTORCH_JOB, Object
from retrieval_operator.api.constants import MESSAGE_MAX_CHARS
from retrieval_operator.domain.observed import Problem

# Reasons of Warning events that say why pods are not made, or not started.
_REASONS = ("FailedCreate", "FailedMount", "FailedAttachVolume")
_POD_SECURITY = (
    "; the training-operator gives workers an init container without securityContext: start it with "
    "--pytorch-init-container-template-file and a template that has one, or set training.nodes: 1"
)
_QUOTA = "; free some of it, raise it, or ask for less in the section's resources"
_ONE_NODE = (
    "; a ReadWriteOnce claim is for one node at a time: name one that is ReadWriteMany, or keep all pods on one node "
    "with pod.nodeSelector"
)


def refusals(events: Iterable[Object], stuck: Mapping[str, Object]) -> list[Problem]:
    """One problem for each object that waits. `stuck` are those objects by the UID that events about them may name."""
    said: dict[str, Problem] = {}
    for event in events:
        waiting = stuck.get(event.get("involvedObject", {}).get("uid", ""))
        if waiting is not None and str(event.get("reason", "")).startswith(_REASONS):
            said[waiting["metadata"]["name"]] = _refusal(waiting, event["reason"], str(event.get("message", "")))
    return list(said.values())


def _refusal(waiting: Object, reason: str, message: str) -> Problem:
    dependency = _dependency(reason, message)
    remedy = _remedy(waiting, dependency, message)
    sentence = f"{waiting['metadata']['name']} does not start: {' '.join(message.split())}"
    return Problem(
        dependency=dependency, message=sentence[: MESSAGE_MAX_CHARS - len(remedy)] + remedy, holds_back=False
    )


def _dependency(reason: str, message: str) -> Literal["podSecurity", "quota", "secret", "storage", "program"]:
    if "PodSecurity" in message:
        return "podSecurity"
    if "quota" in message or "LimitRange" in message:
        return "quota"
    if reason.startswith("FailedCreate"):
        return "program"  # such as a service account that does not exist
    return "secret" if 'secret "' in message else "storage"


def _remedy(waiting: Object, dependency: str, message: str) -> str:
    if dependency == "podSecurity" and waiting["kind"] == PYTORCH_JOB.kind:
        return _POD_SECURITY
    if dependency == "quota":
        return _QUOTA
    return _ONE_NODE if "Multi-Attach error" in message else ""
