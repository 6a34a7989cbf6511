"""From settings to an engine: open the bundle and the generation, refuse what does not belong together.

Imports torch, transformers and faiss, which take most of a start; so it is imported only after the port is claimed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from retrieval_core.bundle import Bundle
from retrieval_core.encoding import Encoder, encode_token_ids
from retrieval_core.errors import BadArguments
from retrieval_core.generation import Generation
from retrieval_core.log import get_logger
from retrieval_encoder_server.engine import Engine
from retrieval_encoder_server.self_test import prove_encoding, prove_searching
from retrieval_encoder_server.settings import Settings

log = get_logger(__name__)


def open_engine(settings: Settings) -> Engine:
    """The engine that the settings describe, after its self-test.

    Raises BadInput when the bundle or generation is damaged or not the expected one, or fails the self-test.
    """
    bundle = Bundle.open(settings.bundle_uri, expected_id=settings.expected_bundle_id)
    log.info("bundle verified", bundle=bundle.id)
    generation = _open_generation(settings, bundle)
    served_dimension = _served_dimension(settings, bundle, generation)
    encoder = Encoder(bundle, device=settings.device, token_budget=settings.max_batch_tokens)
    tokenizer = encoder.tokenizer.backend_tokenizer
    engine = Engine(
        bundle_id=bundle.id,
        prompts=bundle.prompts,
        full_dimension=encoder.dimension,
        dimensions=bundle.manifest.embedding.dimensions,
        served_dimension=served_dimension,
        renderer=encoder.renderer,
        tokenise=_tokeniser(tokenizer),
        longest_token=max(map(len, tokenizer.get_vocab())),
        encode=functools.partial(encode_token_ids, encoder.model, token_budget=settings.max_batch_tokens),
        index=generation,
    )
    prove_encoding(engine, bundle.manifest.embedding.dtype)
    if generation is not None:
        prove_searching(engine, generation.ids.tolist(), generation.served_vectors)
    log.info("self-test passed", bundle=bundle.id, generation=engine.ids.generation_id)
    return engine


def _open_generation(settings: Settings, bundle: Bundle) -> Generation | None:
    if settings.generation_uri is None:
        if settings.expected_generation_id is not None:
            raise BadArguments(
                f"EXPECTED_GENERATION_ID is {settings.expected_generation_id}, but GENERATION_URI is not set"
            )
        return None
    generation = Generation.open(
        settings.generation_uri, expected_bundle_id=bundle.id, expected_id=settings.expected_generation_id
    )
    log.info("generation verified", generation=generation.id, count=generation.count, dimension=generation.dimension)
    return generation


def _served_dimension(settings: Settings, bundle: Bundle, generation: Generation | None) -> int:
    embedding = bundle.manifest.embedding
    asked = settings.served_dimension
    if generation is not None:
        if asked not in {None, generation.dimension}:
            raise BadArguments(
                f"SERVED_DIMENSION is {asked}, but generation {generation.id} was built to serve "
                f"{generation.dimension}; leave it out, or build an index for {asked}"
            )
        return generation.dimension
    if asked is None:
        return embedding.dimension
    if asked not in {*embedding.dimensions, embedding.dimension}:
        widths = ", ".join(map(str, sorted({*embedding.dimensions, embedding.dimension})))
        raise BadArguments(f"SERVED_DIMENSION is {asked}, but bundle {bundle.id} has {widths}")
    return asked


def _tokeniser(tokenizer: Tokenizer) -> Callable[[str], Sequence[int]]:
    """The ids that the model reads, as the encoder makes them; for several threads at once.

    On a private copy: padding and truncation are state of a tokenizer, and a shared one fails when they are switched
    while another thread uses it.
    """
    private = Tokenizer.from_str(tokenizer.to_str())
    private.no_padding()
    private.no_truncation()

    def tokenise(text: str) -> Sequence[int]:
        text.encode()  # a lone surrogate raises UnicodeEncodeError here; the tokenizer says something obscure
        return private.encode(text).ids

    return tokenise
