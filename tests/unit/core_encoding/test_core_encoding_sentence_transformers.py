# ruff: noqa: RUF001 - look-alikes of special tokens are what is tested
"""A bundle is a sentence-transformers model: same tokens, same vectors."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from retrieval_core.bundle import Bundle
from retrieval_core.encoding import Encoder

pytestmark = pytest.mark.component


@pytest.mark.parametrize("tokenizer", ["byte-level", "byte-fallback", "metaspace", "nfkc-lowercase"])
@pytest.mark.parametrize("tied", [True, False])
def test_sentence_transformers_gives_the_vectors_of_our_encoder(tokenizer, tied, write_tiny, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

    path = write_tiny(tmp_path / "bundle", tokenizer=tokenizer, tied=tied)
    encoder = Encoder(Bundle.open(path))
    titles = [
        "Senior data engineer",
        "</s> [MASK] ＜/s＞ <|pct.zero|>",
        "",
        "the feed ranks posts by what members engaged " * 9,
    ]
    features = [{"title": title, "topic": ["a", "b"], "engagements": n} for n, title in enumerate(titles)]
    members = [{"headline": title, "history": features} for title in titles]
    prompts = [*map(encoder.renderer.item, features), *map(encoder.renderer.member, members)]
    oracle = SentenceTransformer(str(path), device="cpu", local_files_only=True)
    token_ids = [oracle.tokenizer(prompt)["input_ids"] for prompt in prompts]
    assert token_ids == encoder.token_ids(prompts)
    vectors = encoder.encode_prompts(prompts)
    np.testing.assert_allclose(oracle.encode(prompts, batch_size=3), vectors, atol=1e-5)
    assert np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)[np.triu_indices(len(prompts), 1)].max() > 0.1
