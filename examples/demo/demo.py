"""The whole life of a model on one machine, on synthetic data. `make demo` runs this; KEEP=1 leaves it running.

Every step is a command that is printed before it runs; nothing here does what a user could not do by hand. Only the
clients (clients.py) and the table of recommendations are the demo's own.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template
from typing import Annotated, Any

import httpx
import typer
from clients import FAILED, MIXED
from rich.console import Console
from rich.table import Table

from retrieval_core.dataset import Dataset, open_dataset
from retrieval_core.dataset.features import FeatureView

HERE = Path(__file__).resolve().parent
DEMO = Path(os.environ.get("RETRIEVAL_DEMO_DIR", HERE.parent.parent / ".retrieval" / "demo"))
SCRIPTS = Path(sys.executable).parent
# One world; later snapshots only go on. Sizes and margins were chosen with `retrieval-operator local plan feed`, which
# prints the power of the gates; see feed.yaml.
WORLD = ("--members", "5000", "--items", "4000", "--interactions", "120000", "--horizon-days", "42", "--seed", "7")
APPLY_TIMEOUT_S = 1500
COLLECT_TIMEOUT_S = 180
NOT_REACHED = 1  # the exit code of `apply --wait` when the object was refused

console = Console(highlight=False)


class DemoFailed(Exception):
    """The demo did not show what it promises."""


def run(*command: str, expect: int = 0, quiet: bool = False) -> str:
    """Run one of our commands, shown as a user would type it. Returns what it printed when quiet, else ""."""
    if not quiet:
        console.print(f"\n[bold]$ {shlex.join(command)}[/bold]", soft_wrap=True)
    argv = [str(SCRIPTS / command[0]), *command[1:]]
    stdout = subprocess.PIPE if quiet else None
    done = subprocess.run(argv, env=environment(), stdout=stdout, text=True, check=False)
    if done.returncode != expect:
        raise DemoFailed(f"{shlex.join(command)} ended with {done.returncode}, expected {expect}")
    return done.stdout or ""


def environment() -> dict[str, str]:
    return os.environ | {"RETRIEVAL_OPERATOR_HOME": str(DEMO / "home")}


def local(*arguments: str, expect: int = 0, quiet: bool = False) -> str:
    return run("retrieval-operator", "local", *arguments, expect=expect, quiet=quiet)


def act(title: str) -> None:
    console.print()
    console.rule(f"[bold]{title}[/bold]", align="left")


def generate(name: str, days: int, *more: str) -> None:
    run("retrieval-data", "generate", str(DEMO / "data" / name), *WORLD, "--days", str(days), *more)


def apply(name: str, *, dataset: str, revision: str, refresh: str, expect: int = 0) -> None:
    text = Template((HERE / "feed.yaml").read_text())
    manifest = DEMO / f"{name}.yaml"
    manifest.write_text(text.substitute(DEMO=DEMO, DATA=dataset, REVISION=revision, REFRESH=refresh))
    local("apply", "-f", str(manifest), "--wait", "--timeout", str(APPLY_TIMEOUT_S), expect=expect)


def status() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(local("get", "feed", "-o", "json", quiet=True))
    return dict(found["status"])


def description() -> dict[str, Any]:
    return dict(json.loads(local("describe", "feed", "-o", "json", quiet=True)))


def ids(champion: dict[str, Any]) -> str:
    return f"{champion['bundleId']} {champion['generationId']}"


def served(address: str) -> dict[str, Any]:
    """What whoever answers at the address says it is: bundle_id, generation_id, dimension, count."""
    return dict(httpx.get(f"{address}/v1/ids", timeout=30).raise_for_status().json())


@contextmanager
def control_plane() -> Iterator[None]:
    """`retrieval-operator local run` in the background, as in a second terminal; its log is in the demo's directory."""
    command = ("retrieval-operator", "local", "run")
    console.print(f"\n[bold]$ {shlex.join(command)} &[/bold]")
    with (DEMO / "controller.log").open("w") as log:
        argv = [str(SCRIPTS / command[0]), *command[1:]]
        process = subprocess.Popen(argv, env=environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)


