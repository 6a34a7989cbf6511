"""Whole trainings through the command line: finished, repeated, killed, stopped, diverged, refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from retrieval_core.bundle import Bundle
from retrieval_core.dataset import Dataset, FeatureView
from retrieval_core.encoding import Encoder
from retrieval_trainer.cli import app
from retrieval_trainer.config import load_config

pytestmark = pytest.mark.component

ROOT = Path(__file__).parents[3]


def train(config: str, out: Path) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, ["--config", config, "--out", str(out)])


@pytest.fixture(scope="module")
def trained(config_text: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a finished training."""
    out = tmp_path_factory.mktemp("trained") / "bundle"
    result = train(config_text(), out)
    assert result.exit_code == 0, result.output
    return out


def test_a_training_leaves_a_complete_bundle_and_its_record(trained: Path, dataset: Dataset) -> None:
    bundle = Bundle.open(trained)
    record = bundle.training
    assert (record["revision"], record["snapshot"], record["steps"]) == ("r1", dataset.snapshot, 6)
    assert record["provenance"] == "synthetic"
    assert dataset.split.test_from is not None
    assert record["trainedThrough"] < dataset.split.test_from
    assert bundle.manifest.embedding.dimensions == (16, 8)
    assert not (trained.parent / "checkpoints").exists(), "checkpoints are deleted when the bundle is complete"


def test_the_bundle_gives_the_vectors_the_trainer_computes(
    trained: Path, dataset: Dataset, config_text: Callable[..., str]
) -> None:
    """Prompts, tokens, pooling and norm of the training are those of the serving encoder."""
    from retrieval_trainer.assembly import assemble
    from retrieval_trainer.encoder import DualEncoder, token_batch

    encoder = Encoder(Bundle.open(trained))
    training = assemble(load_config(config_text()), torch.device("cpu"))
    training.model.load_state_dict(load_file(trained / "model.safetensors"))
    view, time = FeatureView(dataset), dataset.last_event_time + 1
    rows, times = np.arange(20, dtype=np.int32), np.full(20, time)
    sequences = training.prompt_tokens.members(rows, times) + training.prompt_tokens.items(rows, times)
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(
            DualEncoder(training.model)(token_batch(sequences, 256)), dim=-1
        ).numpy()
    assert training.prompts.member.history is not None
    history = training.prompts.member.history.max_items
    members = encoder.encode_members([view.member_features(int(row), time, history) for row in rows])
    items = encoder.encode_items([view.item_features(int(row), time) for row in rows])
    np.testing.assert_allclose(vectors, np.concatenate([members, items]), atol=1e-5)


def test_items_that_nobody_has_engaged_with_leave_the_bundle_as_it_was(
    trained: Path, dataset: Dataset, config_text: Callable[..., str], tmp_path: Path
) -> None:
    """So a serving index is not known by its bundle alone: the operator counts the revision, too."""
    with_one_more = tmp_path / "with-one-more"
    shutil.copytree(dataset.path, with_one_more)
    (file,) = with_one_more.glob("items*/*.parquet")
    items = pq.read_table(file)
    newcomer = items.slice(0, 1).set_column(0, "item_id", pa.array(["newcomer"]))
    pq.write_table(pa.concat_tables([items, newcomer]), file)
    config = json.loads(config_text()) | {"revision": "r2", "dataset": str(with_one_more)}
    assert train(json.dumps(config), tmp_path / "out").exit_code == 0
    again, before = Bundle.open(tmp_path / "out"), Bundle.open(trained)
    assert again.training["snapshot"] != before.training["snapshot"]
    assert again.manifest.id == before.manifest.id


