"""`retrieval-index`: bundle + dataset -> index generation (docs/contracts.md section 6)."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from retrieval_core.errors import BadArguments
from retrieval_core.exits import exit_with_reason
from retrieval_core.generation import Manifest
from retrieval_core.generation.manifest import MANIFEST
from retrieval_core.reporting import report
from retrieval_indexer.build import DEFAULT_SERVED_K, BuildRequest, IndexBuild
from retrieval_indexer.console import console, progress_bars, start_logging, titled
from retrieval_indexer.corpus import Shard
from retrieval_indexer.factory import AUTO

# Which of the pods of an Indexed Job this is, counted from 0; Kubernetes sets it.
COMPLETION_INDEX = "JOB_COMPLETION_INDEX"

app = typer.Typer(
    help="Encode a corpus with a bundle and build its search index.",
    epilog="Example:\n\n`retrieval-index build --bundle ./bundle --dataset ./data --kind serving --out ./index`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)

BundleOption = Annotated[str, typer.Option(help="URI of the bundle directory.", show_default=False)]
DatasetOption = Annotated[str, typer.Option(help="URI of the dataset directory.", show_default=False)]
KindOption = Annotated[
    Literal["evaluation", "serving"],
    typer.Option(help="evaluation: as of the start of the test part. serving: as of just after the last interaction."),
]
OutOption = Annotated[str, typer.Option(help="URI to write the generation to.", show_default=False)]
AsOfOption = Annotated[int | None, typer.Option(help="Seconds since 1970; nothing later enters a prompt.")]
FactoryOption = Annotated[
    str, typer.Option(help="Flat, auto, or a faiss factory string such as IVF4096,PQ64x4fs,RFlat.")
]
DimensionOption = Annotated[int | None, typer.Option(help="Width that is searched; default: the bundle's full width.")]
ServedKOption = Annotated[int, typer.Option(help="The k that will be served; recall is measured at it.")]
LatencyOption = Annotated[
    int | None,
    typer.Option(
        help="With --factory auto: Flat while the measured median time of one query on one thread is at most this, "
        "in milliseconds; default: the corpus's size decides.",
        show_default=False,
    ),
]
ExpectedOption = Annotated[str | None, typer.Option(help="Refuse any other bundle.", show_default=False)]
PreviousOption = Annotated[
    str | None,
    typer.Option(help="A generation of the same bundle: vectors of unchanged prompts are copied.", show_default=False),
]
MembersOption = Annotated[bool, typer.Option("--members", help="Store member vectors, for retrieval by member id.")]
ShardsOption = Annotated[int, typer.Option(help="How many shards the corpus is divided into.")]
DeviceOption = Annotated[str, typer.Option(help="torch device that encodes.", envvar="DEVICE")]


def build_request(
    *,
    bundle: BundleOption,
    dataset: DatasetOption,
    kind: KindOption,
    out: OutOption,
    as_of: AsOfOption = None,
    factory: FactoryOption = AUTO,
    served_dimension: DimensionOption = None,
    served_k: ServedKOption = DEFAULT_SERVED_K,
    latency_target_ms: LatencyOption = None,
    expected_bundle_id: ExpectedOption = None,
    previous: PreviousOption = None,
    members: MembersOption = False,
    shards: ShardsOption = 1,
    device: DeviceOption = "cpu",
) -> BuildRequest:
    """The options that `build` and `merge` share."""
    return BuildRequest(**locals())  # the options are its fields


def with_build_request(command: Callable[[BuildRequest], None]) -> Callable[..., None]:
    """Give a command the options of `build_request`, and call it with the request they make."""

    def with_options(**options: Any) -> None:
        command(build_request(**options))

    # What typer reads of a command; not functools.wraps, which would show it the signature of `command`.
    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    with_options.__signature__ = inspect.signature(build_request, eval_str=True)  # type: ignore[attr-defined]
    return with_options


@app.command(
    epilog="Example:\n\n`retrieval-index build --bundle ./bundle --dataset ./data --kind serving --out ./index`"
)
@exit_with_reason()
@with_build_request
def build(request: BuildRequest) -> None:
    """Build a generation: encode every shard, then merge. Started again after an interruption, it continues."""
    start_logging()
    task = IndexBuild(request)
    manifest = task.found_complete()
    if manifest is None:
        with progress_bars() as bars:
            progress = bars("encoding", task.total)
            for number in range(request.shards):
                task.encode(Shard(number, request.shards), progress)
            manifest = task.merge(progress)
    _finish(task, manifest)


@app.command(
    epilog="Example:\n\n`retrieval-index encode --shard 0/4 --bundle ./bundle --dataset ./data "
    "--kind serving --out ./index`"
)
@exit_with_reason()
def encode(
    *,
    shard: Annotated[str | None, typer.Option(help="Only this one: i/N, counted from 0.", show_default=False)] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            help=f"Of so many shards the one that {COMPLETION_INDEX} names (Kubernetes sets it in an Indexed Job); "
            "without that variable all of them, one after the other.",
            show_default=False,
        ),
    ] = None,
    bundle: BundleOption,
    dataset: DatasetOption,
    kind: KindOption,
    out: OutOption,
    as_of: AsOfOption = None,
    expected_bundle_id: ExpectedOption = None,
    previous: PreviousOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Encode one shard, for example as one pod of an Indexed Job, or all. What is finished is not encoded again.

    `merge` makes the generation out of all shards; so does `build`, which encodes what is missing.
    """
    start_logging()
    parts = chosen_shards(shard, shards)
    request = BuildRequest(
        bundle=bundle,
        dataset=dataset,
        kind=kind,
        out=out,
        as_of=as_of,
        expected_bundle_id=expected_bundle_id,
        previous=previous,
        shards=parts[0].of,
        device=device,
    )
    task = IndexBuild(request)
    with progress_bars() as bars:
        for part in parts:
            task.encode(part, bars(f"encoding shard {part.number}/{part.of}", len(task.corpus.rows(part))))


