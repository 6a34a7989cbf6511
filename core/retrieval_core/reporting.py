"""What programs tell MLflow (docs/contracts.md section 2, "Report"). The only core module that uses mlflow.

MLflow is the record for people and never a condition for the work: metrics are dropped when it is away, and a finished
program that cannot report within two minutes ends as TemporarilyUnavailable; started again, it only reports.
mlflow is imported inside functions: it takes a second and 100 MB, and most programs run without it.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import tenacity

from retrieval_core.errors import BadArguments, BadInput, TemporarilyUnavailable
from retrieval_core.files import sha256_file
from retrieval_core.log import get_logger

URI_VARIABLE = "MLFLOW_TRACKING_URI"
RUN_VARIABLE = "RETRIEVAL_RUN_ID"
REPORT_ARTIFACT = "report.json"
REPORT_TAG = "retrieval.report"

# How long a finished program tries to report (contract section 2).
RETRY_SECONDS = 120.0
# mlflow by itself repeats one request for minutes; the only retry is ours. What a user has set stays.
_REQUEST_SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# Answers that a retry cannot change.
_REFUSALS = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"})

# mlflow takes at most 1000 metrics in a request.
METRICS_PER_REQUEST = 500
# The oldest are dropped when MLflow stays away: some hours of training.
METRICS_KEPT = 20_000
METRICS_INTERVAL_S = 3.0
METRICS_LONGEST_PAUSE_S = 60.0
METRICS_CLOSE_S = 15.0

log = get_logger(__name__)


def report(
    last_file: Path, *, artifacts: Mapping[str, Path] | None = None, metrics: Mapping[str, float] | None = None
) -> None:
    """Tell MLflow that the work is complete: artifacts, metrics, `report.json` (the last file), then the tag.

    `artifacts`: path inside the run -> local file. Metrics that are not finite are left out.
    No-op when the environment names no run, or when the run has this very report. May be repeated at any point.
    Raises BadArguments when the environment names only half of a run, TemporarilyUnavailable when MLflow cannot be
    reached for two minutes, BadInput when it refuses the run.
    """
    run = MlflowRun.from_environment()
    if run:
        run.report(last_file, artifacts or {}, metrics or {})


class MlflowRun:
    """The MLflow run that this process was asked to report to."""

    def __init__(self, uri: str, run_id: str, retry_seconds: float = RETRY_SECONDS) -> None:
        self.uri = uri
        self.run_id = run_id
        self.retry_seconds = retry_seconds

    @classmethod
    def from_environment(cls) -> MlflowRun | None:
        """None when neither variable is set; BadArguments when only one is."""
        uri, run_id = os.environ.get(URI_VARIABLE), os.environ.get(RUN_VARIABLE)
        if uri and run_id:
            return cls(uri, run_id)
        if not uri and not run_id:
            return None
        found, missing = (URI_VARIABLE, RUN_VARIABLE) if uri else (RUN_VARIABLE, URI_VARIABLE)
        raise BadArguments(f"{found} is set but {missing} is not; set both to report to MLflow, or neither")

    @cached_property
    def client(self) -> Any:
        for name, value in _REQUEST_SETTINGS.items():
            os.environ.setdefault(name, value)
        import mlflow  # noqa: PLC0415 - see the module's docstring

        return mlflow.MlflowClient(self.uri)

    def report(self, last_file: Path, artifacts: Mapping[str, Path], metrics: Mapping[str, float]) -> None:
        """See `report`."""
        sha256 = sha256_file(last_file)
        # With the file's own time a repeated report writes the same points again, not new ones.
        timestamp_ms = int(last_file.stat().st_mtime * 1000)
        points = [Point(name, float(value), timestamp_ms, 0) for name, value in metrics.items() if math.isfinite(value)]

        def attempt() -> None:
            if self.client.get_run(self.run_id).data.tags.get(REPORT_TAG) == sha256:
                return
            for destination, path in artifacts.items():
                self._upload(path, destination)
            self.log_points(points)
            self._upload(last_file, REPORT_ARTIFACT)
            self.client.set_tag(self.run_id, REPORT_TAG, sha256)

        self._retry(attempt)

    def log_points(self, points: list[Point]) -> None:
        """One attempt to log metrics; raises whatever mlflow raises."""
        import mlflow.entities  # noqa: PLC0415 - see the module's docstring

        for start in range(0, len(points), METRICS_PER_REQUEST):
            chunk = [mlflow.entities.Metric(*point) for point in points[start : start + METRICS_PER_REQUEST]]
            self.client.log_batch(self.run_id, metrics=chunk)

    def _upload(self, path: Path, destination: str) -> None:
        target = PurePosixPath(destination)
        folder = None if target.parent == PurePosixPath() else str(target.parent)
        if path.name == target.name:
            self.client.log_artifact(self.run_id, str(path), folder)
            return
        with tempfile.TemporaryDirectory() as scratch:  # mlflow keeps a file's own name
            renamed = shutil.copyfile(path, Path(scratch) / target.name)
            self.client.log_artifact(self.run_id, str(renamed), folder)

    def _retry(self, attempt: Callable[[], None]) -> None:
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_delay(self.retry_seconds),
            wait=tenacity.wait_exponential_jitter(max=10),
            retry=tenacity.retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            retrying(attempt)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            if _may_pass(error):
                raise TemporarilyUnavailable(
                    f"MLflow at {self.uri} could not be reached for {self.retry_seconds:.0f} s ({reason}); the work "
                    "itself is complete: start the same command again, it will only report"
                ) from error
            if _is_refusal(error):
                raise BadInput(f"MLflow at {self.uri} refuses to record run {self.run_id}: {reason}") from error
            raise


class Point(NamedTuple):
    """One value of a metric, in the order of mlflow's Metric."""

    name: str
    value: float
    timestamp_ms: int
    step: int


