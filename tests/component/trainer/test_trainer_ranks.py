"""Two processes train what one process would: the same gradients, and a whole training under torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retrieval_core.bundle import Bundle

pytestmark = pytest.mark.component

ROOT = Path(__file__).parents[3]


def start(ranks: int, *command: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("core", "trainer")),
        "OMP_NUM_THREADS": "1",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*launcher, *command], env=environment, stdout=pipe, stderr=pipe, text=True)


def launch(ranks: int, *command: str) -> None:
    process = start(ranks, *command)
    try:
        _, errors = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]


def test_gradients_of_two_ranks_equal_those_of_one(config_text: Callable[..., str], tmp_path: Path) -> None:
    """Eight rows on one rank, or four on each of two: the same global batch, so the same gradients."""
    worker = str(Path(__file__).with_name("step_worker.py"))
    found = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.safetensors"
        configs = [config_text(batchSize=8 // ranks, hardNegativeScope=s, maxGradNorm=1e6) for s in ("own", "all")]
        launch(ranks, worker, str(out), *configs)
        found.append(load_file(out))
    one, two = found
    assert one.keys() == two.keys()
    assert {name.partition("/")[0] for name in one} == {"0", "1"}
    for name, gradient in one.items():
        assert gradient.abs().sum() > 0, "without gradients nothing is compared"
        tolerance = 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=tolerance, msg=name)


def training(config: str, out: Path) -> tuple[str, ...]:
    return "-m", "retrieval_trainer.cli", "--config", config, "--out", str(out)


@pytest.fixture(scope="module")
def config(config_text: Callable[..., str]) -> str:
    return config_text(batchSize=4, steps=60, checkpointEverySteps=5)


@pytest.fixture(scope="module")
def undisturbed(config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of two ranks that nobody stopped."""
    out = tmp_path_factory.mktemp("undisturbed") / "bundle"
    launch(2, *training(config, out))
    return out


def test_a_training_under_torchrun_makes_one_bundle(undisturbed: Path) -> None:
    bundle = Bundle.open(undisturbed)
    assert bundle.training["ranks"] == 2
    assert bundle.training["steps"] == 60
    assert not (undisturbed.parent / "checkpoints").exists()


def test_two_ranks_that_were_stopped_end_like_undisturbed_ones(
    config: str,
    undisturbed: Path,
    tmp_path: Path,
    wait_for: Callable[..., None],
    newest_step: Callable[[Path], int],
) -> None:
    """SIGTERM to torchrun reaches both ranks at different steps; the bundle is the same to the bit all the same."""
    out, checkpoints = tmp_path / "bundle", tmp_path / "checkpoints"
    stopped = start(2, *training(config, out))
    wait_for((checkpoints / "step-00000005" / "checkpoint.json").exists, stopped, timeout_s=150)
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode != 0
    assert "a checkpoint was written" in errors
    assert 5 <= newest_step(checkpoints) < 60
    assert not out.exists()

    launch(2, *training(config, out))
    assert Bundle.open(out).id == Bundle.open(undisturbed).id
    assert not checkpoints.exists()