def chosen_shards(shard: str | None, shards: int | None) -> list[Shard]:
    """What to encode by `--shard`, `--shards` and the environment. Raises BadArguments when they contradict."""
    if (shard is None) == (shards is None):
        raise BadArguments(f"found {'neither' if shard is None else 'both'}, expected one of --shard and --shards")
    if shards is None:
        return [Shard.parse(shard or "")]
    if shards < 1:
        raise BadArguments(f"--shards is {shards}, expected at least 1")
    index = os.environ.get(COMPLETION_INDEX)
    if index is None:
        return [Shard(number, shards) for number in range(shards)]
    if not (index.isdecimal() and int(index) < shards):
        raise BadArguments(f"{COMPLETION_INDEX} is {index!r}, expected a number below --shards {shards}")
    return [Shard(int(index), shards)]


@app.command(
    epilog="Example:\n\n`retrieval-index merge --shards 4 --bundle ./bundle --dataset ./data "
    "--kind serving --out ./index`"
)
@exit_with_reason()
@with_build_request
def merge(request: BuildRequest) -> None:
    """Make the generation out of encoded shards: member vectors, search index, checks, MANIFEST.json last."""
    start_logging()
    task = IndexBuild(request)
    manifest = task.found_complete()
    if manifest is None:
        with progress_bars() as bars:
            manifest = task.merge(bars("encoding members", task.total - int(task.corpus.present.sum())))
    _finish(task, manifest)


def _finish(task: IndexBuild, manifest: Manifest) -> None:
    print_generation(manifest, task.corpus.dataset.spec.provenance)
    report(task.workspace.directory / MANIFEST)


def print_generation(manifest: Manifest, provenance: str) -> None:
    """What was built, for a person; the manifest has it all."""
    table = Table(title=titled(provenance, f"index generation {manifest.id}"), show_header=False)
    checks = manifest.checks
    rows = {
        "kind, as of": f"{manifest.kind}, {manifest.as_of}",
        "bundle": manifest.bundle_id,
        "items (copied + encoded)": f"{manifest.count} ({manifest.copied} + {manifest.encoded})",
        "members": str(manifest.members),
        "index": f"{manifest.factory} {manifest.parameters or ''} at dimension {manifest.served_dimension}",
        "finite": str(checks.finite),
        "largest norm error": _number(checks.max_norm_error, ".1e"),
        "self-hit": _number(checks.self_hit, ".4f"),
        f"recall@{manifest.served_k} against exact": _number(checks.recall_at_served_k, ".4f"),
        **_latency_row(manifest),
        "coverage": _number(checks.coverage, ".4f"),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def _latency_row(manifest: Manifest) -> dict[str, str]:
    latency = manifest.latency
    return {} if latency is None else {"p50 (target)": f"{_number(latency.p50_ms, '.2f')} ms ({latency.target_ms} ms)"}


def _number(value: float | None, form: str) -> str:
    return "not computable" if value is None else format(value, form)


if __name__ == "__main__":
    app()