class MetricsLogger(AbstractContextManager["MetricsLogger"]):
    """Metrics of a running program, sent in the background; nothing it does can fail or delay the training.

    Without a run in the environment it does nothing. Values that are not finite are left out. While MLflow is away the
    newest values are kept and tried again; what is left 15 s after `close` is dropped with a warning.
    """

    def __init__(self, run: MlflowRun | None = None) -> None:
        self._run = run or MlflowRun.from_environment()
        self._waiting: deque[Point] = deque(maxlen=METRICS_KEPT)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_until_closed, name="metrics", daemon=True)
        if self._run:
            self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue values for one step."""
        if self._run and not self._closing.is_set():
            now_ms = int(time.time() * 1000)
            points = [
                Point(name, float(value), now_ms, step) for name, value in metrics.items() if math.isfinite(value)
            ]
            with self._lock:
                self._waiting.extend(points)

    def close(self) -> None:
        """Send what is left, for at most 15 s. May be called twice."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(METRICS_CLOSE_S)
        if self._waiting:
            log.warning("metrics were not sent to MLflow", count=len(self._waiting))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send_until_closed(self) -> None:
        pause_s = METRICS_INTERVAL_S
        while not self._closing.wait(pause_s):
            pause_s = METRICS_INTERVAL_S if self._send() else min(2 * pause_s, METRICS_LONGEST_PAUSE_S)
        self._send()

    def _send(self) -> bool:
        """One attempt for all that waits; False when it failed, and then everything still waits."""
        assert self._run is not None
        with self._lock:
            points = list(self._waiting)
        if not points:
            return True
        try:
            self._run.log_points(points)
        except Exception as error:  # whatever mlflow raises, training goes on
            log.warning("MLflow is away; metrics wait", waiting=len(points), error=str(error).partition("\n")[0])
            return False
        sent = set(points)
        with self._lock:
            while self._waiting and self._waiting[0] in sent:
                self._waiting.popleft()
        return True


def _may_pass(error: BaseException) -> bool:
    """Whether waiting may help: the server is away, overloaded or failing, or does not let us in yet."""
    import mlflow.exceptions  # noqa: PLC0415 - see the module's docstring

    if isinstance(error, mlflow.exceptions.MlflowException):
        return not _is_refusal(error)
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def _is_refusal(error: BaseException) -> bool:
    return getattr(error, "error_code", None) in _REFUSALS
