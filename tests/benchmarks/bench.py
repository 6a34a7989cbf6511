"""`make bench`: times and memory of local mode on this machine, as a table. Nothing here fails on a slow machine.

One real life in a fresh home (synthetic data, the demo's manifest), with the control plane in a process of its own:
- seconds from `apply` to promoted, and in which step they went;
- the control plane's resident memory while it works and when the object is settled;
- what a settled object costs: files written and CPU time over a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[2]
MANIFEST = REPOSITORY / "examples" / "demo" / "feed.yaml"
WORLD = ("--members", "5000", "--items", "4000", "--interactions", "120000", "--horizon-days", "42", "--seed", "7")
SCRIPTS = Path(sys.executable).parent
SETTLED_S = 60
MIB = 2**20


class Bench:
    """A scratch home and the commands that run in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = os.environ | {"RETRIEVAL_OPERATOR_HOME": str(directory / "home")}

    def run(self, *command: str) -> str:
        argv = [str(SCRIPTS / command[0]), *command[1:]]
        done = subprocess.run(argv, env=self.environment, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def local(self, *arguments: str) -> str:
        return self.run("retrieval-operator", "local", *arguments)

    @contextmanager
    def control_plane(self) -> Iterator[psutil.Popen]:
        with (self.directory / "controller.log").open("w") as log:
            argv = [str(SCRIPTS / "retrieval-operator"), "local", "run"]
            process = psutil.Popen(argv, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
            try:
                yield process
            finally:
                process.terminate()
                process.wait(timeout=60)
                self.local("down")

    def manifest(self) -> Path:
        path = self.directory / "feed.yaml"
        text = Template(MANIFEST.read_text())
        path.write_text(text.substitute(DEMO=self.directory, DATA="day-28", REVISION="one", REFRESH="none"))
        return path

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.local("get", "feed", "-o", "json"))["status"])


def live(bench: Bench, process: psutil.Popen) -> tuple[float, dict[str, float], float]:
    """Seconds until promoted, seconds per step, and the largest resident memory (MiB) of the control plane."""
    bench.local("apply", "-f", str(bench.manifest()))
    started, since, step, peak = time.monotonic(), time.monotonic(), "", 0.0
    seconds: dict[str, float] = {}
    while True:
        status = bench.status()
        peak = max(peak, process.memory_info().rss / MIB)
        now, candidate = time.monotonic(), status.get("candidate")
        found = candidate["step"] if candidate else "Pending"
        seconds[step or found] = seconds.get(step or found, 0.0) + now - since
        since, step = now, found
        if status.get("champion"):
            return now - started, seconds, peak
        if status.get("phase") == "Stalled":
            raise SystemExit(f"bench: the object is stalled: {status['history'][0]['message']}")
        time.sleep(0.5)


def settled(bench: Bench, process: psutil.Popen) -> tuple[int, float, float]:
    """Files written, CPU seconds and resident memory (MiB) of the control plane over a minute with nothing to do."""
    time.sleep(10)  # let the last passes end
    before, cpu = written(bench), sum(process.cpu_times()[:2])
    time.sleep(SETTLED_S)
    rss = process.memory_info().rss / MIB
    return len(written(bench) - before), sum(process.cpu_times()[:2]) - cpu, rss


def written(bench: Bench) -> set[tuple[str, float]]:
    """(path, time of change) of the state files that the control plane writes for objects."""
    root = bench.directory / "home"
    places = [root / name for name in ("objects", "status", "events", "traffic")]
    return {(str(path), path.stat().st_mtime) for place in places for path in place.rglob("*.json*")}


def main() -> None:
    console = Console(highlight=False)
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, synthetic data; single run")
    with tempfile.TemporaryDirectory(prefix="retrieval-bench-") as scratch:
        bench = Bench(Path(scratch))
        bench.run("retrieval-data", "generate", str(bench.directory / "data" / "day-28"), *WORLD, "--days", "28")
        with bench.control_plane() as process:
            total, steps, peak = live(bench, process)
            files, cpu, rss = settled(bench, process)
    table = Table(title="local mode", title_justify="left")
    table.add_column("what")
    table.add_column("measured", justify="right")
    table.add_column("goal", justify="right")
    table.add_row("apply to promoted (s)", f"{total:.0f}", "300")
    for step, seconds in steps.items():
        table.add_row(f"  of it {step} (s; share)", f"{seconds:.0f}; {seconds / total:.0%}", "")
    table.add_row("control plane, largest resident memory (MiB)", f"{peak:.0f}", "114 (120 MB)")
    table.add_row("control plane, resident memory when settled (MiB)", f"{rss:.0f}", "114 (120 MB)")
    table.add_row(f"state files written in {SETTLED_S} s when settled", str(files), "0")
    table.add_row(f"CPU time in {SETTLED_S} s when settled (s; share)", f"{cpu:.2f}; {cpu / SETTLED_S:.1%}", "")
    console.print(table)


if __name__ == "__main__":
    main()
