"""`retrieval-data`: makes and checks datasets, removes what is over. Each command parses, calls a function, prints."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic.alias_generators import to_camel
from rich.console import Console
from rich.progress import track
from rich.table import Table

from retrieval_core.dataset import Dataset, open_dataset
from retrieval_core.dataset.summary import Summary, summarise
from retrieval_core.errors import BadArguments
from retrieval_core.exits import exit_with_reason
from retrieval_core.removal import remove, remove_all
from retrieval_core.sources.movielens import MovieLensOptions, read_movielens
from retrieval_core.sources.oracle import Ceiling, measure_ceiling
from retrieval_core.sources.synthetic import Snapshot, generate, require_possible
from retrieval_core.sources.world import WorldSize
from retrieval_core.sources.writing import require_free, write_dataset


def _examples(*commands: str) -> str:
    """Paragraphs, because help text folds single line breaks."""
    return "\n\n".join(["Examples:", *commands])


app = typer.Typer(
    name="retrieval-data",
    help="Make and check datasets; remove old bundles and indexes.",
    epilog=_examples("retrieval-data generate data/feed", "retrieval-data validate data/feed"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
import_app = typer.Typer(
    help="Make a dataset from public data.",
    epilog=_examples("retrieval-data import movielens ml-latest-small data/movielens"),
    no_args_is_help=True,
)
app.add_typer(import_app, name="import")

progress_console = Console(stderr=True)


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print.")]
ReplaceOption = Annotated[bool, typer.Option("--replace", help="Replace the dataset that is at OUT.")]
OutArgument = Annotated[str, typer.Argument(metavar="OUT", help="Directory or fsspec URI to write to.")]


@import_app.command(
    epilog=_examples(
        "retrieval-data import movielens ml-latest-small data/movielens",
        "retrieval-data import movielens ml-100k data/ml-100k --positive-rating 3.5 --window-days 90",
    )
)
@exit_with_reason()
def movielens(
    *,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with movies.csv and ratings.csv, or u.data.")
    ],
    out: OutArgument,
    positive_rating: Annotated[float, typer.Option(help="A rating from here on is an engagement.")] = 4.0,
    test_fraction: Annotated[float, typer.Option(min=0.01, max=0.9, help="Each member's last part is test.")] = 0.2,
    validation_members: Annotated[float, typer.Option(min=0, max=0.9, help="Share kept for tuning.")] = 0.2,
    window_days: Annotated[int, typer.Option(min=0, help="Window of counts; 0: they never expire.")] = 0,
    replace: ReplaceOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Import a MovieLens folder: the csv layout or the 100k layout with its user profiles."""
    require_free(out, replace)
    options = MovieLensOptions(
        name=f"movielens-{directory.resolve().name}",
        positive_rating=positive_rating,
        test_fraction=test_fraction,
        validation_members=validation_members,
        window_days=window_days,
    )
    with progress_console.status(f"Reading {directory}"):
        dataset = write_dataset(out, read_movielens(directory, options), replace=replace)
    _print_summary(dataset, output)


