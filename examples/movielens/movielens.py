"""MovieLens through the same manifest path: `make movielens DATA=path/to/ml-latest-small`.

Imports the data (members live in bursts of minutes, so the split is perMember), applies a manifest, waits for the
verdict, and measures the untrained base and more training seeds beside it, by the same programs. Prints the table of
docs/movielens.md. The data's licence keeps it out of this repository; only these aggregate numbers are written.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markdown import Markdown

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
RUN = Path(os.environ.get("RETRIEVAL_MOVIELENS_DIR", REPOSITORY / ".retrieval" / "movielens"))
REPORT = REPOSITORY / "docs" / "movielens.md"
SCRIPTS = Path(sys.executable).parent
APPLY_TIMEOUT_S = 3600
# Days that counts reach back: of 0 (no end), 180, 365, 500, 730, 1000, 1500 and 2000 the one with which popularity
# ranks best for validation members (choices.md), so that the baseline is as strong as it can be.
WINDOW_DAYS = 1500
# What the table of differences has: the columns, and the recalls as (pool, k).
BASELINES = ("popularity", "popularityTrained", "notPersonal")
COMPARED = (("matched", 10), ("uniform", 10), ("corpus", 100))
console = Console(highlight=False)


@dataclass(frozen=True)
class Outcome:
    """One seed's evaluation.json."""

    seed: int
    evaluation: dict[str, Any]

    def difference(self, baseline: str, pool: str, k: int) -> dict[str, Any]:
        """The paired difference of the model to a baseline, recall@k."""
        return next(
            row
            for row in self.evaluation["comparisons"]
            if (row["baseline"], row["metric"], row["pool"], row["k"]) == (baseline, "recall", pool, k)
        )


@dataclass(frozen=True)
class Minutes:
    """How long it took from the manifest to the verdict, and the training alone of that."""

    all: float
    training: float


def run(*command: str, expect: tuple[int, ...] = (0,), quiet: bool = False) -> str:
    """Run one of our commands, shown as a user would type it. `quiet`: its output is returned, not shown."""
    console.print(f"\n[bold]$ {shlex.join(command)}[/bold]", soft_wrap=True)
    argv = [str(SCRIPTS / command[0]), *command[1:]]
    environment = os.environ | {"RETRIEVAL_OPERATOR_HOME": str(RUN / "home")}
    done = subprocess.run(argv, env=environment, check=False, text=True, stdout=subprocess.PIPE if quiet else None)
    if done.returncode not in expect:
        console.print(f"[bold red]{command[0]} ended with {done.returncode}[/bold red]")
        raise typer.Exit(1)
    return done.stdout or ""


def local(*arguments: str, expect: tuple[int, ...] = (0,), quiet: bool = False) -> str:
    return run("retrieval-operator", "local", *arguments, expect=expect, quiet=quiet)


def the_only(pattern: str) -> Path:
    """The one path below the model's storage that matches."""
    found = list((RUN / "storage" / "default" / "movies").glob(pattern))
    if len(found) != 1:
        console.print(
            f"[bold red]found {len(found)} of {pattern}, expected one: see the message of apply above[/bold red]"
        )
        raise typer.Exit(1)
    return found[0]


def prepare(data: Path, seed: int) -> tuple[Path, dict[str, Any]]:
    """Import the data and write the manifest of this run; returns its path and document."""
    run("retrieval-data", "import", "movielens", str(data), str(RUN / "data"), "--window-days", str(WINDOW_DAYS))
    path = RUN / "movielens.yaml"
    path.write_text(Template((HERE / "movielens.yaml").read_text()).substitute(HOME_DIR=RUN))
    manifest = yaml.safe_load(path.read_text())
    manifest["spec"]["training"]["hyperparameters"]["seed"] = seed
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return path, dict(manifest)


