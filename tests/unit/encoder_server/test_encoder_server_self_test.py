"""What the self-test finds, with engines that are wrong in one way each."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from retrieval_core.errors import BadInput, Diverged
from retrieval_encoder_server.self_test import prove_encoding, prove_searching


def sound(prompts) -> np.ndarray:
    """The mean of one-hot tokens: depends on the prompt alone."""
    vectors = np.array([[sum(ids) + 1.0, len(ids), 1, 0, 0, 0, 0, 0] for ids in prompts], np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def noisy(size: float):
    """Unit vectors that differ from call to call."""
    calls = iter(range(1, 100))

    def encode(prompts) -> np.ndarray:
        vectors = sound(prompts) + np.float32(size) * next(calls)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return encode


def padded(prompts) -> np.ndarray:
    """Padding is taken for tokens, so neighbours change a vector."""
    return sound([[*ids, *[1] * (max(map(len, prompts)) - len(ids))] for ids in prompts])


def diverging(prompts) -> np.ndarray:
    raise Diverged("the model yields numbers that are not finite, for prompt 0")


def test_a_sound_encoder_passes(world):
    prove_encoding(world.make_engine(encode=sound))


@pytest.mark.parametrize(
    ("encode", "problem"),
    [
        pytest.param(lambda prompts: sound(prompts) * np.nan, "not finite", id="nan"),
        pytest.param(diverging, "not finite", id="diverged"),
        pytest.param(lambda prompts: sound(prompts) * 2, "length differs from 1 by 1", id="not normalised"),
        pytest.param(padded, "encoded in a batch differs by", id="padding counts"),
        pytest.param(noisy(3e-5), "encoded a second time differs by", id="not deterministic"),
    ],
)
def test_an_unsound_encoder_is_refused(world, encode, problem):
    with pytest.raises(BadInput, match=f"self-test failed: .*{problem}"):
        prove_encoding(world.make_engine(encode=encode))


def test_half_precision_may_differ_more(world):
    prove_encoding(world.make_engine(encode=noisy(3e-5)), dtype="bfloat16")


def prove(world, index) -> None:
    prove_searching(world.make_engine(index), world.items, world.index().vectors)


def test_a_sound_index_passes(world):
    prove(world, world.index())


def test_an_index_in_another_row_order_is_refused(world):
    index = world.index()
    index.vectors = np.roll(index.vectors, 1, axis=0)
    with pytest.raises(BadInput, match="self-test failed: item 'item-0' is not found by its own vector"):
        prove(world, index)


def test_an_index_that_finds_nothing_is_refused(world):
    index = world.index()
    index.search = lambda queries, *_: SimpleNamespace(ids=[[]] * len(queries), scores=[np.empty(0)] * len(queries))
    with pytest.raises(BadInput, match="found nothing"):
        prove(world, index)


def test_items_with_equal_vectors_are_no_failure(world):
    index = world.index()
    index.vectors = np.repeat(index.vectors[:1], len(index.vectors), axis=0)
    prove_searching(world.make_engine(index), world.items, index.vectors)