class Clients:
    """Clients in a process of their own (clients.py), from now until `stop`."""

    def __init__(self, address: str, dataset: Path) -> None:
        members = ",".join(str(member) for member in open_dataset(str(dataset)).member_ids[:200])
        argv = [sys.executable, str(HERE / "clients.py"), address, members]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def stop(self) -> dict[str, Any]:
        self._process.send_signal(signal.SIGTERM)
        printed, _ = self._process.communicate(timeout=60)
        return dict(json.loads(printed))


def show_clients(result: dict[str, Any], stacks: dict[str, str]) -> None:
    """What each kind of client noticed. Raises DemoFailed when that is more than the ids of two stacks."""
    table = Table(title="Clients during the takeover (synthetic data)", title_justify="left")
    for column in ("clients", "requests", FAILED, MIXED, "answered by"):
        table.add_column(column)
    problems: list[str] = []
    for kind, seen in result.items():
        outcomes: Counter[str] = Counter()
        for _second, outcome, count in seen["outcomes"]:
            outcomes[outcome] += count
        by = ", ".join(f"{stacks[pair]}: {outcomes[pair]}" for pair in stacks)
        table.add_row(kind, str(outcomes.total()), str(outcomes[FAILED]), str(outcomes[MIXED]), by)
        if set(outcomes) - set(stacks):
            problems.append(f"{kind} clients noticed the takeover: {dict(outcomes)} {seen['failures']}")
        elif set(outcomes) != set(stacks):
            problems.append(f"{kind} clients did not see both stacks: the takeover was not under load")
    console.print(table)
    if problems:
        raise DemoFailed("; ".join(problems))


def wait_until_collected(stack: str) -> None:
    """Until the former stack is drained and removed, after the rollback window."""
    deadline = time.monotonic() + COLLECT_TIMEOUT_S
    while time.monotonic() < deadline:
        events = description()["events"]
        if any(event["reason"] == "StackCollected" and stack in event["message"] for event in events):
            return
        time.sleep(1)
    raise DemoFailed(f"stack {stack} was not collected within {COLLECT_TIMEOUT_S} s")


def show_recommendations(address: str, ds: Dataset, members: int = 4, items: int = 5) -> None:
    """A few members: what they engaged with, beside what they are recommended."""
    view, as_of = FeatureView(ds, for_serving=True), ds.last_event_time + 1
    title = {str(item): str(view.item_features(index, as_of)["title"]) for index, item in enumerate(ds.item_ids)}
    table = Table(title="Members (synthetic): engaged with, and recommended", title_justify="left", show_lines=True)
    for column in ("member", "latest engagements", "recommended now"):
        table.add_column(column)
    by_activity = sorted(range(len(ds.member_ids)), key=lambda member: -len(view.positives_before(member, as_of)))
    with httpx.Client(timeout=30) as client:
        for member in by_activity[: 50 * members : 50]:
            engaged = [str(ds.item_ids[item]) for item in view.positives_before(member, as_of)]
            name = str(ds.member_ids[member])
            body = {"member_id": name, "k": items, "exclude": engaged[-1000:]}
            answer = client.post(f"{address}/v1/retrieve", json=body).raise_for_status().json()
            columns = [[title[item] for item in found] for found in (engaged[-items:], answer["ids"])]
            table.add_row(name, *("\n".join(column) for column in columns))
    console.print(table)


def first_life() -> dict[str, Any]:
    act("1. One manifest: train, register, evaluate, gate, index, serve, promote")
    generate("day-28", 28)
    run("retrieval-data", "oracle", str(DEMO / "data" / "day-28"))
    started = time.monotonic()
    apply("feed-1", dataset="day-28", revision="day-28", refresh="none")
    console.print(f"\nRevision 1 promoted {time.monotonic() - started:.0f} s after its manifest was applied.")
    local("describe", "feed")
    return status()


