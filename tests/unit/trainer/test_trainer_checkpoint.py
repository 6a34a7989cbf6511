"""Checkpoints: what is saved comes back bit by bit, unfinished ones are ignored, foreign and damaged ones refused."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import torch
from torch import nn

from retrieval_core.errors import BadInput
from retrieval_trainer import checkpoint
from retrieval_trainer.checkpoint import KEPT, LAST_FILE, Checkpoints, Progress
from retrieval_trainer.optim import build_optimizer

IDENTITY = {"revision": "r1", "snapshot": "s1"}


def trained(steps: int, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[1].weight.requires_grad_(requires_grad=False)
    optimizer = build_optimizer(model, weight_decay=0.1)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One update that depends on torch's generator, as dropout would."""
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Local storage, and storage that is not."""
    monkeypatch.setenv("RETRIEVAL_CACHE_DIR", str(tmp_path / "cache"))
    return str(tmp_path / "checkpoints") if request.param == "local" else f"memory://{tmp_path.name}/checkpoints"


def test_training_goes_on_exactly_as_if_it_had_not_stopped(uri: str) -> None:
    model, optimizer = trained(3)
    checkpoints = Checkpoints(uri, IDENTITY)
    checkpoints.save(Progress(3, 24, ({"step": 3, "loss": 1.5},)), model, optimizer)
    for _ in range(2):
        step(model, optimizer)

    resumed, fresh_optimizer = trained(0, seed=99)
    resumed[1].load_state_dict({"weight": model[1].weight, "bias": resumed[1].bias})  # frozen: from the base
    newest = checkpoints.newest()
    assert newest is not None
    progress, exact = checkpoints.load(newest, resumed, fresh_optimizer)
    assert (progress, exact) == (Progress(3, 24, ({"step": 3, "loss": 1.5},)), True)
    for _ in range(2):
        step(resumed, fresh_optimizer)
    for wanted, found in zip(model.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_there_is_none_at_first(uri: str) -> None:
    assert Checkpoints(uri, IDENTITY).newest() is None


def test_an_unfinished_checkpoint_is_ignored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), IDENTITY)
    for number in (1, 2):
        checkpoints.save(Progress(number, number), *trained(number))
    (tmp_path / "step-00000002" / LAST_FILE).unlink()
    assert checkpoints.newest() == f"{tmp_path}/step-00000001"


def test_old_ones_are_pruned_and_all_are_removed_in_the_end(uri: str) -> None:
    checkpoints = Checkpoints(uri, IDENTITY)
    for number in range(1, 6):
        checkpoints.save(Progress(number, number), *trained(number))
    filesystem, path = fsspec.core.url_to_fs(uri)
    names = sorted(name.rpartition("/")[2] for name in filesystem.ls(path, detail=False))
    assert names == [f"step-{number:08d}" for number in (4, 5)]
    assert len(names) == KEPT
    checkpoints.remove_all()
    assert checkpoints.newest() is None
    assert not filesystem.exists(path)


def test_the_curves_are_those_of_the_newest_complete_one(uri: str) -> None:
    checkpoints = Checkpoints(uri, IDENTITY)
    assert checkpoints.history() is None
    for number in (1, 2):
        checkpoints.save(Progress(number, number, ({"step": number, "loss": 1.5},)), *trained(number))
    assert Checkpoints(uri, {"revision": "r1"}).history() == ({"step": 2, "loss": 1.5},)
    assert Checkpoints(uri, {"revision": "r2"}).history() is None


def test_files_of_others_in_the_directory_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("not a checkpoint")
    checkpoints = Checkpoints(str(tmp_path), IDENTITY)
    checkpoints.save(Progress(1, 1), *trained(1))
    checkpoints.remove_all()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    Checkpoints(str(tmp_path), IDENTITY).save(Progress(1, 1), *trained(1))
    suffixes = {file.suffix for file in tmp_path.rglob("*") if file.is_file()}
    assert suffixes == {".safetensors", ".json"}


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    Checkpoints(str(tmp_path), IDENTITY).save(Progress(1, 1), *trained(1))
    other = Checkpoints(str(tmp_path), IDENTITY | {"snapshot": "s2"})
    with pytest.raises(BadInput, match=r"another training .different snapshot.; remove the checkpoints directory"):
        other.load(f"{tmp_path}/step-00000001", *trained(0))


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "random.safetensors"])
def test_a_truncated_file_is_refused_by_name_of_the_checkpoint(tmp_path: Path, name: str) -> None:
    checkpoints = Checkpoints(str(tmp_path), IDENTITY)
    checkpoints.save(Progress(1, 1), *trained(1))
    file = tmp_path / "step-00000001" / name
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(BadInput, match="step-00000001 is damaged"):
        checkpoints.load(f"{tmp_path}/step-00000001", *trained(0))


def test_the_random_state_of_a_later_rank_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 1 of the gathered states is a view into the middle of a tensor, on which torch crashes in C."""
    wanted = torch.Generator().manual_seed(7).get_state()
    monkeypatch.setattr(checkpoint, "rank", lambda: 1)
    checkpoint._restore_random({"cpu": torch.stack([torch.get_rng_state(), wanted])})
    assert torch.equal(torch.get_rng_state(), wanted)
