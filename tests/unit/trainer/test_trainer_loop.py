"""One step and the thread that prepares it: what stops a training, and that nothing moves when it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from retrieval_core.errors import Diverged
from retrieval_trainer.assembly import Training
from retrieval_trainer.checkpoint import Checkpoints, Progress
from retrieval_trainer.encoder import DualEncoder
from retrieval_trainer.journal import Journal
from retrieval_trainer.loop import Interrupted, train, train_step
from retrieval_trainer.optim import build_optimizer
from retrieval_trainer.prefetch import prefetch


class Recorded:
    """Metrics that are kept instead of sent."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.points.append((step, dict(metrics)))


def weights(training: Training) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in training.model.parameters()]


def test_a_non_finite_loss_stops_before_the_weights_move(training_of: Callable[..., Training]) -> None:
    training = training_of()
    with torch.no_grad():
        training.model.get_input_embeddings().weight[:] = torch.nan
    before = weights(training)
    optimizer = build_optimizer(training.model, weight_decay=0.1)
    with pytest.raises(Diverged, match=r"loss nan at step 3 of 4, .*learningRate \(now 0\.001\)"):
        train_step(training, DualEncoder(training.model), optimizer, training.step_input(0), step=2, stop=False)
    for was, parameter in zip(before, training.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, was, rtol=0, atol=0, equal_nan=True)


def test_a_step_moves_the_weights_and_reports(training_of: Callable[..., Training]) -> None:
    training = training_of()
    before = weights(training)
    optimizer = build_optimizer(training.model, weight_decay=0.1)
    report = train_step(training, DualEncoder(training.model), optimizer, training.step_input(0), step=0, stop=True)
    assert any(not torch.equal(was, p) for was, p in zip(before, training.model.parameters(), strict=True))
    assert report.stop
    assert report.tokens > 100
    assert 0 < report.hard_share < 1
    assert 1 <= report.positive_rank <= 8 + 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_lowers_the_loss(training_of: Callable[..., Training], tmp_path: object, precision: str) -> None:
    """On one batch, again and again: whatever cannot learn this cannot learn anything."""
    training = training_of(steps=30, learningRate=1e-2, precision=precision)
    optimizer = build_optimizer(training.model, weight_decay=0.0)
    encoder, step_input = DualEncoder(training.model), training.step_input(0)
    losses = [train_step(training, encoder, optimizer, step_input, step=s, stop=False).loss for s in range(30)]
    assert losses[-1] < losses[0] - 1
    assert all(parameter.dtype == torch.float32 for parameter in training.model.parameters())


def test_the_loop_logs_looks_and_ends_with_a_checkpoint(training_of: Callable[..., Training], tmp_path: object) -> None:
    training, metrics = training_of(steps=4), Recorded()
    checkpoints = Checkpoints(f"{tmp_path}/checkpoints", {})
    progress = train(training, checkpoints, Journal(metrics), lambda: False)
    assert (progress.step, progress.position) == (4, 32)
    assert [point["step"] for point in progress.history if "loss" in point] == [1, 2, 3, 4]
    assert [point["step"] for point in progress.history if "recall_uniform" in point] == [0, 2, 4]
    assert checkpoints.newest() == f"{tmp_path}/checkpoints/step-00000004"
    assert {"loss", "tokens_per_second", "recall_popular"} <= {name for _, point in metrics.points for name in point}


def test_a_request_to_stop_leaves_a_checkpoint_at_that_step(
    training_of: Callable[..., Training], tmp_path: object
) -> None:
    answers = iter([False, True])
    checkpoints = Checkpoints(f"{tmp_path}/checkpoints", {})
    with pytest.raises(Interrupted, match="stopped after step 2 of 4"):
        train(training_of(steps=4), checkpoints, Journal(Recorded(), quiet=True), lambda: next(answers))
    assert checkpoints.newest() == f"{tmp_path}/checkpoints/step-00000002"


def test_no_steps_leave_the_base_as_it_is(training_of: Callable[..., Training], tmp_path: object) -> None:
    """How the untrained baseline is made."""
    training = training_of(steps=0)
    before = weights(training)
    assert train(training, Checkpoints(f"{tmp_path}/c", {}), Journal(Recorded(), quiet=True), lambda: False).step == 0
    for was, parameter in zip(before, training.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, was, rtol=0, atol=0)


@pytest.mark.parametrize(("epochs", "expected"), [(1, lambda n: -(-n // 8)), (0.5, lambda n: -(-n // 16))])
def test_epochs_are_rounded_up_to_steps(
    training_of: Callable[..., Training], epochs: float, expected: Callable[[int], int]
) -> None:
    training = training_of(steps=None, epochs=epochs)
    assert training.steps == expected(len(training.examples))


@pytest.mark.parametrize("ranks_before", [1, 2, 3])
def test_epochs_end_after_as_many_examples_whatever_the_number_of_ranks_before(
    training_of: Callable[..., Training], tmp_path: object, ranks_before: int
) -> None:
    """Two steps of several ranks are more examples than two of this one; an epoch is an epoch all the same."""
    training = training_of(steps=None, epochs=0.1, checkpointEverySteps=1000)
    checkpoints = Checkpoints(f"{tmp_path}/checkpoints", {})
    optimizer = build_optimizer(training.model, weight_decay=0.0)
    train_step(training, DualEncoder(training.model), optimizer, training.step_input(0), step=0, stop=False)
    checkpoints.save(Progress(2, 2 * 8 * ranks_before), training.model, optimizer)
    progress = train(training, checkpoints, Journal(Recorded(), quiet=True), lambda: False)
    wanted = 0.1 * len(training.examples)
    assert 2 * 8 * 3 < wanted <= progress.position < wanted + 8
    assert progress.step == 2 + (progress.position - 2 * 8 * ranks_before) // 8
    assert checkpoints.newest() == f"{tmp_path}/checkpoints/step-{progress.step:08d}"


def test_prefetched_values_come_in_order_and_errors_at_their_own_key() -> None:
    def prepare(key: int) -> int:
        if key == 3:
            raise ValueError("three")
        return key * 10

    values = prefetch(prepare, range(5))
    assert [next(values) for _ in range(3)] == [0, 10, 20]
    with pytest.raises(ValueError, match="three"):
        next(values)


def test_prefetching_nothing_is_nothing() -> None:
    assert list(prefetch(lambda key: key, [])) == []