@app.command(
    name="generate",
    epilog=_examples(
        "retrieval-data generate data/feed",
        "retrieval-data generate data/week4 --days 28     # and the same world a week later:",
        "retrieval-data generate data/week5 --days 35",
        "retrieval-data generate data/bad --days 35 --shuffle-labels",
    ),
)
@exit_with_reason()
def generate_feed(
    *,
    out: OutArgument,
    members: Annotated[int, typer.Option(min=10, help="Members who join by the end of the world.")] = 2_000,
    items: Annotated[int, typer.Option(min=100, help="Items created by the end of the world.")] = 3_000,
    interactions: Annotated[
        int, typer.Option(min=1_000, max=1_000_000, help="Interactions over all --horizon-days.")
    ] = 100_000,
    horizon_days: Annotated[int, typer.Option(min=2, max=3_650, help="How long the world lasts.")] = 42,
    days: Annotated[int | None, typer.Option(help="Write its first days only; all when not given.")] = None,
    test_days: Annotated[int, typer.Option(help="The last of these days are the test part.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another world.")] = 0,
    shuffle_labels: Annotated[
        bool, typer.Option("--shuffle-labels", help="Sabotage: give training engagements to random items.")
    ] = False,
    replace: ReplaceOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Generate a synthetic feed, with drifting interests, new members, topics and words.

    The world depends on the seed, the sizes and the horizon only: with the same ones, more --days extend the data.
    """
    size = WorldSize(members, items, interactions, horizon_days, seed)
    snapshot = Snapshot(horizon_days if days is None else days, test_days, shuffle_labels)
    require_possible(size, snapshot)
    require_free(out, replace)
    by_day = track(range(snapshot.days), "Simulating days", console=progress_console, transient=True)
    dataset = write_dataset(out, generate(size, snapshot, by_day), replace=replace)
    _print_summary(dataset, output)


@app.command(
    epilog=_examples("retrieval-data validate data/feed", "retrieval-data validate https://example.com/feed -o json")
)
@exit_with_reason()
def validate(
    uri: Annotated[str, typer.Argument(metavar="URI", help="Directory or fsspec URI of a dataset.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Check a dataset and say what is in it; exit 65 with every problem named when it is refused."""
    with progress_console.status(f"Checking {uri}"):
        dataset = open_dataset(uri)
    _print_summary(dataset, output)


@app.command(epilog=_examples("retrieval-data oracle data/feed"))
@exit_with_reason()
def oracle(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A dataset made by `retrieval-data generate`.")],
    max_positives: Annotated[int, typer.Option(min=10, help="Test engagements to sample.")] = 2_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample and of the pools.")] = 0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Measure the ceiling of a synthetic dataset: recall@10 of the oracle that made it, and of popularity."""
    with progress_console.status("Ranking"):
        ceiling = measure_ceiling(open_dataset(uri), max_positives=max_positives, seed=seed)
    _print_ceiling(ceiling, output)


@app.command(
    name="remove",
    epilog=_examples(
        "retrieval-data remove /store/default/feed revisions/0b6c1d2e indexes/5f0d1a2b",
        "retrieval-data remove /store/default/feed --all --keep /data/feed",
    ),
)
@exit_with_reason()
def remove_directories(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="<storage.uri>/<namespace>/<name> of one object.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[FOLDER/ID]...", help="Below ROOT: revisions/ID, indexes/ID, ...")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that the object made, instead of names.")] = False,
    keep: Annotated[list[str] | None, typer.Option(help="URI that must stay; may be repeated.")] = None,
) -> None:
    """Remove bundles and index generations of one object; what is missing already is done.

    Refused: names and links that lead out of ROOT, and places that a --keep shares.
    """
    if bool(names) is everything:
        raise BadArguments(f"found {'both names and --all' if names else 'neither'}, expected names or --all")
    removed = remove_all(root, keep or ()) if everything else remove(root, names or (), keep or ())
    for name, was_there in removed.items():
        typer.echo(f"{name} {'removed' if was_there else 'was not there'}")


def _print_summary(dataset: Dataset, output: Output) -> None:
    summary = summarise(dataset)
    if output is Output.JSON:
        _print_json({to_camel(name): value for name, value in asdict(summary).items()})
        return
    table = Table(title=f"{summary.name} ({summary.provenance})", show_header=False, title_justify="left")
    for label, value in _summary_rows(summary):
        table.add_row(label, value)
    Console().print(table)


def _summary_rows(summary: Summary) -> list[tuple[str, str]]:
    return [
        ("provenance", summary.provenance),
        ("snapshot", summary.snapshot),
        ("members", f"{summary.members:,}"),
        ("items", f"{summary.items:,}"),
        ("interactions", f"{summary.interactions:,}, {summary.engaged_share:.1%} engaged"),
        ("time", f"{_day(summary.first_time)} to {_day(summary.last_time)} (UTC)"),
        ("split", summary.split_mode),
        ("training part", f"{summary.training:,} interactions, {summary.training_positives:,} positives"),
        ("test part", f"{summary.test:,} interactions, {summary.test_positives:,} positives"),
        ("members evaluable", f"{summary.members_evaluable:,}, and {summary.members_for_tuning:,} for tuning"),
        ("test positives on items\nwithout training positive", f"{summary.test_positives_on_untrained_items:.1%}"),
    ]


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _print_ceiling(ceiling: Ceiling, output: Output) -> None:
    if output is Output.JSON:
        rows = [
            {"pool": pool, "ranking": ranking, "recall": value, "halfWidth": ceiling.half_width(pool, ranking)}
            for (pool, ranking), value in ceiling.recall.items()
        ]
        _print_json({"positives": ceiling.positives, "absent": ceiling.absent, "k": 10, "metrics": rows})
        return
    table = Table(title=f"recall@10 in pools of 1 + 142 (synthetic), {ceiling.positives:,} test positives")
    for heading in ("pool", "ranking", "recall@10"):
        table.add_column(heading, justify="right" if heading == "recall@10" else "left")
    for (pool, ranking), value in ceiling.recall.items():
        half_width = ceiling.half_width(pool, ranking)
        table.add_row(pool, ranking, f"{value:.3f} ± {half_width:.3f}" if half_width else f"{value:.3f} exactly")
    Console().print(table)
    Console().print(f"{ceiling.absent:,} more test positives are on items that came after the training part.")


def _print_json(document: dict[str, object]) -> None:
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


if __name__ == "__main__":
    app()
