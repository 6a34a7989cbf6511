"""`retrieval-evaluate`: measures stacks on held-out members, and asks dark stacks (docs/contracts.md sections 7, 8)."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

import httpx
import typer
from pydantic import TypeAdapter, ValidationError
from rich.markup import escape
from rich.table import Table

from retrieval_core.dataset import open_dataset
from retrieval_core.differences import differences
from retrieval_core.errors import BadArguments
from retrieval_core.exits import exit_with_reason
from retrieval_core.files import is_published, local_path, read_json, write_json
from retrieval_core.reporting import report
from retrieval_indexer.console import console, progress_bars, start_logging, titled
from retrieval_indexer.evaluation.gates import parse_gates
from retrieval_indexer.evaluation.power import difference_spread, members_to_decide, pass_probability
from retrieval_indexer.evaluation.run import LAST_FILE, PLOT_FILE, Evaluation, EvaluationRequest
from retrieval_indexer.evaluation.verification import TIMEOUT_S, Verifier, open_verification
from retrieval_indexer.members import sample_members
from retrieval_indexer.workspace import Workspace

VERIFICATION_FILE = "verification.json"
# MLflow bounds a metric's name by 250 characters; what comes before the segment takes fewer than 60 of them.
SEGMENT_CHARS = 160

app = typer.Typer(
    help="Measure retrieval on held-out members; verify a served stack.",
    epilog="Example:\n\n`retrieval-evaluate power --members 2000 --margin 0.02`; each command has more",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)

DatasetOption = Annotated[str, typer.Option(help="URI of the dataset directory.", show_default=False)]
BundleOption = Annotated[str, typer.Option(help="URI of its bundle.", show_default=False)]
OutOption = Annotated[str, typer.Option(help="URI of the directory to write.", show_default=False)]
GenerationOption = Annotated[
    str, typer.Option(help="URI of its evaluation index (retrieval-index build --kind evaluation).", show_default=False)
]
ServingOption = Annotated[str, typer.Option(help="URI of the serving index that it loaded.", show_default=False)]
OtherBundleOption = Annotated[str | None, typer.Option(help="URI of its bundle.", show_default=False)]
OtherGenerationOption = Annotated[str | None, typer.Option(help="URI of its evaluation index.", show_default=False)]
GatesOption = Annotated[str, typer.Option(help="A JSON file, or inline JSON: [{metric, k, pool, segment, ...}].")]
KOption = Annotated[str, typer.Option(help="Cuts for corpus recall and hit rate, comma-separated.")]
SegmentsOption = Annotated[str, typer.Option(help="all, new, category:FIELD=VALUE; comma-separated, or a JSON list.")]
PoolsOption = Annotated[
    str | None,
    typer.Option(help="pools.parquet of an earlier evaluation; default: draw them, by a seed from the snapshot."),
]
CacheOption = Annotated[
    str | None,
    typer.Option(help="URI where the per-member answers of a stack are kept, by their inputs."),
]


@app.command(
    epilog="Example:\n\n`retrieval-evaluate run --dataset ./data --candidate-bundle ./bundle "
    "--candidate-generation ./index --out ./evaluation "
    '--gates \'[{"metric": "recall", "k": 10, "pool": "matched", "min": "0.2"}]\'`'
)
@exit_with_reason()
def run(
    *,
    dataset: DatasetOption,
    candidate_bundle: BundleOption,
    candidate_generation: GenerationOption,
    out: OutOption,
    champion_bundle: OtherBundleOption = None,
    champion_generation: OtherGenerationOption = None,
    untrained_bundle: OtherBundleOption = None,
    untrained_generation: OtherGenerationOption = None,
    gates: GatesOption = "[]",
    k: KOption = "10,100,2000",
    segments: SegmentsOption = "all,new",
    confidence: Annotated[float, typer.Option(help="Of each one-sided bound.")] = 0.95,
    min_samples: Annotated[int, typer.Option(help="Members below which the table warns.")] = 300,
    pools: PoolsOption = None,
    cache: CacheOption = None,
    device: Annotated[str, typer.Option(help="torch device that encodes.", envvar="DEVICE")] = "cpu",
) -> None:
    """Evaluate a candidate, beside a champion and baselines, on the same held-out members.

    The untrained baseline is a bundle trained with `steps: 0` and its generation.
    """
    start_logging()
    request = EvaluationRequest(
        dataset=dataset,
        candidate=(candidate_bundle, candidate_generation),
        champion=_pair("champion", champion_bundle, champion_generation),
        untrained=_pair("untrained", untrained_bundle, untrained_generation),
        gates=parse_gates(gates),
        ks=_numbers("--k", k),
        segments=_segments(segments),
        confidence=confidence,
        min_samples=min_samples,
        pools=pools,
        out=out,
        cache=cache,
        device=device,
    )
    evaluation = Evaluation(request)
    document = evaluation.found_complete()
    if document is None:
        total = len(evaluation.evaluation_set)
        with progress_bars() as bars:
            document = evaluation.run(lambda name: bars(f"scoring members: {name}", total))
    print_evaluation(document)
    directory = local_path(out) if is_published(out, LAST_FILE) else Workspace(out).directory
    report(directory / LAST_FILE, artifacts={PLOT_FILE: directory / PLOT_FILE}, metrics=report_metrics(document))


@app.command(
    epilog="Example:\n\n`retrieval-evaluate verify --url http://127.0.0.1:8080 --bundle ./bundle --generation ./index "
    "--dataset ./data --out ./verification`"
)
@exit_with_reason()
def verify(
    *,
    url: Annotated[str, typer.Option(help="Base URL of the encoder server.", show_default=False)],
    bundle: BundleOption,
    generation: ServingOption,
    dataset: DatasetOption,
    out: OutOption,
    members: Annotated[int, typer.Option(help="Members to ask for, sampled by a stable hash.")] = 50,
    k: Annotated[int, typer.Option(help="Items to ask for.")] = 2000,
) -> None:
    """Ask a served stack and compare its answers with direct computation."""
    start_logging()
    workspace = Workspace(out)
    opened_bundle, opened_generation = open_verification(bundle, generation)
    data = open_dataset(dataset)
    asked_for = {"generationId": opened_generation.id, "members": members, "k": k}
    document = _finished_verification(out, asked_for)
    if document is None:
        chosen = sample_members(data, opened_generation.manifest.as_of, members, "verify").tolist()
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client, progress_bars() as bars:
            verifier = Verifier(client, opened_bundle, opened_generation, data)
            document = verifier.verify(chosen, k, bars("asking", len(chosen))) | asked_for | {"url": url}
        write_json(workspace.directory / VERIFICATION_FILE, document)
        workspace.publish(VERIFICATION_FILE)
    print_verification(document, data.spec.provenance)
    report(local_path(out) / VERIFICATION_FILE)


@app.command(epilog="Example:\n\n`retrieval-evaluate power --members 2000 --baseline 0.3 --margin 0.02`")
@exit_with_reason()
def power(
    *,
    members: Annotated[int, typer.Option(help="Held-out members.", min=1, show_default=False)],
    margin: Annotated[float, typer.Option(help="maxRegression of the gate.", min=0, max=1, show_default=False)],
    baseline: Annotated[float, typer.Option(help="The champion's value of the metric.", min=0, max=1)] = 0.3,
    correlation: Annotated[
        float, typer.Option(help="Of the two models' hits on a member; 0.5 is a guess.", min=0, max=1)
    ] = 0.5,
    confidence: Annotated[float, typer.Option(help="Of the one-sided bound.", min=0.5, max=0.999)] = 0.95,
) -> None:
    """How likely a candidate that is exactly as good as the champion passes a gate, and how many members it takes."""
    spread = difference_spread(baseline=baseline, correlation=correlation)
    passing = pass_probability(members=members, spread=spread, margin=margin, confidence=confidence)
    needed = members_to_decide(delta=0.0, spread=spread, margin=margin, confidence=confidence)
    console.print(
        f"An equal candidate passes with probability {passing:.2f} at {members} members and margin {margin}; "
        f"{'no number of members decides' if needed is None else f'{needed} members pass it 4 times in 5'} "
        f"(assumed spread of a member's difference {spread:.3f})."
    )


def report_metrics(document: dict[str, Any]) -> dict[str, float]:
    """What MLflow draws: the metrics of every subject, under names that it allows."""
    named = {
        f"{row['subject']}/{row['metric']}_at_{row['k']}_{row['pool']}/{_allowed(row['segment'])}": row["value"]
        for row in document["metrics"]
    }
    return {name: value for name, value in named.items() if value is not None}


def _allowed(segment: str) -> str:
    """The segment in characters that MLflow allows and that are no path; a hash keeps apart what would become equal."""
    readable = segment.replace("=", ".", 1)
    if len(segment) <= SEGMENT_CHARS and re.fullmatch(r"[\w: -]+(=[\w.: -]+)?", segment):
        return readable  # the first dot is the equals sign, so no other segment reads like it
    digest = hashlib.sha256(segment.encode()).hexdigest()[:8]
    return re.sub(r"[^\w.: -]", "_", readable)[:SEGMENT_CHARS] + f"-{digest}"


def print_evaluation(document: dict[str, Any]) -> None:
    """Metrics of the segment `all`, then the gates' numbers."""
    provenance, evaluated = document["dataset"]["provenance"], document["members"]["evaluated"]
    subjects = list(dict.fromkeys(row["subject"] for row in document["metrics"]))
    table = Table(title=titled(provenance, f"{evaluated} held-out members, mean and one-sided bounds"))
    for heading in ("metric", *subjects):
        table.add_column(heading, overflow="fold")
    cells: dict[str, dict[str, str]] = {}
    for row in document["metrics"]:
        if row["segment"] == "all":
            cells.setdefault(f"{row['metric']}@{row['k']} {row['pool']}", {})[row["subject"]] = _cell(row)
    for metric, values in cells.items():
        table.add_row(metric, *(values.get(subject, "") for subject in subjects))
    console.print(table)
    for row in document["comparisons"]:
        if (row["baseline"], row["pool"], row["segment"]) == ("notPersonal", "matched", "all"):
            console.print(_share_of_the_member(row))
    if document["gates"]:
        console.print(_gate_table(document, titled(provenance, "gates")))
    coverage = document["coverage"]
    console.print(f"{coverage['absent']} of {coverage['testPositives']} test positives are not in the corpus.")
    if evaluated < document["minSamples"]:
        console.print(f"Only {evaluated} members: fewer than the {document['minSamples']} that a verdict needs.")
    for sentence in filter(None, document["leakage"].values()):
        console.print(f"Leakage: {sentence}")


