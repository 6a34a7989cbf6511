"""Models and tokenizers from local directories: safetensors only, no code from the directory, nothing from a network.

transformers would fill missing weights with random numbers, build an empty tokenizer, or read a pickle; here each is a
BadInput that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from retrieval_core.errors import BadInput
from retrieval_core.files import local_path

# What unpickles, or may: refused as weights and as unlisted files of a bundle.
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"})
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def load_model(uri: str | Path, *, causal_lm: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A transformers model on the CPU, in eval mode: the backbone, or with its language-model head.

    `uri`: a directory with config.json and safetensors weights (a base model or a bundle).
    Raises BadInput when it has none, has only pickle weights, needs code of its own, or lacks weights.
    """
    path = _existing_directory(uri)
    _require_safetensors(path)
    kind = transformers.AutoModelForCausalLM if causal_lm else transformers.AutoModel
    with _refusals(path, "model"), quiet_progress():
        model, loading = kind.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    # A bundle holds no language-model head; whoever asks for one gets a fresh one.
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("lm_head"))
    if missing:
        raise BadInput(f"{path}: {len(missing)} weights are missing, {missing[0]} for one; the model is incomplete")
    if model.config.is_encoder_decoder:
        raise BadInput(f"{path}: {model.config.model_type} is an encoder-decoder; a causal language model is needed")
    return model.eval()


def load_tokenizer(uri: str | Path) -> Any:
    """The fast tokenizer of a base model or bundle, padding on the right. BadInput when there is none."""
    path = _existing_directory(uri)
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise BadInput(f"{path} has no tokenizer (tokenizer.json); copy the base model with its tokenizer")
    with _refusals(path, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise BadInput(f"{path} has only a slow tokenizer; save it as tokenizer.json")
    tokenizer.padding_side = "right"
    return tokenizer


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Without transformers' own progress bars: ours says what a user waits for."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _existing_directory(uri: str | Path) -> Path:
    path = local_path(str(uri))
    if not (path / "config.json").is_file():
        raise BadInput(f"{uri} is not a model directory: it has no config.json")
    return path


def _require_safetensors(path: Path) -> None:
    if (path / "adapter_config.json").exists():
        # transformers would go on to the base that it names, and load adapters from a pickle.
        raise BadInput(f"{path} holds adapters (adapter_config.json); merge them into their base (merge_and_unload)")
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise BadInput(
            f"{path} has only pickle weights ({pickles[0]}), which can run code when loaded and are refused; "
            "convert them to safetensors (transformers: model.save_pretrained)"
        )
    raise BadInput(f"{path} has no weights (model.safetensors)")


@contextmanager
def _refusals(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a disk error keeps its own meaning
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BadInput(f"{path}: the {what} cannot be loaded: {reason}") from error