def train(name: str, manifest: dict[str, Any], changes: dict[str, Any]) -> Path:
    """Train the manifest's model with other hyperparameters and index it; returns its directory."""
    model, directory = manifest["spec"]["model"], RUN / name
    config = {
        "formatVersion": 1,
        "revision": name,
        "dataset": str(RUN / "data"),
        "base": {"preset": "tiny"},
        "prompts": model["prompts"],
        "dimensions": model["dimensions"],
        "hyperparameters": manifest["spec"]["training"]["hyperparameters"] | changes,
    }
    run("retrieval-train", "--config", json.dumps(config), "--out", str(directory / "bundle"))
    build = ("build", "--dataset", str(RUN / "data"), "--kind", "evaluation", "--factory", "Flat")
    run("retrieval-index", *build, "--bundle", str(directory / "bundle"), "--out", str(directory / "index"))
    return directory


def evaluate(bundle: Path, generation: Path, untrained: Path, manifest: dict[str, Any], out: Path) -> dict[str, Any]:
    """evaluation.json of one bundle beside the untrained base, on the members outside the validation part."""
    arguments = ["--dataset", str(RUN / "data"), "--candidate-bundle", str(bundle)]
    arguments += ["--candidate-generation", str(generation)]
    arguments += ["--untrained-bundle", str(untrained / "bundle"), "--untrained-generation", str(untrained / "index")]
    arguments += ["--gates", json.dumps(manifest["spec"]["promotion"]["gates"]), "--k", "10,100", "--segments", "all"]
    run("retrieval-evaluate", "run", *arguments, "--cache", str(RUN / "answers"), "--out", str(out))
    return dict(json.loads((out / "evaluation.json").read_text()))


def measured_stack() -> tuple[Path, Path]:
    """Bundle and evaluation generation of the manifest's revision. The gates may have refused it; it was measured."""
    evaluated = json.loads(the_only("evaluations/*/evaluation.json").read_text())
    manifests = (RUN / "storage" / "default" / "movies" / "indexes").glob("*/MANIFEST.json")
    wanted = evaluated["candidate"]["generationId"]
    generation = next(path.parent for path in manifests if json.loads(path.read_text())["id"] == wanted)
    return the_only("revisions/*/bundle"), generation


def apply(path: Path) -> Minutes:
    """Apply the manifest and wait for its verdict, which may be a refusal."""
    started = time.monotonic()
    try:
        local("apply", "-f", str(path), "--wait", "--timeout", str(APPLY_TIMEOUT_S), expect=(0, 1))
        minutes = (time.monotonic() - started) / 60
        local("describe", "movies")
        workloads = json.loads(local("describe", "movies", "-o", "json", quiet=True))["workloads"]
    finally:
        local("down")
    trainings = [work["finished_at"] - work["started_at"] for work in workloads if work["step"] == "train"]
    return Minutes(minutes, sum(trainings) / 60)


def outcomes_of(manifest: dict[str, Any], seeds: list[int]) -> Iterator[Outcome]:
    """The first seed as the manifest made it, the others by the trainer alone; every one evaluated alike."""
    untrained = train("untrained", manifest, {"steps": 0})
    yield Outcome(seeds[0], evaluate(*measured_stack(), untrained, manifest, RUN / "report"))
    for seed in seeds[1:]:
        directory = train(f"seed-{seed}", manifest, {"seed": seed})
        bundle, generation = directory / "bundle", directory / "index"
        yield Outcome(seed, evaluate(bundle, generation, untrained, manifest, directory / "report"))


