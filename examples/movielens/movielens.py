"""MovieLens through the same manifest path: `make movielens DATA=path/to/ml-latest-small`.

Imports the data (members live in bursts of minutes, so the split is perMember), applies a manifest, waits for the
verdict, measures the untrained base beside it, and prints the table of docs/movielens.md. The data's licence keeps it
out of this repository; nothing of it is written but these aggregate numbers.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
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
console = Console(highlight=False)


def run(*command: str, expect: tuple[int, ...] = (0,)) -> None:
    console.print(f"\n[bold]$ {shlex.join(command)}[/bold]", soft_wrap=True)
    argv = [str(SCRIPTS / command[0]), *command[1:]]
    done = subprocess.run(argv, env=os.environ | {"RETRIEVAL_OPERATOR_HOME": str(RUN / "home")}, check=False)
    if done.returncode not in expect:
        console.print(f"[bold red]{command[0]} ended with {done.returncode}[/bold red]")
        raise typer.Exit(1)


def local(*arguments: str, expect: tuple[int, ...] = (0,)) -> None:
    run("retrieval-operator", "local", *arguments, expect=expect)


def the_only(pattern: str) -> Path:
    """The one path below the storage that matches."""
    [found] = (RUN / "storage" / "default" / "movies").glob(pattern)
    return found


def measure_with_untrained_base(manifest: dict[str, Any]) -> dict[str, Any]:
    """Evaluate again, with the base before any training step as one more subject. Everything else is cached."""
    data, bundle = str(RUN / "data"), the_only("revisions/*/bundle")
    evaluated = json.loads(the_only("evaluations/*/evaluation.json").read_text())
    model = manifest["spec"]["model"]
    config = {
        "formatVersion": 1,
        "revision": "untrained",
        "dataset": data,
        "base": {"preset": "tiny"},
        "dimensions": model["dimensions"],
        "hyperparameters": manifest["spec"]["training"]["hyperparameters"] | {"steps": 0, "learningRate": 0.001},
    }
    untrained = RUN / "untrained"
    run("retrieval-train", "--config", json.dumps(config), "--out", str(untrained / "bundle"))
    build = ("build", "--dataset", data, "--kind", "evaluation", "--factory", "Flat")
    run("retrieval-index", *build, "--bundle", str(untrained / "bundle"), "--out", str(untrained / "index"))
    generation = generation_directory(evaluated["candidate"]["generationId"])
    gates = json.dumps(manifest["spec"]["promotion"]["gates"])
    arguments = ["run", "--dataset", data, "--candidate-bundle", str(bundle), "--candidate-generation", str(generation)]
    arguments += ["--untrained-bundle", str(untrained / "bundle"), "--untrained-generation", str(untrained / "index")]
    arguments += ["--gates", gates, "--k", "10,100", "--segments", "all", "--out", str(RUN / "report")]
    run("retrieval-evaluate", *arguments)
    return dict(json.loads((RUN / "report" / "evaluation.json").read_text()))


def generation_directory(generation_id: str) -> Path:
    manifests = (RUN / "storage" / "default" / "movies" / "indexes").glob("*/MANIFEST.json")
    return next(path.parent for path in manifests if json.loads(path.read_text())["id"] == generation_id)


def report(evaluation: dict[str, Any], manifest: dict[str, Any], minutes: float, seed: int) -> str:
    """docs/movielens.md: every subject, and the paired differences to popularity."""
    members = evaluation["members"]
    coverage = evaluation["coverage"]
    chosen = manifest["spec"]["training"]["hyperparameters"]
    lines = [
        "# MovieLens latest-small",
        "",
        "Made by `make movielens DATA=path/to/ml-latest-small` (examples/movielens). Real data; a toy base "
        "(`preset:tiny`: 2 layers, 128 wide, trained from scratch on the titles) and a toy corpus.",
        "",
        "Split `perMember`: members of this data live in bursts of minutes, and a global split leaves too few of them. "
        "Each member's last 20 % of ratings are held out; counts and histories in every prompt, and the popularity "
        "baseline, are cut at that member's own time and see training parts only. Members for tuning (20 %, by a hash "
        "of the id) are not in this table; no choice was made by looking at it.",
        "",
        f"- members evaluated: {members['evaluated']}; held-out positives {coverage['testPositives']}, "
        f"of them on items absent from the index {coverage['absent']} (left out on both sides)",
        f"- training: {json.dumps(chosen)}, {minutes:.1f} min from manifest to verdict "
        f"on {os.cpu_count()} cores, seed {seed}",
        f"- correlation of popularity with cosine: {json.dumps(evaluation['popularityCorrelation'])}",
        "",
        "| subject | metric | pool | value | 95 % one-sided bounds |",
        "|---|---|---|---|---|",
        *(metric_row(row) for row in evaluation["metrics"] if row["segment"] == "all"),
        "",
        "Paired difference, model - baseline, by member:",
        "",
        "| baseline | metric | pool | delta | 95 % one-sided bounds |",
        "|---|---|---|---|---|",
        *(comparison_row(row) for row in evaluation["comparisons"] if row["segment"] == "all"),
        "",
    ]
    return "\n".join(lines)


def metric_row(row: dict[str, Any]) -> str:
    name = {"candidate": "**model**", "untrained": "untrained base"}.get(row["subject"], row["subject"])
    bounds = f"{row['lower']:.3f} to {row['upper']:.3f}" if row["lower"] is not None else "-"
    return f"| {name} | {row['metric']}@{row['k']} | {row['pool']} | {row['value']:.3f} | {bounds} |"


def comparison_row(row: dict[str, Any]) -> str:
    bounds = f"{row['lower']:+.3f} to {row['upper']:+.3f}"
    return f"| {row['baseline']} | {row['metric']}@{row['k']} | {row['pool']} | {row['delta']:+.3f} | {bounds} |"


def movielens(
    data: Annotated[
        Path, typer.Argument(help="The folder with ratings.csv and movies.csv.", exists=True, file_okay=False)
    ],
    seed: Annotated[int, typer.Option(help="Of the training.")] = 0,
    write: Annotated[bool, typer.Option("--write", help="Also write docs/movielens.md.")] = False,
) -> None:
    """Train, gate and measure on MovieLens."""
    if RUN.exists():
        local("down")
        shutil.rmtree(RUN)
    RUN.mkdir(parents=True)
    manifest_path = RUN / "movielens.yaml"
    manifest_path.write_text(Template((HERE / "movielens.yaml").read_text()).substitute(HOME_DIR=RUN))
    manifest = yaml.safe_load(manifest_path.read_text())
    manifest["spec"]["training"]["hyperparameters"]["seed"] = seed
    manifest_path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    run("retrieval-data", "import", "movielens", str(data), str(RUN / "data"))
    started = time.monotonic()
    try:
        local("apply", "-f", str(manifest_path), "--wait", "--timeout", "3600", expect=(0, 1))
        minutes = (time.monotonic() - started) / 60
        local("describe", "movies")
        text = report(measure_with_untrained_base(manifest), manifest, minutes, seed)
    finally:
        local("down")
    console.print(Markdown(text))
    if write:
        REPORT.write_text(text)
        console.print(f"{REPORT} is written; the plot is {RUN / 'report' / 'evaluation.png'}")


if __name__ == "__main__":
    typer.run(movielens)
