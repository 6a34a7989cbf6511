"""`Bundle.open`: every file is verified before anything is loaded from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retrieval_core.bundle.loading import PICKLE_SUFFIXES, load_model, load_tokenizer
from retrieval_core.bundle.manifest import MANIFEST_FILE, PROMPTS_FILE, TRAINING_FILE, BundleManifest, bundle_id
from retrieval_core.errors import BadInput, validate_document
from retrieval_core.files import local_path, read_json, sha256_file
from retrieval_core.prompts import Percentiles, PromptRenderer, PromptSpec

_ADVICE = "the bundle is damaged or was edited; copy it again from where it was written"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on local disk; nothing of the model is loaded yet."""

    path: Path
    manifest: BundleManifest
    training: dict[str, Any]
    prompts: PromptSpec
    percentiles: Percentiles

    @property
    def id(self) -> str:
        return self.manifest.id

    @classmethod
    def open(cls, uri: str | Path, *, expected_id: str | None = None, verify: bool = True) -> Bundle:
        """Open the bundle at `uri`; BadInput names the file that is wrong and what to do.

        verify=False skips reading the files' bytes (for a bundle verified a moment ago); names, sizes and the id are
        checked all the same.
        """
        path = local_path(str(uri))
        manifest = validate_document(BundleManifest, read_json(path / MANIFEST_FILE), f"{path / MANIFEST_FILE}")
        _require_id(path, manifest, expected_id)
        _refuse_foreign_files(path, manifest)
        _require_files(path, manifest, verify=verify)
        prompts, percentiles = _read_prompts(path / PROMPTS_FILE)
        return cls(path, manifest, read_json(path / TRAINING_FILE), prompts, percentiles)

    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, with the prompts' added tokens."""
        return load_tokenizer(self.path)

    def renderer(self) -> PromptRenderer:
        return PromptRenderer(self.prompts, self.percentiles, self.tokenizer())

    def model(self) -> Any:
        """The backbone on the CPU, in the bundle's own precision."""
        return load_model(self.path, dtype=getattr(torch, self.manifest.embedding.dtype))


def _read_prompts(path: Path) -> tuple[PromptSpec, Percentiles]:
    document = read_json(path)
    percentiles = Percentiles.parse(document.pop("percentiles", {}), f"{path}: percentiles")
    return PromptSpec.parse(document, str(path)), percentiles


def _require_id(path: Path, manifest: BundleManifest, expected_id: str | None) -> None:
    recomputed = bundle_id(manifest.embedding, manifest.files)
    if recomputed != manifest.id:
        raise BadInput(
            f"{path / MANIFEST_FILE} says its id is {manifest.id}, its content gives {recomputed}: {_ADVICE}"
        )
    if expected_id is not None and expected_id != manifest.id:
        raise BadInput(f"{path} holds bundle {manifest.id}, expected {expected_id}: it is another bundle's directory")


def _refuse_foreign_files(path: Path, manifest: BundleManifest) -> None:
    """No links, and no file that is not listed: a loader might pick up code, weights or another tokenizer from it.

    Hidden files that cannot hold code or weights (.DS_Store, .gitattributes) are left alone: nothing reads them.
    """
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_symlink():
            raise BadInput(f"{path}: {name} is a symbolic link; a bundle consists of plain files, copy the file itself")
        if file.is_dir() or name == MANIFEST_FILE:
            continue
        loadable = file.suffix in PICKLE_SUFFIXES | {".py"}
        if loadable:
            raise BadInput(
                f"{path}: {name} could be run as code when loaded; a bundle never holds such a file, remove it"
            )
        if name not in manifest.files and not file.name.startswith("."):
            raise BadInput(f"{path}: {name} is not listed in {MANIFEST_FILE}; remove it")


def _require_files(path: Path, manifest: BundleManifest, *, verify: bool) -> None:
    for required in (PROMPTS_FILE, TRAINING_FILE, "config.json", "model.safetensors", "tokenizer.json"):
        if required not in manifest.files:
            raise BadInput(f"{path / MANIFEST_FILE} lists no {required}: it is not a complete bundle")
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise BadInput(f"{path}: {name} is missing: {_ADVICE}")
        size = file.stat().st_size
        if size != expected.size:
            raise BadInput(f"{path}: {name} has {size} bytes, expected {expected.size}: {_ADVICE}")
        if verify and sha256_file(file) != expected.sha256:
            raise BadInput(f"{path}: {name} has not the content that {MANIFEST_FILE} lists (sha256 differs): {_ADVICE}")