def report(manifest: dict[str, Any], minutes: Minutes, outcomes: list[Outcome]) -> str:
    """docs/movielens.md: every subject for the first seed, the paired differences to the baselines for all."""
    evaluation = outcomes[0].evaluation
    coverage = evaluation["coverage"]
    seeds = " ".join(str(outcome.seed) for outcome in outcomes)
    command = f"make movielens DATA=path/to/ml-latest-small SEEDS='{seeds}' WRITE=1"
    lines = [
        "# MovieLens latest-small",
        "",
        f"Made by `{command}`. Real data; a toy base "
        "(`preset:tiny`: 2 layers, 128 wide, trained from scratch on the titles) and a toy corpus.",
        "",
        "Split `perMember`: members of this data live in bursts of minutes, and a global split leaves too few of them. "
        "Each member's last 20 % of ratings are held out; counts and histories in every prompt, and the popularity "
        f"baseline, see training parts only and are cut at that member's own time (counts: the {WINDOW_DAYS} days "
        "before). What the split does not cut: the weights learn from other members' training parts at any time, also "
        "after a member's own; `popularity` does not, `popularityTrained` does (it counts the whole training part). "
        "`notPersonal` is the model itself without the member: its item vectors scored by the mean member. Members for "
        "tuning (20 %, by a hash of the id) are not in these tables, and no choice was made by looking at the others.",
        "",
        f"- members evaluated: {evaluation['members']['evaluated']}; held-out positives {coverage['testPositives']}, "
        f"of them on items absent from the index {coverage['absent']} (left out on both sides)",
        f"- training: {json.dumps(manifest['spec']['training']['hyperparameters'])}",
        f"- seed {outcomes[0].seed}: training {minutes.training:.1f} min of the {minutes.all:.1f} min from manifest to "
        f"verdict (indexing, evaluation and rollout are the rest), on {os.cpu_count()} cores",
        f"- correlation of popularity with cosine: {json.dumps(evaluation['popularityCorrelation'])}",
        "",
        f"## All subjects, seed {outcomes[0].seed}",
        "",
        "| subject | metric | pool | value | 95 % one-sided bounds |",
        "|---|---|---|---|---|",
        *(metric_row(row) for row in evaluation["metrics"] if row["segment"] == "all"),
        "",
        "## Model - baseline, paired by member, all seeds",
        "",
        f"| metric | seed | {' | '.join(f'model - {baseline}' for baseline in BASELINES)} |",
        "|---|---|---|---|---|",
        *(difference_row(outcome, pool, k) for pool, k in COMPARED for outcome in outcomes),
        "",
        "Pools hold 1 positive and 142 negatives (random: 0.070), drawn evenly (`uniform`) or from the positive's "
        "neighbours in popularity (`matched`). In brackets the 95 % one-sided bounds.",
        "",
        (HERE / "choices.md").read_text().strip(),
        "",
    ]
    return "\n".join(lines)


def metric_row(row: dict[str, Any]) -> str:
    name = {"candidate": "**model**", "untrained": "untrained base"}.get(row["subject"], row["subject"])
    bounds = f"{row['lower']:.3f} to {row['upper']:.3f}" if row["lower"] is not None else "-"
    return f"| {name} | {row['metric']}@{row['k']} | {row['pool']} | {row['value']:.3f} | {bounds} |"


def difference_row(outcome: Outcome, pool: str, k: int) -> str:
    shown = [outcome.difference(baseline, pool, k) for baseline in BASELINES]
    cells = [f"{row['delta']:+.3f} ({row['lower']:+.3f} to {row['upper']:+.3f}): {verdict(row)}" for row in shown]
    return f"| recall@{k} {pool} | {outcome.seed} | {' | '.join(cells)} |"


def verdict(row: dict[str, Any]) -> str:
    if row["lower"] > 0:
        return "above"
    return "below" if row["upper"] < 0 else "not told apart"


def movielens(
    data: Annotated[
        Path, typer.Argument(help="The folder with ratings.csv and movies.csv.", exists=True, file_okay=False)
    ],
    seeds: Annotated[str, typer.Option(help="Of the training; the first goes through the manifest.")] = "0",
    write: Annotated[bool, typer.Option("--write", help="Also write docs/movielens.md.")] = False,
) -> None:
    """Train, gate and measure on MovieLens."""
    if RUN.exists():
        local("down")
        shutil.rmtree(RUN)
    RUN.mkdir(parents=True)
    numbers = [int(seed) for seed in seeds.split()]
    path, manifest = prepare(data, numbers[0])
    minutes, outcomes = apply(path), list[Outcome]()
    for outcome in outcomes_of(manifest, numbers):
        outcomes.append(outcome)
        text = report(manifest, minutes, outcomes)
        console.print(Markdown(text))
        if write:  # after every seed: each takes minutes
            REPORT.write_text(text)
            console.print(f"{REPORT} is written; the plot is {RUN / 'report' / 'evaluation.png'}")


if __name__ == "__main__":
    typer.run(movielens)
