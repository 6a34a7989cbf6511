"""The steps of an index build, as functions a command line and a test can call: plan, encode shards, merge, publish."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from retrieval_core.bundle import Bundle
from retrieval_core.dataset import open_dataset
from retrieval_core.encoding import Encoder
from retrieval_core.errors import BadArguments
from retrieval_core.files import is_published
from retrieval_core.generation import Generation, Manifest
from retrieval_core.generation.manifest import MANIFEST, Kind, items_file, shard_file, vectors_file
from retrieval_core.log import get_logger
from retrieval_indexer.corpus import Corpus, Shard, default_as_of
from retrieval_indexer.encode import PreviousVectors, Progress, encode_shard
from retrieval_indexer.factory import AUTO
from retrieval_indexer.merge import IndexSettings, found_complete, merge_shards
from retrieval_indexer.workspace import Workspace

log = get_logger(__name__)

DEFAULT_SERVED_K = 2000


@dataclass(frozen=True)
class BuildRequest:
    """What to build, in the words of the command line."""

    bundle: str
    dataset: str
    kind: Kind
    out: str
    as_of: int | None = None
    factory: str = AUTO
    served_dimension: int | None = None
    served_k: int = DEFAULT_SERVED_K
    latency_target_ms: int | None = None
    expected_bundle_id: str | None = None
    previous: str | None = None
    members: bool = False
    shards: int = 1
    device: str = "cpu"


class IndexBuild:
    """One build. Opening it validates bundle, dataset and arguments; nothing is written before `encode`."""

    def __init__(self, request: BuildRequest) -> None:
        if request.shards < 1:
            raise BadArguments(f"--shards is {request.shards}, expected at least 1")
        if request.served_k < 1:
            raise BadArguments(f"--served-k is {request.served_k}, expected at least 1")
        if request.latency_target_ms is not None and request.latency_target_ms < 1:
            raise BadArguments(f"--latency-target-ms is {request.latency_target_ms}, expected at least 1")
        bundle = Bundle.open(request.bundle, expected_id=request.expected_bundle_id)
        dataset = open_dataset(request.dataset)
        as_of = request.as_of if request.as_of is not None else default_as_of(dataset, request.kind)
        self.request = request
        self.corpus = Corpus(dataset, bundle, request.kind, as_of)
        self.settings = IndexSettings(
            factory=request.factory,
            served_dimension=_served_dimension(bundle, request.served_dimension),
            served_k=request.served_k,
            latency_target_ms=request.latency_target_ms,
            members=request.members,
        )
        self.workspace = Workspace(request.out)

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.corpus.bundle, device=self.request.device)

    @cached_property
    def previous(self) -> PreviousVectors:
        """The previous generation's vectors; empty without one, and when another bundle made it."""
        if self.request.previous is None:
            return PreviousVectors(None, self.corpus.bundle.id)
        generation = Generation.open(self.request.previous)
        previous = PreviousVectors(generation, self.corpus.bundle.id)
        if previous.generation is None:
            log.warning("nothing to copy from the previous generation", its_bundle=generation.manifest.bundle_id)
        return previous

    @property
    def total(self) -> int:
        """Items, and members if they are encoded: what progress counts."""
        items = int(self.corpus.present.sum())
        return items + (len(self.corpus.dataset.member_ids) if self.settings.members else 0)

    def found_complete(self) -> Manifest | None:
        """The manifest when an earlier run of the same command has finished; BadInput when --out holds another."""
        published = is_published(self.workspace.uri, MANIFEST)
        if published:
            self.workspace.fetch_all()
        manifest = found_complete(self.corpus, self.settings, self.workspace.directory)
        if manifest is not None and not published:  # finished here, then cut off on its way to a remote URI
            self.workspace.publish(MANIFEST)
        return manifest

    def encode(self, shard: Shard, progress: Progress = lambda _: None) -> None:
        self._fetch_shard(shard)
        record = encode_shard(
            self.corpus,
            shard,
            self.workspace.directory,
            encoder=lambda: self.encoder,
            previous=self.previous,
            progress=progress,
        )
        log.info("shard encoded", shard=shard.number, of=shard.of, rows=record["rows"], copied=record["copied"])
        self.workspace.publish_files(sorted(record["files"]), shard_file(shard.number))

    def merge(self, progress: Progress = lambda _: None) -> Manifest:
        for number in range(self.request.shards):
            self._fetch_shard(Shard(number, self.request.shards))
        manifest = merge_shards(
            self.corpus,
            self.request.shards,
            self.settings,
            self.workspace.directory,
            encoder=lambda: self.encoder,
            previous_id=self.previous.generation.id if self.previous.generation is not None else None,
            progress=progress,
        )
        self.workspace.publish(MANIFEST)
        return manifest

    def _fetch_shard(self, shard: Shard) -> None:
        last = shard_file(shard.number)
        for name in (vectors_file(shard.number), items_file(shard.number), last):
            self.workspace.fetch(name, last)


def _served_dimension(bundle: Bundle, requested: int | None) -> int:
    embedding = bundle.manifest.embedding
    if requested is None:
        return int(embedding.dimension)
    if requested not in embedding.dimensions:
        allowed = ", ".join(map(str, embedding.dimensions))
        raise BadArguments(f"--served-dimension is {requested}, but bundle {bundle.id} was trained for {allowed}")
    return requested
