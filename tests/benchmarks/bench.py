"""`make bench`: times and memory of local mode on this machine, as tables. Nothing here fails on a slow machine.

One real life in a fresh home with empty caches (synthetic data, the demo's manifest), the control plane in a process of
its own: how long until revision 1 is promoted and in which step, what the control plane weighs, what a settled object
costs. Then the ratios of ratios.py on what was trained. At most 8 minutes: a machine too busy to get there is told so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from ratios import ROUNDS, Ratio, ratios
from rich.console import Console
from rich.table import Table

from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.store import LocalModelStore
from retrieval_operator.api.status import Champion, RetrievalModelStatus

REPOSITORY = Path(__file__).resolve().parents[2]
MANIFEST = REPOSITORY / "examples" / "demo" / "feed.yaml"
# The demo's world (examples/demo/demo.py).
WORLD = ("--members", "5000", "--items", "4000", "--interactions", "120000", "--horizon-days", "42", "--seed", "7")
KEY = "default/feed"
SCRIPTS = Path(sys.executable).parent
LOOK_S = 0.5
QUIET_S = 30  # after the promotion: the former steps' last writes, and the demo's rollback window of 20 s
SETTLED_S = 75  # the control plane looks at everything once a minute
GIVE_UP_S = 360
MB = 10**6

console = Console(highlight=False)


@dataclass
class Life:
    """Seconds until promoted, seconds per step, and the control plane's largest resident memory in MB.

    `champion` None: it was given up on after so many seconds.
    """

    seconds: float
    steps: dict[str, float]
    peak_mb: float
    champion: Champion | None


@dataclass(frozen=True)
class Settled:
    """A stretch of time with nothing to do: passes, files changed, CPU seconds, resident memory in MB."""

    passes: int
    written: list[str]
    cpu_s: float
    rss_mb: float


class Bench:
    """A scratch home and the commands that run in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = LocalHome(directory / "home")
        self.metrics_port = free_port()
        ours = {name: text for name, text in os.environ.items() if not name.startswith("RETRIEVAL_")}
        self.environment = ours | {
            "RETRIEVAL_OPERATOR_HOME": str(self.home.root),
            "RETRIEVAL_OPERATOR_METRICS_PORT": str(self.metrics_port),
            "XDG_CACHE_HOME": str(directory / "cache"),  # what a freshly installed clone has: no toy base yet
        }

    def run(self, *command: str) -> None:
        argv = [str(SCRIPTS / command[0]), *command[1:]]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"bench: {' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")

    def local(self, *arguments: str) -> None:
        self.run("retrieval-operator", "local", *arguments)

    @contextmanager
    def control_plane(self) -> Iterator[psutil.Process]:
        with (self.directory / "controller.log").open("w") as log:
            argv = [str(SCRIPTS / "retrieval-operator"), "local", "run"]
            process = subprocess.Popen(argv, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
            try:
                yield psutil.Process(process.pid)
            finally:
                self.local("down")  # stops the control plane, too
                process.wait()

    def manifest(self) -> str:
        path = self.directory / "feed.yaml"
        text = Template(MANIFEST.read_text())
        path.write_text(text.substitute(DEMO=self.directory, DATA="day-28", REVISION="one", REFRESH="none"))
        return str(path)

    def status(self) -> RetrievalModelStatus:
        found = asyncio.run(LocalModelStore(self.home).get(KEY))
        assert found is not None
        return found.status

    def passes(self) -> int:
        """Reconcile passes so far, as the control plane counts them."""
        page = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False).raise_for_status().text
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        return int(sum(sample.value for sample in samples if sample.name == "retrieval_operator_reconcile_total"))

    def files(self) -> dict[str, int]:
        """Every file of the home and when it changed (ns): state, records, MLflow's database; not logs and locks."""
        root = self.home.root
        paths = [path for path in root.rglob("*") if path.is_file() and path.name not in {"log", "lock"}]
        return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in paths if path.parent.name != "locks"}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def live(bench: Bench, process: psutil.Process) -> Life:
    """From nothing to revision 1 promoted."""
    started = since = time.monotonic()
    steps: dict[str, float] = {}
    step, peak = "generate the data", 0.0
    bench.run("retrieval-data", "generate", str(bench.directory / "data" / "day-28"), *WORLD, "--days", "28")
    bench.local("apply", "-f", bench.manifest())
    while True:
        status, now = bench.status(), time.monotonic()
        steps[step] = steps.get(step, 0.0) + now - since
        since, peak = now, max(peak, process.memory_info().rss / MB)
        if status.champion is not None or now - started > GIVE_UP_S:
            return Life(now - started, steps, peak, status.champion)
        if status.phase == "Stalled":
            raise SystemExit(f"bench: not promoted: {status.history[0].message}")
        found = str(status.candidate.step) if status.candidate else "Pending (MLflow starts)"
        if found != step:
            console.print(f"[{now - started:5.0f} s] {found}")
        step = found
        time.sleep(LOOK_S)


