"""The document `retrieval-train --config` takes: one frozen, bounded type, the same in YAML and JSON.

Every default says where it comes from. "gut feeling" is used where nothing better is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from retrieval_core.errors import BadInput, validate_document
from retrieval_core.files import require_known_version

Uri = Annotated[str, Field(min_length=1, max_length=1024)]


class Document(BaseModel):
    """Base of every part: frozen, camelCase in documents, unknown fields refused, no NaN and no Infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )


class Base(Document):
    """What training starts from: a local Hugging Face causal LM directory, or the offline toy `tiny` (tiny.py)."""

    preset: Literal["tiny"] | None = None
    uri: Uri | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Base:
        if (self.preset is None) == (self.uri is None):
            raise ValueError("give exactly one of preset and uri")
        return self

    def describe(self) -> str:
        """How training.json and the card name it."""
        return f"preset:{self.preset}" if self.preset else str(self.uri)


class MaxTokens(Document):
    """Token budgets that override those of the prompts."""

    member: int = Field(ge=8, le=32768)
    item: int = Field(ge=8, le=32768)


class Lora(Document):
    """Low-rank adapters (arXiv 2106.09685) on every linear layer (as in QLoRA, arXiv 2305.14314)."""

    rank: int = Field(default=16, ge=1, le=1024, description="peft's examples use 8 to 64; gut feeling")
    alpha: float = Field(
        default=32.0, gt=0, le=4096, description="twice the rank, a common habit; scale = alpha / rank"
    )


class Hyperparameters(Document):
    """How to train. Exactly one of steps and epochs; a step is one optimizer update over the global batch."""

    steps: int | None = Field(default=None, ge=0, le=10_000_000, description="0: the untrained base as a bundle")
    epochs: float | None = Field(default=None, gt=0, le=1000, description="passes over the training positives")
    batch_size: int = Field(
        default=64,
        ge=2,
        le=65536,
        description="members per rank; global batch = batchSize x ranks. 64 is what two cores hold; more is better",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1e9,  # far beyond sense on purpose: what diverges is found by training, and tests need it to
        description="peak. Unset: 1e-3 for the tiny preset (measured on the synthetic feed); of a pretrained base 1e-4 "
        "with LoRA (arXiv 2401.00368) and 1e-5 in full (a usual value for fine-tuning language models)",
    )
    warmup_fraction: float = Field(
        default=0.1, ge=0, le=0.5, description="share of steps; usual value for transformers"
    )
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="AdamW's own default (arXiv 1711.05101)")
    max_grad_norm: float = Field(default=1.0, gt=0, le=1e6, description="the usual clip for transformers (GPT-3)")
    temperature: float = Field(
        default=0.05, ge=0.005, le=1, description="SimCSE's (arXiv 2104.08821); scale = 1 / temperature = 20"
    )
    hard_negatives: int = Field(default=2, ge=0, le=64, description="per member, as in arXiv 2510.14223")
    hard_negative_scope: Literal["own", "all"] = Field(
        default="own", description="own: columns of their member only; all: of every member, as sentence-transformers"
    )
    log_q: bool = Field(default=True, description="correct for how often a column's item is sampled")
    positive_correction: Literal["none", "excluded"] = Field(
        default="none",
        description="with logQ, none: in-batch negatives are draws from p; excluded: draws from p without the row's "
        "positive, p / (1 - p_positive), which has the gradient of arXiv 2507.09331",
    )
    method: Literal["full", "lora"] = "full"
    lora: Lora = Lora()
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    checkpoint_every_steps: int = Field(default=100, ge=1, le=1_000_000, description="gut feeling: about a minute lost")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the computation; weights and optimizer state are always float32"
    )

    @model_validator(mode="after")
    def _exactly_one_length(self) -> Hyperparameters:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self


class TrainConfig(Document):
    """Everything a training depends on, besides the code and the number of ranks."""

    format_version: Literal[1]
    revision: str = Field(pattern=r"^[a-z0-9][-a-z0-9.]{0,62}$")
    dataset: Uri
    base: Base
    prompts: dict[str, Any] | None = Field(
        default=None, description="docs/contracts.md section 4; null: made from the dataset"
    )
    pooling: Literal["mean"] = "mean"
    dimensions: tuple[Annotated[int, Field(ge=4, le=65536)], ...] = Field(min_length=1, max_length=16)
    max_tokens: MaxTokens | None = Field(default=None, description="null: those of the prompts")
    hyperparameters: Hyperparameters

    @model_validator(mode="after")
    def _dimensions_fall(self) -> TrainConfig:
        if list(self.dimensions) != sorted(set(self.dimensions), reverse=True):
            raise ValueError(f"dimensions: found {list(self.dimensions)}, expected falling sizes, full width first")
        return self

    @property
    def learning_rate(self) -> float:
        """The peak learning rate, with the default that suits the base and method."""
        if self.hyperparameters.learning_rate is not None:
            return self.hyperparameters.learning_rate
        if self.base.preset == "tiny":
            return 1e-3
        return 1e-4 if self.hyperparameters.method == "lora" else 1e-5

    def document(self) -> dict[str, Any]:
        """The configuration by its YAML names, defaults included: for training.json, checkpoints and MLflow."""
        document = self.model_dump(mode="json", by_alias=True)
        document["hyperparameters"]["learningRate"] = self.learning_rate
        return document


def load_config(text_or_path: str) -> TrainConfig:
    """Parse `--config`: an inline JSON document when it starts with `{`, else the path of a YAML or JSON file.

    BadInput names each wrong field by its path in the document.
    """
    inline = text_or_path.lstrip().startswith("{")
    source = "--config" if inline else text_or_path
    try:
        text = text_or_path if inline else Path(text_or_path).read_text(encoding="utf-8")
        document = yaml.safe_load(text)  # YAML 1.1 reads 1e-4 as a string; pydantic reads that string as the number
    except OSError as error:
        raise BadInput(f"{source} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{source} is neither YAML nor JSON: {error}") from None
    require_known_version(document, source)
    return validate_document(TrainConfig, document, source)
