"""Hashes that name revisions, generations and stacks.

Taken over explicitly set fields in a versioned document, so that a new operator version or a new default never
retrains or restarts anything: tests/golden/identity.json holds specs with their hashes and never changes.
A field added to the manifest later enters a hash only where a user set it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from retrieval_operator.api.spec import RetrievalModelSpec

FORMAT = 1
HASH_CHARS = 8  # part of child names: <name up to 32>-<hash8>-<step>-<attempt> stays under 63

# What decides the outcome of a training, by manifest path under the section.
_MODEL_FIELDS = ("base", "bundleUri", "pooling", "dimensions", "maxTokens", "prompts")
_GENERATION_FIELDS = ("engine", "factory", "servedK", "latencyTargetMs", "members")


def digest(kind: str, document: Mapping[str, Any]) -> str:
    """The first 8 hex digits of sha256 over the canonical JSON of a versioned document."""
    text = json.dumps({"format": FORMAT, "kind": kind, **document}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARS]


def _chosen(section: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: section[field] for field in fields if field in section}


def revision_hash(spec: RetrievalModelSpec, slot: str) -> str:
    """One training: base, code image, data revision, hyper-parameters, prompts, trigger slot ("" for none)."""
    training = spec.training.explicit()
    return digest(
        "revision",
        {
            "model": _chosen(spec.model.explicit(), _MODEL_FIELDS),
            "data": spec.data.revision,
            "training": _chosen(training, ("image", "hyperparameters")),
            "slot": slot,
        },
    )


def generation_key(spec: RetrievalModelSpec, bundle_id: str, revision: str, refresh_slot: str) -> str:
    """One serving index build: the bundle, the index settings, and which revision or refresh asked for it.

    One bundle may serve other data: one that is imported does, and so does a training that saw no difference, for
    what is new are items that nobody has engaged with yet. So the revision counts as well.
    """
    return digest(
        "generation",
        {
            "bundle": bundle_id,
            "revision": revision,
            "index": _chosen(spec.index.explicit(), _GENERATION_FIELDS),
            "servedDimension": spec.model.served_dimension,
            "refresh": [spec.index.refresh.revision or "", refresh_slot],
        },
    )


def evaluation_generation_key(spec: RetrievalModelSpec, bundle_id: str, data_uri: str, slot: str) -> str:
    """One evaluation index build: the bundle over the corpus as of the start of this data's test split.

    A schedule, or a person's counter, trains again under one `data.revision`, on what the URI holds by then; `slot` is
    the one that did, "" for none.
    """
    return digest(
        "evaluation-generation",
        {
            "bundle": bundle_id,
            "data": [data_uri, spec.data.revision, *([slot] if slot else [])],
            "index": _chosen(spec.index.explicit(), _GENERATION_FIELDS),
            **_chosen(spec.model.explicit(), ("servedDimension",)),
        },
    )


def evaluation_key(spec: RetrievalModelSpec, candidate_key: str, champion_key: str, retry: str) -> str:
    """One evaluation: both evaluation generations ("" for no champion), and what is measured.

    A person's retry measures anew; "" for none.
    """
    evaluation = spec.evaluation.explicit()
    return digest(
        "evaluation",
        {
            "candidate": candidate_key,
            "champion": champion_key,
            "evaluation": _chosen(evaluation, ("k", "segments", "minSamples", "confidence")),
            "gates": [gate.explicit() for gate in spec.promotion.gates],
            **({"retry": retry} if retry else {}),
        },
    )


def serving_hash(spec: RetrievalModelSpec) -> str:
    """How a stack is served, replicas left out: their bounds change in place."""
    serving = spec.serving.explicit()
    return digest("serving", _chosen(serving, ("image", "connectionAgeSeconds", "resources", "pod")))


def stack_id(bundle_id: str, generation_id: str, serving: str) -> str:
    """What serves: bundle, index generation and serving spec."""
    return digest("stack", {"bundle": bundle_id, "generation": generation_id, "serving": serving})


def verification_key(stack: str, *, k: int, image: str, retry: str) -> str:
    """One verification of a dark stack that is asked for `k` items; a person's retry asks anew.

    `image` is that of its servers, "" where it is not known: a stack that is started again, as after a rollback to a
    collected one, has the image that the operator of now gives it.
    """
    return digest("verification", {"stack": stack, "k": k, "image": image, "retry": retry})