def takeover(first: dict[str, Any]) -> dict[str, Any]:
    act("2. A week of new data: revision 2 takes over while clients ask")
    generate("day-35", 35)
    local("plan", "feed")
    clients = Clients(first["address"], DEMO / "data" / "day-28")
    try:
        apply("feed-2", dataset="day-35", revision="day-35", refresh="none")
        console.print("The clients go on until the former stack is drained and gone ...")
        wait_until_collected(first["champion"]["stack"])
    finally:
        result = clients.stop()
    second = status()
    show_clients(result, {ids(first["champion"]): "revision 1", ids(second["champion"]): "revision 2"})
    return second


def sabotage(second: dict[str, Any]) -> None:
    act("3. A sabotaged revision (shuffled labels) is refused with its numbers; the champion keeps serving")
    generate("day-35-sabotaged", 35, "--shuffle-labels")
    apply("feed-3", dataset="day-35-sabotaged", revision="sabotaged", refresh="none", expect=NOT_REACHED)
    end = status()["history"][0]
    if end["outcome"] != "Rejected":
        raise DemoFailed(f"the sabotaged revision ended as {end['outcome']}: {end['message']}")
    answer = served(second["address"])
    if f"{answer['bundle_id']} {answer['generation_id']}" != ids(second["champion"]):
        raise DemoFailed(f"{second['address']} is answered by {answer}, not by revision 2")
    console.print(
        f"\nRefused, as it should be (exit code {NOT_REACHED}). {second['address']} is answered by revision 2."
    )
    local("describe", "feed")


def refresh(second: dict[str, Any]) -> None:
    act("4. An index refresh brings in new items under the same model")
    generate("day-36", 36)
    console.print(
        "The manifest names day-35 as the data's revision again, so nothing is trained; a new index.refresh.revision "
        "asks for an index of what is there by day 36."
    )
    apply("feed-4", dataset="day-36", revision="day-35", refresh="day-36")
    after = status()
    if after["champion"]["bundleId"] != second["champion"]["bundleId"]:
        raise DemoFailed("a refresh must keep the bundle")
    now = served(after["address"])["count"]
    before = json.loads((Path(second["champion"]["generationUri"]) / "MANIFEST.json").read_text())["count"]
    console.print(f"Items in the served index (synthetic): {before} before, {now} now.")
    if now <= before:
        raise DemoFailed("the refresh brought in no new items")
    show_recommendations(after["address"], open_dataset(str(DEMO / "data" / "day-36")))


def demo(keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end.")] = False) -> None:
    """Run the demo. All data is synthetic, and so is every number."""
    console.print("All data in this demo is synthetic, and so is every number it prints.")
    if DEMO.exists():
        local("down", quiet=True)
        shutil.rmtree(DEMO)
    DEMO.mkdir(parents=True)
    started = time.monotonic()
    try:
        with control_plane():
            second = takeover(first_life())
            sabotage(second)
            refresh(second)
            page = description()["page"]
        console.print(f"\nDone in {(time.monotonic() - started) / 60:.1f} min. MLflow's pages: {page}")
    except DemoFailed as error:
        console.print(f"[bold red]The demo failed:[/bold red] {error}", soft_wrap=True)
        console.print(f"The control plane's log: {DEMO / 'controller.log'}", soft_wrap=True)
        raise typer.Exit(1) from None
    finally:
        if keep:
            leave_running()
        else:
            stop()


def stop() -> None:
    local("down")
    console.print("Everything is stopped, MLflow too; `KEEP=1 make demo` leaves it running to look around.")


def leave_running() -> None:
    command = SCRIPTS / "retrieval-operator"
    console.print("Left running: the champion at its address, and MLflow. To look around, and to stop them:")
    console.print(f"  export RETRIEVAL_OPERATOR_HOME={DEMO / 'home'}", soft_wrap=True)
    for what in ("describe feed", "run    # the control plane again", "down"):
        console.print(f"  {command} local {what}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(demo)
