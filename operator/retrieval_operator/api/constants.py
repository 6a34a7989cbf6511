"""Names and numbers that more than one side relies on."""

from __future__ import annotations

from enum import IntEnum

GROUP = "retrieval-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "RetrievalModel"

# Annotations a person (or the CLI) sets on the object to ask for something once. Each value names what it is about,
# so that one left behind does nothing later.
APPROVE_ANNOTATION = f"{GROUP}/approve"  # status.candidate.approvalToken
REJECT_ANNOTATION = f"{GROUP}/reject"  # status.candidate.approvalToken
ROLLBACK_ANNOTATION = f"{GROUP}/rollback"  # <status.champion.token>:<stack to return to>
RETRY_ANNOTATION = f"{GROUP}/retry"  # any new text: the failed candidate gets fresh attempts
RETRAIN_ANNOTATION = f"{GROUP}/retrain"  # a counter: part of the revision, so each new value is one new training

# On every child of an object in a cluster. What is too long or too odd for a label value is an annotation.
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "retrieval-operator"
LABEL_NAME = f"{GROUP}/name"  # of the object
LABEL_STEP = f"{GROUP}/step"
LABEL_KEY = f"{GROUP}/key"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_STACK = f"{GROUP}/stack"

# Only under deletionPolicy Delete; taken off when the files are removed, or when the policy is Retain again.
FINALIZER = f"{GROUP}/delete-artifacts"

# Tags on MLflow runs and model versions. People read them; `approved_by` and `rejected_by` are theirs to set.
TAG_OWNER = "owner"
TAG_STEP = "retrieval.step"
TAG_KEY = "retrieval.key"
TAG_REPORT = "retrieval.report"
TAG_VERDICT = "retrieval.verdict"
TAG_RETRY = "retrieval.retry"
TAG_AWAITING = "retrieval.awaiting_approval"
TAG_STACK = "retrieval.stack"
TAG_SLOT = "retrieval.slot"
TAG_PROMOTED_AT = "retrieval.promoted_at"  # seconds since the epoch: what is kept, should the status be wiped
TAG_COLLECTED = "retrieval.collected"  # the workload that removed this run's files; "" once they are made again
TAG_IMAGE = "retrieval.image"  # what ran, by digest
TAG_SERVER_IMAGE = "retrieval.server_image"  # of the servers that a verification asked
TAG_STORAGE = "retrieval.storage"  # where the files lie that the report is about
TAG_REVISION = "revision"
TAG_BUNDLE_ID = "bundle_id"
TAG_BUNDLE_URI = "bundle_uri"
TAG_APPROVED_BY = "approved_by"
TAG_REJECTED_BY = "rejected_by"
ALIAS_CANDIDATE = "candidate"
ALIAS_CHAMPION = "champion"

MESSAGE_MAX_CHARS = 1024
HISTORY_MAX_ENTRIES = 14
# Stacks gone back from since the last promotion that are remembered, so that nothing of them begins again by itself.
LEFT_STACKS_MAX = 3
# With the champion's own promotion, the newest that gates have judged, the stacks gone back from, the way back that
# failed, and the newest entry of all: 14 entries.
REVISION_HISTORY_MAX = 7
REQUEST_MAX_CHARS = 256  # of an annotation above; the longest we write, a rollback, has about 60
MAX_GENERATION = 2**53 - 1  # the largest integer that every JSON reader keeps exact


class ExitCode(IntEnum):
    """Exit codes of the workloads (docs/contracts.md section 2; a contract test compares the other side's)."""

    OK = 0
    BAD_ARGUMENTS = 2
    BAD_INPUT = 65
    DIVERGED = 69
    STORAGE_FAILED = 74
    TEMPORARILY_UNAVAILABLE = 75

    @property
    def reason(self) -> str:
        """The word for it in a termination message: `BadInput` for BAD_INPUT."""
        return "".join(word.capitalize() for word in self.name.split("_"))


# A second attempt with the same input would fail in the same way.
FINAL_EXIT_CODES = frozenset({ExitCode.BAD_ARGUMENTS, ExitCode.BAD_INPUT, ExitCode.DIVERGED})
