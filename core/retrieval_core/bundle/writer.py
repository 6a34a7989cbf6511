"""`write_bundle`: a directory appears whole, with bundle.json written last, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from retrieval_core.bundle.card import render_card
from retrieval_core.bundle.layout import (
    drop_call_settings,
    respell_model_config,
    respell_tokenizer_config,
    write_sentence_transformers_files,
)
from retrieval_core.bundle.loading import load_tokenizer, quiet_progress
from retrieval_core.bundle.manifest import (
    CARD_FILE,
    MANIFEST_FILE,
    PROMPTS_FILE,
    TRAINING_FILE,
    BundleFile,
    BundleManifest,
    EmbeddingSpec,
    MaxTokens,
    bundle_id,
)
from retrieval_core.bundle.reader import Bundle
from retrieval_core.errors import BadInput
from retrieval_core.files import write_json, write_text
from retrieval_core.prompts import Percentiles, PromptRenderer, PromptSpec, added_tokens


def write_bundle(
    directory: Path,
    *,
    model: Any,
    tokenizer: Any,
    prompts: PromptSpec,
    percentiles: Percentiles,
    dimensions: Sequence[int],
    dimension: int,
    dtype: str = "float32",
    training: dict[str, Any],
    card: str,
) -> BundleManifest:
    """Write a bundle to `directory` and return its manifest.

    `model`: a transformers model, adapters merged; only its backbone is kept. `dimension`: its hidden size.
    `training`: the record in training.json; `card`: Markdown that README.md shows above the record, may be empty.
    The same bundle may be written again (its record is left as it was); an unfinished directory is replaced.
    Raises BadInput when `directory` holds another bundle or the tokenizer does not survive being saved.
    """
    embedding = EmbeddingSpec.model_validate(
        {
            "dimensions": tuple(dimensions),
            "dimension": dimension,
            "dtype": dtype,
            "maxTokens": MaxTokens(**prompts.max_tokens),
        }
    )
    backbone = _backbone(model, embedding)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _scratch_beside(directory) as scratch:
        _save_model(scratch, backbone, embedding)
        _save_tokenizer(scratch, tokenizer, prompts, percentiles, embedding)
        write_sentence_transformers_files(scratch, embedding)
        write_json(scratch / PROMPTS_FILE, {**prompts.document(), "percentiles": percentiles.document()})
        identity = bundle_id(embedding, _describe_files(scratch))
        write_json(scratch / TRAINING_FILE, {"formatVersion": 1, **training})
        write_text(scratch / CARD_FILE, render_card(identity, embedding, training, card))
        manifest = BundleManifest.describe(embedding, _describe_files(scratch))
        _sync_files(scratch)
        write_json(scratch / MANIFEST_FILE, manifest.document())
        return _put_in_place(scratch, directory, manifest)


def _backbone(model: Any, embedding: EmbeddingSpec) -> Any:
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(f"{type(model).__name__} is not a transformers model; merge adapters before writing a bundle")
    backbone = model.base_model
    if backbone.config.hidden_size != embedding.dimension:
        raise ValueError(f"dimension is {embedding.dimension}, the model's hidden size {backbone.config.hidden_size}")
    return backbone


def _save_model(scratch: Path, backbone: Any, embedding: EmbeddingSpec) -> None:
    dtype: torch.dtype = getattr(torch, embedding.dtype)
    state = {
        name: value.detach().to(dtype) if value.is_floating_point() else value.detach()
        for name, value in backbone.state_dict().items()
    }
    config = backbone.config
    before = config.architectures, config.dtype
    with quiet_progress():
        # One file, whatever the size: a reader verifies and maps it as a whole.
        backbone.save_pretrained(scratch, state_dict=state, max_shard_size="100TB")
    config.architectures, config.dtype = before  # save_pretrained writes its own into the caller's config
    respell_model_config(scratch / "config.json", embedding.dtype)
    (scratch / "generation_config.json").unlink(missing_ok=True)  # a bundle never generates


def _save_tokenizer(
    scratch: Path, tokenizer: Any, prompts: PromptSpec, percentiles: Percentiles, embedding: EmbeddingSpec
) -> None:
    tokenizer.save_pretrained(scratch)
    drop_call_settings(scratch / "tokenizer.json")
    tokens = added_tokens(prompts, percentiles)
    respell_tokenizer_config(
        scratch / "tokenizer_config.json", max_tokens=embedding.max_tokens.longest, fallback_pad=tokens[0]
    )
    saved = load_tokenizer(scratch)
    PromptRenderer(prompts, percentiles, saved)  # refuses a tokenizer without the prompts' tokens
    # Letters, digits, accents, two scripts and every added token: enough to notice a lost normaliser or post-processor.
    sample = "A sample, 12 ﬁne Crème brûlée 東京 " + "x".join(tokens)
    call = {"padding": False, "truncation": False, "verbose": False}
    if saved(sample, **call)["input_ids"] != tokenizer(sample, **call)["input_ids"]:
        raise BadInput(f"the base model's tokenizer ({type(tokenizer).__name__}) gives other ids once it is saved")


def _describe_files(scratch: Path) -> dict[str, BundleFile]:
    names = sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file())
    return {name: BundleFile.of(scratch, name) for name in names}


def _sync_files(scratch: Path) -> None:
    """Everything is on disk before bundle.json says that it is complete."""
    for path in (scratch, *scratch.rglob("*")):
        _sync(path)


def _sync(path: Path) -> None:
    """Flush a file, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(scratch: Path, directory: Path, manifest: BundleManifest) -> BundleManifest:
    if (directory / MANIFEST_FILE).exists():
        found = Bundle.open(directory)
        if found.id != manifest.id:
            raise BadInput(f"{directory} already holds bundle {found.id}; {manifest.id} needs a directory of its own")
        return found.manifest
    if directory.exists():
        shutil.rmtree(directory)
    scratch.rename(directory)
    _sync(directory.parent)
    return manifest


@contextmanager
def _scratch_beside(directory: Path) -> Iterator[Path]:
    """A directory on the same disk, so that a rename puts it in place; removed when it is still there."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    scratch.chmod(0o755)  # mkdtemp makes it private; a bundle is read by other users' pods
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
