"""The server's Prometheus metrics. Names are a public interface: a test lists them."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Info

# From a tenth of a lone query on a tiny model to the request time-out.
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TOKENS_BUCKETS = tuple(float(2**power) for power in range(4, 18))
COUNT_BUCKETS = tuple(float(2**power) for power in range(9))


class Metrics:
    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self.served = Info("retrieval_encoder_served", "Ids of what this server serves", registry=registry)
        self.start_up_seconds = Gauge("retrieval_encoder_start_up_seconds", "Process start to ready", registry=registry)
        self.requests = Counter(
            "retrieval_encoder_requests_total",
            "Responses by endpoint and code",
            ["endpoint", "code"],
            registry=registry,
        )
        self.refused = Counter("retrieval_encoder_refused_total", "Refused requests", ["reason"], registry=registry)
        self.request_seconds = self._histogram(
            "request_duration_seconds", "First byte of a request to first byte of its response", "endpoint"
        )
        self.queue_seconds = self._histogram("queue_duration_seconds", "Admission to the start of the batch", "worker")
        self.batch_seconds = self._histogram("batch_duration_seconds", "Computing one batch", "worker")
        self.batch_requests = self._histogram(
            "batch_requests", "Requests in one batch", "worker", buckets=COUNT_BUCKETS
        )
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in one encoding batch", buckets=TOKENS_BUCKETS)
        self.batch_searches = self._histogram("batch_searches", "Queries in one search batch", buckets=COUNT_BUCKETS)
        self.queued_tokens = Gauge("retrieval_encoder_queued_tokens", "Tokens that wait", registry=registry)
        self.queued_searches = Gauge("retrieval_encoder_queued_searches", "Searches that wait", registry=registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float] = SECONDS_BUCKETS) -> Histogram:
        return Histogram(f"retrieval_encoder_{name}", text, labels, buckets=buckets, registry=self.registry)

    def encoding(self) -> WorkerMetrics:
        return WorkerMetrics(self, "encode", self.queued_tokens, self.batch_tokens)

    def searching(self) -> WorkerMetrics:
        return WorkerMetrics(self, "search", self.queued_searches, self.batch_searches)


class WorkerMetrics:
    """A `batcher.Observer`; `queued_cost` and `batch_cost` are in the worker's own unit."""

    def __init__(self, metrics: Metrics, worker: str, queued_cost: Gauge, batch_cost: Histogram) -> None:
        self._queued_cost = queued_cost
        self._batch_cost = batch_cost
        self._queue_seconds = metrics.queue_seconds.labels(worker)
        self._batch_seconds = metrics.batch_seconds.labels(worker)
        self._batch_requests = metrics.batch_requests.labels(worker)

    def queued(self, cost: int) -> None:
        self._queued_cost.set(cost)

    def processed(self, *, entries: int, cost: int, waited_s: Sequence[float], took_s: float) -> None:
        for seconds in waited_s:
            self._queue_seconds.observe(seconds)
        self._batch_seconds.observe(took_s)
        self._batch_requests.observe(entries)
        self._batch_cost.observe(cost)
