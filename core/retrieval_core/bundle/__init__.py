"""A bundle: all that decides what an embedding means (docs/contracts.md section 5).

manifest.py  bundle.json and the id
reader.py    `Bundle.open`: verified before anything is loaded from it
writer.py    `write_bundle`: atomic, bundle.json last
layout.py    the files other programs read: sentence-transformers modules, configs in older spellings
card.py      README.md, for people
loading.py   models and tokenizers from local directories, safetensors only
"""

from retrieval_core.bundle.loading import load_model, load_tokenizer
from retrieval_core.bundle.manifest import BundleManifest, EmbeddingSpec
from retrieval_core.bundle.reader import Bundle
from retrieval_core.bundle.writer import write_bundle

__all__ = ["Bundle", "BundleManifest", "EmbeddingSpec", "load_model", "load_tokenizer", "write_bundle"]
