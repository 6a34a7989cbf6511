"""README.md of a bundle: what it is, where it comes from, how it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from retrieval_core.bundle.manifest import EmbeddingSpec
from retrieval_core.files import canonical_json

_SYNTHETIC = (
    "> **Synthetic data.** This model was trained on generated interactions; its numbers say nothing of people."
)


def render_card(bundle_id: str, embedding: EmbeddingSpec, training: Mapping[str, Any], text: str) -> str:
    """Markdown with the training record as a table; `text` is the trainer's own part and may be empty."""
    provenance = training.get("provenance", "unknown")
    rows = {
        "Bundle": bundle_id,
        "Dimensions": f"{embedding.dimension}, trained to be cut to {', '.join(map(str, embedding.dimensions))}",
        "Pooling": "mean over all tokens, L2-normalised; compare by inner product",
        "Precision": embedding.dtype,
        "Prompt budget": f"member {embedding.max_tokens.member}, item {embedding.max_tokens.item} tokens",
        **dict(_flat_rows(training)),
    }
    table = ["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())]
    parts = [
        "---\nlibrary_name: sentence-transformers\npipeline_tag: feature-extraction\n---",
        f"# Retrieval encoder {bundle_id}",
        _SYNTHETIC if provenance == "synthetic" else "",
        text.strip(),
        "## Record",
        "\n".join(table),
        "## Use",
        "Vectors of two bundles cannot be compared: encode members and items with this one. Prompts are rendered by\n"
        "`retrieval_core.bundle.Bundle.open(path).renderer()`; rendered prompts may be encoded by\n"
        "`sentence_transformers.SentenceTransformer(path)` as well.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _flat_rows(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flat_rows(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return " ".join(text.split()).replace("|", "\\|")
