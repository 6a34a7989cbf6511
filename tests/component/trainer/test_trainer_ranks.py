"""Two processes train what one process would: the same gradients, and a whole training under torchrun."""

from __future__ import annotations

import os
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


def launch(ranks: int, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("core", "trainer")),
        "OMP_NUM_THREADS": "1",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [*launcher, *command], env=environment, capture_output=True, text=True, timeout=150, check=False
    )


def test_gradients_of_two_ranks_equal_those_of_one(config_text: Callable[..., str], tmp_path: Path) -> None:
    """Eight rows on one rank, or four on each of two: the same global batch, so the same gradients."""
    worker = str(Path(__file__).with_name("step_worker.py"))
    found = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.safetensors"
        configs = [config_text(batchSize=8 // ranks, hardNegativeScope=s, maxGradNorm=1e6) for s in ("own", "all")]
        finished = launch(ranks, worker, str(out), *configs)
        assert finished.returncode == 0, finished.stderr[-3000:]
        found.append(load_file(out))
    one, two = found
    assert one.keys() == two.keys()
    assert {name.partition("/")[0] for name in one} == {"0", "1"}
    for name, gradient in one.items():
        assert gradient.abs().sum() > 0, "without gradients nothing is compared"
        tolerance = 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=tolerance, msg=name)


def test_a_training_under_torchrun_makes_one_bundle(config_text: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    finished = launch(2, "-m", "retrieval_trainer.cli", "--config", config_text(batchSize=4), "--out", str(out))
    assert finished.returncode == 0, finished.stderr[-3000:]
    bundle = Bundle.open(out)
    assert bundle.training["ranks"] == 2
    assert bundle.training["steps"] == 6
    assert not (tmp_path / "checkpoints").exists()