def test_a_second_start_does_nothing(trained: Path, config_text: Callable[..., str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    result = train(config_text(), trained)
    assert result.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_a_directory_of_another_revision_is_refused(trained: Path, config_text: Callable[..., str]) -> None:
    result = train(config_text("r2"), trained)
    assert result.exit_code == 65
    assert "holds the bundle of revision r1, this is r2" in result.stderr


@pytest.mark.parametrize("blocked", ["bundle", "checkpoints"])
def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_trained(
    blocked: str, config_text: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = LocalFileSystem.pipe_file

    def pipe_file(filesystem: LocalFileSystem, path: str, content: bytes) -> None:
        if path.startswith(str(tmp_path / blocked)):
            raise PermissionError(path)
        written(filesystem, path, content)

    monkeypatch.setattr("retrieval_trainer.run.assemble", end_of_the_process)
    monkeypatch.setattr(LocalFileSystem, "pipe_file", pipe_file)
    result = train(config_text(), tmp_path / "bundle")
    assert result.exit_code == 65, result.output
    assert f"{tmp_path / blocked}: access was denied" in result.stderr


def test_a_training_that_diverges_leaves_no_bundle(
    config_text: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = tmp_path / "reason.json"
    monkeypatch.setenv("RETRIEVAL_TERMINATION_LOG", str(reason))
    result = train(config_text(learningRate=1e9, warmupFraction=0, steps=10), tmp_path / "bundle")
    assert result.exit_code == 69, result.output
    assert json.loads(reason.read_text())["reason"] == "Diverged"
    assert "learningRate (now 1e+09)" in result.stderr
    assert not (tmp_path / "bundle").exists()


def test_pickle_weights_are_bad_input(config_text: Callable[..., str], base: Path, tmp_path: Path) -> None:
    pickled = Path(shutil.copytree(base, tmp_path / "base"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    result = train(config_text(base_uri=pickled), tmp_path / "bundle")
    assert result.exit_code == 65
    assert "pickle" in result.stderr


def test_a_base_that_was_exchanged_under_its_path_is_noticed_by_the_next_start(
    config_text: Callable[..., str], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters that were trained on other frozen weights would go on without an error, and mean nothing."""
    own = Path(shutil.copytree(base, tmp_path / "base"))
    config, out = config_text(base_uri=own, method="lora"), tmp_path / "bundle"
    with monkeypatch.context() as patch:
        patch.setattr("retrieval_trainer.run.require_spread", end_of_the_process)
        with pytest.raises(EndOfTheProcess):
            train(config, out)
    weights = load_file(own / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, own / "model.safetensors", {"format": "pt"})
    result = train(config, out)
    assert result.exit_code == 65
    assert "is of another training (different base)" in result.stderr


def test_lora_makes_a_plain_bundle(config_text: Callable[..., str], tmp_path: Path) -> None:
    result = train(config_text(method="lora"), tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    names = load_file(tmp_path / "bundle" / "model.safetensors").keys()
    assert not any("lora" in name or "token_adapter" in name for name in names)
    Encoder(Bundle.open(tmp_path / "bundle")).encode_items([{"title": "sql"}])


def test_a_killed_and_a_stopped_training_end_like_an_undisturbed_one(
    config_text: Callable[..., str], tmp_path: Path, wait_for: Callable[..., None], newest_step: Callable[[Path], int]
) -> None:
    """SIGKILL, then SIGTERM, then to the end: the bundle is the same to the bit."""
    config = config_text(steps=60, checkpointEverySteps=5)
    assert train(config, tmp_path / "undisturbed" / "bundle").exit_code == 0
    out, checkpoints = tmp_path / "disturbed" / "bundle", tmp_path / "disturbed" / "checkpoints"

    killed = start(config, out)
    wait_for((checkpoints / "step-00000005" / "checkpoint.json").exists, killed)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    saved = newest_step(checkpoints)
    assert saved < 60

    stopped = start(config, out)
    wait_for(lambda: newest_step(checkpoints) > saved, stopped)
    stopped.send_signal(signal.SIGTERM)
    _, log = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + signal.SIGTERM, log
    assert "resuming" in log, "it continued rather than started over"
    assert newest_step(checkpoints) > saved

    assert train(config, out).exit_code == 0
    assert Bundle.open(out).id == Bundle.open(tmp_path / "undisturbed" / "bundle").id


def start(config: str, out: Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("core", "trainer")),
        # As many threads as the undisturbed training has: sums are taken in another order otherwise.
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-m", "retrieval_trainer.cli", "--config", config, "--out", str(out)]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


@dataclass(frozen=True)
class Tracking:
    """A run of a real tracking store, in the environment of the programs."""

    client: Any
    run_id: str
    artifacts: Path


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    import mlflow

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("training", artifact_location=str(tmp_path / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("RETRIEVAL_RUN_ID", run_id)
    return Tracking(client, run_id, tmp_path / "artifacts" / run_id / "artifacts")


def require_report(tracking: Tracking, bundle: Path) -> None:
    """The model version's source, the curves, the last look's metrics, and the report with its proof."""
    run = tracking.client.get_run(tracking.run_id)
    for name in ("bundle/bundle.json", "bundle/README.md", "bundle/training.json", "training.png"):
        assert (tracking.artifacts / name).is_file(), name
    report = (tracking.artifacts / "report.json").read_bytes()
    assert run.data.tags["retrieval.report"] == hashlib.sha256(report).hexdigest()
    assert json.loads(report)["id"] == Bundle.open(bundle).id
    assert run.data.metrics.keys() >= {"final_recall_uniform", "final_recall_popular"}


def test_it_reports_to_mlflow(config_text: Callable[..., str], tmp_path: Path, tracking: Tracking) -> None:
    result = train(config_text(), tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    require_report(tracking, tmp_path / "bundle")
    losses = tracking.client.get_metric_history(tracking.run_id, "loss")
    assert [point.step for point in losses] == [6]
    metrics = tracking.client.get_run(tracking.run_id).data.metrics
    assert metrics.keys() >= {"grad_norm", "tokens_per_second", "hard_negative_gradient_share"}


def test_what_an_end_right_after_publishing_left_undone_is_done_by_the_next_start(
    config_text: Callable[..., str],
    tmp_path: Path,
    tracking: Tracking,
    monkeypatch: pytest.MonkeyPatch,
    newest_step: Callable[[Path], int],
) -> None:
    """The bundle is complete, but nothing was reported and the checkpoints are still there: they have the curves."""
    out = tmp_path / "bundle"
    with monkeypatch.context() as patch:
        patch.setattr("retrieval_trainer.run.report_bundle", end_of_the_process)
        with pytest.raises(EndOfTheProcess):
            train(config_text(), out)
    assert (out / "bundle.json").is_file()
    assert newest_step(tmp_path / "checkpoints") == 6
    assert not tracking.artifacts.exists()

    result = train(config_text(), out)
    assert result.exit_code == 0, result.output
    require_report(tracking, out)
    assert not (tmp_path / "checkpoints").exists()


class EndOfTheProcess(BaseException):
    """Nothing in the program handles it, like a kill."""


def end_of_the_process(*_: object) -> None:
    raise EndOfTheProcess


def test_a_repeated_report_leaves_the_checkpoints_of_another_training_alone(
    trained: Path, config_text: Callable[..., str], tmp_path: Path
) -> None:
    """Bundles that lie side by side share the default directory of checkpoints."""
    shutil.copytree(trained, tmp_path / "bundle")
    other = tmp_path / "checkpoints" / "step-00000001"
    other.mkdir(parents=True)
    identity = {"revision": "r2", "snapshot": Bundle.open(trained).training["snapshot"]}
    (other / "checkpoint.json").write_text(json.dumps({"formatVersion": 1, "identity": identity, "history": []}))
    assert train(config_text(), tmp_path / "bundle").exit_code == 0
    assert other.is_dir()


def test_half_an_mlflow_configuration_is_refused_before_training(
    config_text: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.delenv("RETRIEVAL_RUN_ID", raising=False)
    assert train(config_text(), tmp_path / "bundle").exit_code == 2
    assert not (tmp_path / "checkpoints").exists()


def test_a_finished_bundle_is_imported_where_it_is(trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    result = CliRunner().invoke(app, ["--import", str(trained)])
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_importing_what_is_no_sound_bundle_is_bad_input(trained: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(trained, broken)
    prompts = broken / "prompts.json"
    prompts.write_bytes(prompts.read_bytes().replace(b"item", b"itme", 1))
    result = CliRunner().invoke(app, ["--import", str(broken)])
    assert result.exit_code == 65
    assert "prompts.json" in result.output


@pytest.mark.parametrize("arguments", [[], ["--out", "x"], ["--import", "x", "--config", "{}", "--out", "y"]])
def test_training_and_importing_exclude_each_other(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "expected either --config with --out (train) or --import" in result.output