def _share_of_the_member(row: dict[str, Any]) -> str:
    """How much of the candidate's value is gone when its item vectors meet the mean member instead of the right one."""
    numbers = f"{row['delta']:+.4f} ({row['lower']:+.4f} to {row['upper']:+.4f})"
    shown = "" if row["lower"] > 0 else ": it is not shown to be personal"
    return f"{row['metric']}@{row['k']} {row['pool']}, candidate - notPersonal: {numbers}{shown}."


def _gate_table(document: dict[str, Any], title: str) -> Table:
    table = Table(title=title)
    table.add_column("gate", no_wrap=True)
    for heading in ("members (differ)", "value", "champion", "delta and bounds", "to decide", "problem"):
        table.add_column(heading)
    for gate in document["gates"]:
        differ = "" if gate["discordant"] is None else f" ({gate['discordant']})"
        table.add_row(
            escape(f"{gate['metric']}@{gate['k']} {gate['pool']} {gate['segment']}"),
            f"{gate['n']}{differ}",
            _number(gate["value"]),
            _number(gate["championValue"]),
            "" if gate["delta"] is None else f"{gate['delta']:+.4f} ({gate['lower']:+.4f} to {gate['upper']:+.4f})",
            _number(gate["nToDecide"], "d"),
            gate["problem"] or "",
        )
    return table


