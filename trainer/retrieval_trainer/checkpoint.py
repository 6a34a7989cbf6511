"""Checkpoints that resume exactly on the same number of ranks: safetensors and JSON, no pickle.

    <checkpoints>/step-00000100/weights.safetensors     trainable parameters, by name
                                optimizer.safetensors   "<parameter>/<moment>", float32
                                random.safetensors      torch's generator states, one row per rank
                                checkpoint.json         last: without it the directory is unfinished and ignored

The position in the data is a number (sampling.py), the learning rate a function of the step (optim.py): neither needs
a file. Frozen weights come from the base again.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retrieval_core.errors import BadInput
from retrieval_core.files import is_published, local_path, publish, read_json, write_json
from retrieval_trainer.gather import gather, rank, world_size

LAST_FILE = "checkpoint.json"
# Complete checkpoints that stay: the newest, and one in case a reader is still at the one before.
KEPT = 2


@dataclass(frozen=True)
class Progress:
    """Where a training stands: steps done, examples of the global batch consumed, and the curves up to here."""

    step: int = 0
    position: int = 0
    history: tuple[dict[str, float], ...] = ()


class Checkpoints:
    """The checkpoints of one revision at an fsspec URI. `identity` says what they belong to."""

    def __init__(self, uri: str, identity: dict[str, Any]) -> None:
        self._uri = uri.rstrip("/")
        self._identity = identity

    def save(self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint and prune old ones. Every rank must call: generator states are gathered."""
        random_states = _random_states(_device_of(model))
        if rank() != 0:
            return
        name = f"step-{progress.step:08d}"
        with _staging(f"{self._uri}/{name}") as directory:
            _save_tensors(directory / "weights.safetensors", _trainable(model))
            _save_tensors(directory / "optimizer.safetensors", _optimizer_tensors(model, optimizer))
            _save_tensors(directory / "random.safetensors", random_states)
            write_json(
                directory / LAST_FILE,
                {
                    "formatVersion": 1,
                    "identity": self._identity,
                    "worldSize": world_size(),
                    "step": progress.step,
                    "position": progress.position,
                    "history": list(progress.history),
                },
            )
            publish(directory, f"{self._uri}/{name}", LAST_FILE)
        self._prune()

    def newest(self) -> str | None:
        """URI of the newest complete checkpoint; None when there is none."""
        return next((uri for uri in self._all() if is_published(uri, LAST_FILE)), None)

    def history(self) -> tuple[dict[str, float], ...] | None:
        """The curves of the newest complete checkpoint; None when there is none, or when it is of another training."""
        newest = self.newest()
        if newest is None:
            return None
        document = read_json(local_path(f"{newest}/{LAST_FILE}"))  # this file only: weights are large
        return None if self._differences(document) else tuple(document["history"])

    def load(self, uri: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, bool]:
        """Restore a checkpoint; also whether it is exact (saved by as many ranks as there are now).

        BadInput when it belongs to another revision, configuration or dataset, or cannot be read.
        """
        directory = local_path(uri)
        document = read_json(directory / LAST_FILE)
        different = self._differences(document)
        if different:
            raise BadInput(
                f"checkpoint {uri} is of another training (different {', '.join(different)}); "
                "remove the checkpoints directory or name another one with --checkpoints"
            )
        try:
            _restore_weights(model, load_file(directory / "weights.safetensors"))
            _restore_optimizer(model, optimizer, load_file(directory / "optimizer.safetensors"))
            states = load_file(directory / "random.safetensors")
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise BadInput(
                f"checkpoint {uri} is damaged ({error}); remove it to continue from the one before"
            ) from error
        exact = int(document["worldSize"]) == world_size()
        if exact:
            _restore_random(states)
        return Progress(int(document["step"]), int(document["position"]), tuple(document["history"])), exact

    def remove_all(self) -> None:
        """Delete every checkpoint: the bundle is complete. The newest goes last: it has the curves."""
        for uri in reversed(self._all()):  # and nothing else: the directory may be one that a person named
            _remove(uri)
        filesystem, path = fsspec.core.url_to_fs(self._uri)
        if filesystem.isdir(path) and not filesystem.ls(path):
            filesystem.rmdir(path)

    def _differences(self, document: dict[str, Any]) -> list[str]:
        """The parts of the identity that a checkpoint's document has not, or has with another value."""
        return sorted(k for k, value in self._identity.items() if document["identity"].get(k) != value)

    def _all(self) -> list[str]:
        """Newest first, complete or not."""
        filesystem, path = fsspec.core.url_to_fs(self._uri)
        if not filesystem.isdir(path):
            return []
        names = (str(entry).rstrip("/").rpartition("/")[2] for entry in filesystem.ls(path, detail=False))
        return [f"{self._uri}/{name}" for name in sorted(names, reverse=True) if name.startswith("step-")]

    def _prune(self) -> None:
        """Remove what is older than the KEPT newest complete ones, unfinished ones included."""
        complete = [uri for uri in self._all() if is_published(uri, LAST_FILE)]
        if len(complete) < KEPT:
            return
        for uri in self._all():
            if uri < complete[KEPT - 1]:
                _remove(uri)


def _remove(uri: str) -> None:
    filesystem, path = fsspec.core.url_to_fs(uri)
    filesystem.rm(path, recursive=True)


class _staging:  # noqa: N801 - a context manager that reads like one
    """The final directory itself for local storage (nothing is copied), a temporary one otherwise."""

    def __init__(self, uri: str) -> None:
        filesystem, path = fsspec.core.url_to_fs(uri)
        self._temporary = None if isinstance(filesystem, LocalFileSystem) else tempfile.TemporaryDirectory()
        self._directory = Path(self._temporary.name if self._temporary else path)

    def __enter__(self) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / LAST_FILE).unlink(missing_ok=True)  # it is unfinished while its files change
        return self._directory

    def __exit__(self, *error: object) -> None:
        if self._temporary:
            self._temporary.cleanup()


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the last file must not reach the disk before the others
    finally:
        os.close(descriptor)


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """uint8 [ranks, bytes] per generator, which dropout of a base would draw from. A collective."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    # nccl gathers what is on its device only.
    return {name: gather(state[None].to(device)).cpu() for name, state in states.items()}


def _restore_random(states: dict[str, Tensor]) -> None:
    # clone: torch (2.15) reads the storage from its start and crashes in C on a row that begins elsewhere.
    torch.set_rng_state(states["cpu"][rank()].clone())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][rank()].clone())


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{moment}": value
        for name, parameter in _trainable(model).items()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_weights(model: nn.Module, saved: dict[str, Tensor]) -> None:
    parameters = _trainable(model)
    if parameters.keys() != saved.keys():
        raise KeyError(f"it has {len(saved)} parameters, the model trains {len(parameters)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    for name, parameter in _trainable(model).items():
        moments = {key.rpartition("/")[2]: key for key in saved if key.rpartition("/")[0] == name}
        # AdamW counts steps in a CPU scalar and keeps its moments where the parameter is.
        optimizer.state[parameter] = {
            moment: saved[key].clone() if moment == "step" else saved[key].to(parameter.device)
            for moment, key in moments.items()
        }
