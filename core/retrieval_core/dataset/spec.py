"""dataset.yaml: which column means what, and how the data are split (docs/contracts.md section 3)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from retrieval_core.errors import BadInput, validate_document
from retrieval_core.files import require_known_version

SPEC_FILE = "dataset.yaml"
SECONDS_PER_DAY = 86_400
MEMBER_DERIVED = ("activity", "history")
ITEM_DERIVED = ("engagements", "impressions", "ageDays")

ColumnName = Annotated[str, Field(min_length=1, max_length=64)]


def _without_repeats(columns: tuple[str, ...]) -> tuple[str, ...]:
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is listed twice")
    return columns


Columns = Annotated[tuple[ColumnName, ...], AfterValidator(_without_repeats)]


class _Document(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )


class EntitySpec(_Document):
    """What members and items have in common."""

    id: ColumnName
    text: Columns = ()
    category: Columns = ()
    count: Columns = ()
    created_at: ColumnName | None = None

    @property
    def field_columns(self) -> tuple[str, ...]:
        """Columns a prompt can name, in declared order, each once."""
        return (*self.text, *self.category, *self.count)

    @property
    def declared_columns(self) -> tuple[str, ...]:
        """Columns that are read beside ids and times, each once."""
        return self.field_columns

    def _refuse_ambiguous_fields(self, derived: tuple[str, ...], also: tuple[str, ...] = ()) -> None:
        repeated = [name for name, uses in Counter(self.field_columns).items() if uses > 1]
        if repeated:
            raise ValueError(f"{repeated[0]!r} is declared as more than one of text, category and count")
        taken = [name for name in (*self.field_columns, *also) if name in derived]
        if taken:
            raise ValueError(f"a column may not be named {taken[0]!r}: that is a derived field; rename the column")


class MembersSpec(EntitySpec):
    """Columns of members/*.parquet; `createdAt` is when the member joined."""

    @model_validator(mode="after")
    def _fields_are_unambiguous(self) -> Self:
        self._refuse_ambiguous_fields(MEMBER_DERIVED)
        return self


class ItemsSpec(EntitySpec):
    """Columns of items/*.parquet; `attributes` are what a request can filter by."""

    attributes: Columns = ()

    @property
    def declared_columns(self) -> tuple[str, ...]:
        """Fields and attributes, each once."""
        return tuple(dict.fromkeys((*self.field_columns, *self.attributes)))

    @model_validator(mode="after")
    def _fields_are_unambiguous(self) -> Self:
        self._refuse_ambiguous_fields(ITEM_DERIVED, also=self.attributes)
        return self


class InteractionsSpec(_Document):
    """Columns of interactions/*.parquet."""

    member: ColumnName
    item: ColumnName
    time: ColumnName
    engaged: ColumnName


class CountsSpec(_Document):
    """Window of the derived counts; 0 days means that counts never expire."""

    window_days: Annotated[int, Field(ge=0, le=36_500)] = 30

    @property
    def window_s(self) -> int:
        return self.window_days * SECONDS_PER_DAY


class SplitSpec(_Document):
    """Which interactions are test: the last ones of all (`global`) or of each member (`perMember`)."""

    mode: Literal["global", "perMember"]
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    test_from: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _says_where_the_test_part_starts(self) -> Self:
        if self.mode == "perMember" and (self.test_from is not None or self.test_fraction is None):
            raise ValueError("mode perMember needs testFraction and takes no testFrom")
        if self.mode == "global" and (self.test_from is None) == (self.test_fraction is None):
            raise ValueError("mode global needs exactly one of testFraction and testFrom")
        return self


class DatasetSpec(_Document):
    """dataset.yaml."""

    format_version: Literal[1]
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: Annotated[str, Field(max_length=4096)] = ""
    provenance: Literal["synthetic", "real"]
    members: MembersSpec
    items: ItemsSpec
    interactions: InteractionsSpec
    counts: CountsSpec = CountsSpec()
    split: SplitSpec
    validation_members: Annotated[float, Field(ge=0, lt=1)] = 0.1


def load_spec(path: Path) -> DatasetSpec:
    """Read dataset.yaml; BadInput names the wrong field by its path in the file."""
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist: {path.parent} is not a dataset, or it was not finished") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path} is not YAML: {error}") from None
    require_known_version(document, str(path))
    return validate_document(DatasetSpec, document, str(path))


def dump_spec(spec: DatasetSpec) -> str:
    """The text of dataset.yaml for a spec; what is empty or not set is left out."""
    document = spec.model_dump(by_alias=True, exclude_none=True)
    if not spec.description:
        del document["description"]
    for side in ("members", "items"):
        document[side] = {key: list(v) if isinstance(v, tuple) else v for key, v in document[side].items() if v}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
