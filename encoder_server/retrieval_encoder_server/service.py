"""The path of a request between the event loop and the threads. Nothing here blocks the loop.

    inputs -> tokenizer pool (check, render, count) -> encode batcher (one compute thread) -> resize -> vectors
    query  -> [the above | stored member vector | the caller's vector] -> search batcher (one thread) -> hits

Each stage is bounded, so an overload is refused at the door (429) instead of growing a queue of dead requests.
One deadline covers all stages of a request. When it passes, what waits is taken out of its queue; what a thread has
begun is finished, unheard, and counts against the stage's bound until then.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from retrieval_encoder_server.batcher import Batcher, Clock
from retrieval_encoder_server.engine import Engine, Hits, Query, TokenIds, Vectors
from retrieval_encoder_server.metrics import Metrics
from retrieval_encoder_server.refusals import Malformed, NotInTime, Overloaded, TooLarge, WrongBundle
from retrieval_encoder_server.schemas import EmbeddingInput, FeaturesInput, PromptInput, RetrieveRequest
from retrieval_encoder_server.settings import Settings

Result = TypeVar("Result")

# Requests being rendered or waiting for it. Rendering is hundreds of times cheaper than encoding, so this bound is only
# reached when the machine is far beyond its capacity. A gut feeling.
MAX_PREPARING = 256
# Queries that one call of the index answers together; bounds how long a lone query waits for a batch before it.
MAX_SEARCH_BATCH = 32
# A worker that has computed nothing for this long is asked to encode a prompt before it is called alive.
PROBE_AFTER_S = 10.0
# How long a health check waits for that. A busy worker may be slower and is judged by its heartbeat instead.
PROBE_TIMEOUT_S = 0.5
PROBE = PromptInput("health", "health")


@dataclass(frozen=True)
class Embedded:
    """`vectors` float32 [n, dimension], in the order of the inputs; `tokens` is what the model read for them."""

    vectors: Vectors
    tokens: int


class Service:
    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        metrics: Metrics,
        clock: Clock = time.monotonic,
        probe_timeout_s: float = PROBE_TIMEOUT_S,
    ) -> None:
        self.engine = engine
        self.ids = engine.ids
        self._settings = settings
        self._probe_timeout_s = probe_timeout_s
        self._pool = ThreadPoolExecutor(settings.tokenizer_threads, thread_name_prefix="tokenize")
        self._preparing = threading.Semaphore(MAX_PREPARING)
        self._encode: Batcher[Sequence[TokenIds], Vectors] = Batcher(
            "encode",
            self._encode_batch,
            unit="tokens",
            max_batch_cost=settings.max_batch_tokens,
            max_queue_cost=settings.max_queue_tokens,
            observer=metrics.encoding(),
            clock=clock,
        )
        self._search: Batcher[Query, Hits] = Batcher(
            "search",
            engine.search_batch,
            unit="queries",
            max_batch_cost=MAX_SEARCH_BATCH,
            max_queue_cost=settings.max_queue_searches,
            observer=metrics.searching(),
            clock=clock,
        )

    def start(self) -> None:
        self._encode.start()
        self._search.start()

    def stop(self) -> None:
        self._encode.stop()
        self._search.stop()
        self._pool.shutdown()

    async def embed(self, inputs: Sequence[EmbeddingInput], dimension: int | None = None) -> Embedded:
        """Vectors of the inputs at `dimension` (None: the served one). Any `Refused` may come out."""
        return await self._in_time(self._embed(inputs, dimension))

    async def retrieve(self, request: RetrieveRequest) -> Hits:
        """The best items for the request's query. Any `Refused` may come out."""
        return await self._in_time(self._retrieve(request))

    def require_bundle(self, bundle_id: str, where: str) -> None:
        """WrongBundle unless `bundle_id` is the one served."""
        if bundle_id != self.ids.bundle_id:
            raise WrongBundle(f"{where} is {bundle_id:.80}, this server has bundle {self.ids.bundle_id}")

    async def is_live(self) -> bool:
        """True while both workers make steps and encoding works: proved by recent work, else by encoding a probe."""
        stuck_after_s = self._settings.stuck_after_seconds
        if not self._encode.is_alive(stuck_after_s) or not self._search.is_alive(stuck_after_s):
            return False
        if self._encode.succeeded_within(PROBE_AFTER_S):
            return True
        try:
            await asyncio.wait_for(self._embed([PROBE]), self._probe_timeout_s)
        except (TimeoutError, Overloaded):
            return True
        except Exception:  # a model that cannot encode a fixed prompt is broken, however it fails
            return False
        return True

    async def _embed(self, inputs: Sequence[EmbeddingInput], dimension: int | None = None) -> Embedded:
        if not inputs:
            raise Malformed("no inputs: expected at least one")
        if len(inputs) > self._settings.max_inputs:
            raise TooLarge(f"found {len(inputs)} inputs, this server takes at most {self._settings.max_inputs} at once")
        self.engine.check_dimension(dimension)
        prompts = await self._prepare(lambda: self.engine.prepare(inputs))
        tokens = sum(map(len, prompts))
        vectors = await asyncio.wrap_future(self._encode.submit(prompts, tokens))
        return Embedded(self.engine.resize(vectors, dimension), tokens)

    async def _retrieve(self, request: RetrieveRequest) -> Hits:
        self.engine.check_filter(request.filter)
        k = min(request.k, self.engine.index.count)
        query = Query(await self._query_vector(request), k, request.exclude, request.filter)
        return await asyncio.wrap_future(self._search.submit(query, 1))

    async def _query_vector(self, request: RetrieveRequest) -> Vectors:
        if request.embedding is not None:
            self.require_bundle(request.bundle_id or "", "bundle_id")
            return self.engine.as_query(request.embedding)
        if request.member_id is not None:
            member_id = request.member_id
            return await self._prepare(lambda: self.engine.member_vector(member_id))
        embedded = await self._embed([FeaturesInput("member", dict(request.member or {}), "member")])
        return np.ascontiguousarray(embedded.vectors[0])

    async def _prepare(self, work: Callable[[], Result]) -> Result:
        """Run `work` in the tokenizer pool, if not too much waits there already."""
        if not self._preparing.acquire(blocking=False):
            raise Overloaded(f"{MAX_PREPARING} requests are being prepared; try again later", retry_after_s=1)
        future = self._pool.submit(work)
        # When the thread is done, not when the caller has gone: a thread that works for nobody is still busy.
        future.add_done_callback(lambda _: self._preparing.release())
        return await asyncio.wrap_future(future)

    async def _in_time(self, work: Awaitable[Result]) -> Result:
        """What `work` returns, or NotInTime at the deadline; cancelling takes what still waits out of its queue."""
        timeout_s = self._settings.request_timeout_seconds
        try:
            return await asyncio.wait_for(work, timeout_s)
        except TimeoutError:
            raise NotInTime(f"not answered within {timeout_s:g} s; the server is overloaded", retry_after_s=5) from None

    def _encode_batch(self, requests: Sequence[Sequence[TokenIds]]) -> list[Vectors]:
        """Encode the prompts of all requests as one batch, and split the vectors again."""
        vectors = self.engine.encode([prompt for prompts in requests for prompt in prompts])
        ends = np.cumsum([len(prompts) for prompts in requests])
        return np.split(vectors, ends[:-1])