def settle(bench: Bench, process: psutil.Process) -> Settled:
    """What the control plane does while there is nothing to do."""
    time.sleep(QUIET_S)
    files, cpu, passes = bench.files(), sum(process.cpu_times()[:2]), bench.passes()
    time.sleep(SETTLED_S)
    after, rss = bench.files(), process.memory_info().rss / MB
    written = sorted(name for name in files.keys() | after.keys() if files.get(name) != after.get(name))
    return Settled(bench.passes() - passes, written, sum(process.cpu_times()[:2]) - cpu, rss)


def life_table(life: Life) -> Table:
    table = _table("Local mode, synthetic data", "what", "measured", "goal")
    reached = f"{life.seconds:.0f}" if life.champion else f"not within {life.seconds:.0f}"
    table.add_row("installed clone to revision 1 promoted (s)", reached, "300")
    for step, seconds in life.steps.items():
        table.add_row(f"  of it {step} (s; share)", f"{seconds:.0f}; {seconds / life.seconds:.0%}")
    table.add_row("control plane, largest resident memory (MB)", f"{life.peak_mb:.0f}", "120")
    return table


def settled_table(settled: Settled) -> Table:
    table = _table(f"{SETTLED_S} s of a settled object", "what", "measured", "goal")
    table.add_row("reconcile passes", str(settled.passes))
    table.add_row("files written by anybody in the home", str(len(settled.written)), "0")
    table.add_row(
        "control plane, CPU time (s; share of a core)", f"{settled.cpu_s:.2f}; {settled.cpu_s / SETTLED_S:.1%}"
    )
    table.add_row("control plane, resident memory (MB)", f"{settled.rss_mb:.0f}", "120")
    return table


def ratio_table(found: list[Ratio]) -> Table:
    table = _table(f"Encoding and searching, medians of {ROUNDS}", "what", "ms", "beside (ms)", "times faster")
    for ratio in found:
        numbers = (f"{ratio.ours_s * 1e3:.4g}", f"{ratio.plain_s * 1e3:.4g}", f"{ratio.times_faster:.2f}")
        table.add_row(ratio.what, *numbers)
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def measure(scratch: Path) -> None:
    bench = Bench(scratch)
    with bench.control_plane() as process:
        life = live(bench, process)
        console.print(life_table(life))
        if life.champion is None:
            raise SystemExit("bench: this machine is too busy; the rest was not measured")
        console.print(f"Watching it at rest for {QUIET_S + SETTLED_S} s ...")
        settled = settle(bench, process)
    console.print(settled_table(settled))
    if settled.written:
        console.print(f"Written: {', '.join(settled.written)}", soft_wrap=True)
    champion = life.champion
    console.print(ratio_table(ratios(champion.bundle_uri, champion.generation_uri, champion.data_uri)))


def main() -> None:
    # A TERM must end what was started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: ended by TERM"))
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before it began; a single run")
    with tempfile.TemporaryDirectory(prefix="retrieval-bench-") as scratch:
        measure(Path(scratch))


if __name__ == "__main__":
    main()