def print_verification(document: dict[str, Any], provenance: str) -> None:
    latency = document["latencyMs"]
    at = f" at {document['url']}" if "url" in document else ""
    console.print(
        titled(
            provenance,
            f"{document['matched']} of {document['asked']} answers equal direct computation; "
            f"latency ms{at} p50 {latency['p50']}, p95 {latency['p95']}, p99 {latency['p99']}",
        )
    )
    for mismatch in document["mismatches"]:
        console.print(f"  {mismatch}")


def _cell(row: dict[str, Any]) -> str:
    """The value; with its bounds where it is a stack's (those of baselines are in evaluation.json)."""
    if row["value"] is None:
        return str(row["problem"])
    bounds = f" ({row['lower']:.3f}-{row['upper']:.3f})" if row["subject"] in ("candidate", "champion") else ""
    return f"{row['value']:.3f}{bounds}"


def _number(value: float | None, form: str = ".4f") -> str:
    return "" if value is None else format(value, form)


def _pair(name: str, bundle: str | None, generation: str | None) -> tuple[str, str] | None:
    if (bundle is None) != (generation is None):
        raise BadArguments(f"give both --{name}-bundle and --{name}-generation, or neither")
    return None if bundle is None or generation is None else (bundle, generation)


def _segments(text: str) -> list[str]:
    """Names separated by commas; a JSON list where a name holds one."""
    if not text.lstrip().startswith("["):
        names = [name.strip() for name in text.split(",")]
    else:
        try:
            names = TypeAdapter(list[str]).validate_json(text)
        except ValidationError:
            raise BadArguments(
                f'--segments is {text!r}, expected names separated by commas, or a JSON list such as ["all", "new"]'
            ) from None
    return list(dict.fromkeys(filter(None, names)))


def _numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise BadArguments(f"{option} is {text!r}, expected positive integers such as 10,100,2000")
    return list(dict.fromkeys(map(int, parts)))


def _finished_verification(out: str, asked_for: dict[str, Any]) -> dict[str, Any] | None:
    """The document of an earlier run of the same command; another stack's, or of other answers, is refused.

    Whom it asked does not count: a server that is started again may have another port.
    """
    if not is_published(out, VERIFICATION_FILE):
        return None
    document: dict[str, Any] = read_json(local_path(out) / VERIFICATION_FILE)
    others = differences(asked_for, document)
    if others:
        raise BadArguments(f"{out} holds another verification, with {', '.join(others)}; choose another --out")
    return document


if __name__ == "__main__":
    app()
