"""One training from start to end: join the ranks, train, check, publish, report."""

from __future__ import annotations

import signal
import threading

from retrieval_core.bundle import Bundle
from retrieval_core.files import canonical_json, require_writable
from retrieval_core.log import get_logger
from retrieval_core.reporting import MetricsLogger
from retrieval_trainer.assembly import Training, assemble
from retrieval_trainer.checkpoint import Checkpoints
from retrieval_trainer.config import TrainConfig
from retrieval_trainer.distributed import barrier, is_first_rank, process_group
from retrieval_trainer.finish import finished_bundle, publish_bundle, report_bundle, require_spread
from retrieval_trainer.journal import Journal
from retrieval_trainer.loop import Interrupted, train

log = get_logger(__name__)

# What a shell reports for a process that SIGTERM ended; a supervisor starts the same command again.
TERMINATED = 128 + signal.SIGTERM


def run(config: TrainConfig, *, out: str, checkpoints: str) -> None:
    """Make the bundle of `config` at `out`, or only report it when it is complete.

    Raises the errors of retrieval_core.errors, and SystemExit(143) after SIGTERM and a checkpoint.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with process_group() as device:
        done = finished_bundle(config, out)
        if done is not None:
            if is_first_rank():
                log.info("the bundle is complete already", bundle=done.id, out=out)
                _finish_again(done, config, checkpoints)
            return
        if is_first_rank():  # which is the one that writes
            require_writable(out)
            require_writable(checkpoints)
        training = assemble(config, device)
        saved = Checkpoints(checkpoints, _identity(training))
        with MetricsLogger() as metrics:
            try:
                progress = train(training, saved, Journal(metrics, quiet=not is_first_rank()), stop.is_set)
            except Interrupted as interruption:
                log.warning(str(interruption))
                raise SystemExit(TERMINATED) from None
        require_spread(training)
        if is_first_rank():
            bundle = publish_bundle(training, progress, out)
            log.info("the bundle is complete", bundle=bundle.id, out=out)
            report_bundle(bundle, progress.history, config)
            saved.remove_all()
        barrier()


def _finish_again(bundle: Bundle, config: TrainConfig, checkpoints: str) -> None:
    """Report a bundle that was complete before; and do what a process that ended right after publishing it left undone.

    Then its checkpoints are still there: they have the curves. The snapshot is the bundle's own, because the dataset
    is not needed any more and may be gone.
    """
    left = Checkpoints(checkpoints, {"revision": config.revision, "snapshot": bundle.training.get("snapshot")})
    history = left.history()
    report_bundle(bundle, history or (), config)
    if history is not None:
        left.remove_all()


def _identity(training: Training) -> dict[str, str]:
    """What a checkpoint belongs to. Not the URIs: the same data and base may be mounted elsewhere after a restart."""
    document = training.config.document()
    configuration = {name: value for name, value in document.items() if name not in {"dataset", "base"}}
    return {
        "revision": training.config.revision,
        "snapshot": training.dataset.snapshot,
        "base": training.base_sha256,
        "configuration": canonical_json(configuration),
    }
