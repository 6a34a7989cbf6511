"""What people see of a training: a progress bar or plain lines, metrics in MLflow, the curve at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from retrieval_trainer.config import TrainConfig
from retrieval_trainer.validation import RANDOM_RECALL

# Without a terminal, a line about every so many seconds: enough to see life in a log, not enough to fill it.
LINE_EVERY_S = 10.0
# Steps between metrics in MLflow: a request takes milliseconds, and a curve needs no more points.
METRICS_EVERY_STEPS = 10


class Metrics(Protocol):
    """retrieval_core.reporting.MetricsLogger, or nothing."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...


class Journal:
    """The first rank's record of a training. With `quiet` (the other ranks) every method does nothing."""

    def __init__(self, metrics: Metrics, *, quiet: bool = False, console: Console | None = None) -> None:
        self._metrics = metrics
        self._quiet = quiet
        self._console = console or Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._last_line = -LINE_EVERY_S
        self._steps = 0
        self._tokens = 0
        self._since = time.perf_counter()

    @contextmanager
    def steps(self, done: int, steps: int) -> Iterator[None]:
        """Show progress from step `done` to `steps` for the time of the block."""
        self._steps, self._tokens, self._since = steps, 0, time.perf_counter()
        if not self._console.is_terminal or self._quiet:
            yield
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=self._console) as self._bar:
            self._bar.add_task("", total=steps, completed=done)
            yield
        self._bar = None

    def step(self, point: Mapping[str, float], tokens: int) -> None:
        """One step is done: `point` has its step and metrics, `tokens` those of all ranks."""
        if self._quiet:
            return
        step = int(point["step"])
        self._tokens += tokens
        per_second = self._tokens / max(time.perf_counter() - self._since, 1e-9)
        text = f"loss {point['loss']:.3f}, {per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)
        elif time.perf_counter() - self._last_line >= LINE_EVERY_S or step == self._steps:
            self._last_line = time.perf_counter()
            self._console.print(f"step {step} of {self._steps}: {text}")
        if step % METRICS_EVERY_STEPS == 0 or step == self._steps:
            self._metrics.log({**point, "tokens_per_second": per_second}, step)

    def look(self, point: Mapping[str, float]) -> None:
        """Validation recall was measured."""
        if self._quiet:
            return
        self._console.print(
            f"step {int(point['step'])}: validation recall@10 in pools of 143, model / popularity: "
            f"uniform {point['recall_uniform']:.3f} / {point['popularity_recall_uniform']:.3f}, "
            f"popular {point['recall_popular']:.3f} / {point['popularity_recall_popular']:.3f} "
            f"(random {RANDOM_RECALL:.3f})"
        )
        self._metrics.log({name: value for name, value in point.items() if name != "step"}, int(point["step"]))


def plot_curves(history: tuple[dict[str, float], ...], config: TrainConfig, provenance: str, path: Path) -> None:
    """Loss, and validation recall beside popularity and random, over steps, as a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second to load, needed once, at the end

    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, recall_axes = figure.subplots(1, 2)
    losses = [point for point in history if "loss" in point]
    loss_axes.plot([p["step"] for p in losses], [p["loss"] for p in losses])
    loss_axes.set(title=f"revision {config.revision}: training loss", xlabel="step", ylabel="loss (nats)")
    looks = [point for point in history if "recall_uniform" in point]
    steps = [point["step"] for point in looks]
    for pool, color in (("uniform", "tab:blue"), ("popular", "tab:orange")):
        recall_axes.plot(steps, [p[f"recall_{pool}"] for p in looks], "o-", color=color, label=f"model, {pool} pools")
        popularity = [p[f"popularity_recall_{pool}"] for p in looks]
        recall_axes.plot(steps, popularity, "--", color=color, label=f"popularity, {pool} pools")
    recall_axes.axhline(RANDOM_RECALL, color="gray", linestyle=":", label="random")
    recall_axes.set(title=f"validation recall@10 ({provenance} data)", xlabel="step", ylim=(0, 1))
    recall_axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
