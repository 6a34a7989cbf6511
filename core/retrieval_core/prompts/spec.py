"""Which fields a prompt shows, in which order, within which token budget.

A spec is part of the bundle: another order or budget is another embedding space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from retrieval_core.dataset.spec import ITEM_DERIVED, DatasetSpec
from retrieval_core.errors import validate_document

Rendering = Literal["text", "category", "percentile"]

# A context of 32k tokens is far above what a prompt of short fields needs; the bound catches typing errors.
MAX_PROMPT_TOKENS = 32_768
# Budgets of `PromptSpec.default_for`. Gut feeling: a headline or title rarely exceeds them in common tokenizers.
DEFAULT_TEXT_TOKENS = {"member": 24, "item": 32, "history": 16}
DEFAULT_CATEGORY_TOKENS = 12
DEFAULT_HISTORY_ITEMS = 20
DEFAULT_MEMBER_TOKENS = 512
# Room for the tokenizer's own BOS and EOS and a few tokens of slack.
MARGIN_TOKENS = 8

# A name becomes part of an added token, so it has neither control characters nor the delimiters `<`, `|` and `>`.
FieldName = Annotated[str, Field(pattern=r"^[^<|>\x00-\x1f\x7f]+$", max_length=64)]
TokenBudget = Annotated[int, Field(ge=1, le=MAX_PROMPT_TOKENS)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class PromptField(_Document):
    """One field of a prompt: its own added token, followed by its value.

    `max_tokens` bounds the value's tokens, the field's own token not counted; None: as much as the prompt has room for.
    A percentile is always one token.
    """

    name: FieldName
    rendering: Rendering
    max_tokens: TokenBudget | None = None

    @model_validator(mode="after")
    def _percentile_has_no_budget(self) -> Self:
        if self.rendering == "percentile" and self.max_tokens is not None:
            raise ValueError("a percentile is always one token; remove maxTokens")
        return self

    @property
    def least_tokens(self) -> int:
        """Tokens it takes even when empty: its own, and one for a percentile."""
        return 2 if self.rendering == "percentile" else 1

    @property
    def most_tokens(self) -> int:
        """Tokens it may take, by its own bound; the least when it has none."""
        return self.least_tokens + (self.max_tokens or 0)


Fields = Annotated[tuple[PromptField, ...], Field(min_length=1, max_length=32)]


def _refuse_repeats(fields: Sequence[PromptField]) -> None:
    repeated = [name for name, uses in Counter(field.name for field in fields).items() if uses > 1]
    if repeated:
        raise ValueError(f"field {repeated[0]!r} appears twice; each field has one place in a prompt")


class HistorySpec(_Document):
    """The member's past positives: how many at most, and which fields of each item."""

    max_items: Annotated[int, Field(ge=1, le=1000)]
    fields: Fields

    @model_validator(mode="after")
    def _fields_are_fixed_columns(self) -> Self:
        _refuse_repeats(self.fields)
        derived = [field.name for field in self.fields if field.name in ITEM_DERIVED]
        if derived:
            raise ValueError(f"{derived[0]!r} changes with time; a history shows only fixed columns of its items")
        unbounded = [f.name for f in self.fields if f.rendering != "percentile" and f.max_tokens is None]
        if unbounded:
            raise ValueError(f"{unbounded[0]!r} needs maxTokens: one long past item would push out all others")
        return self

    @property
    def most_tokens(self) -> int:
        """Tokens that one past item may take."""
        return sum(field.most_tokens for field in self.fields)


class ItemPrompt(_Document):
    """An item's prompt: `system`, then the fields."""

    system: Annotated[str, Field(max_length=4096)] = ""
    fields: Fields
    max_tokens: TokenBudget

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        _refuse_repeats(self.fields)
        needed = sum(field.most_tokens for field in self.fields)
        if needed > self.max_tokens:
            raise ValueError(
                f"its fields may take {needed} tokens (their maxTokens and their own tokens), more than its maxTokens "
                f"{self.max_tokens}; raise maxTokens or lower those of the fields"
            )
        return self


class MemberPrompt(ItemPrompt):
    """A member's prompt: `system`, then the profile's fields, then as much of the newest history as fits."""

    history: HistorySpec | None = None

    @model_validator(mode="after")
    def _history_fits(self) -> Self:
        if any(field.name == "history" for field in self.fields):
            raise ValueError("'history' is not a field; use member.history")
        profile = sum(field.most_tokens for field in self.fields)
        if self.history and profile + self.history.most_tokens > self.max_tokens:
            raise ValueError(
                f"the profile may take {profile} tokens and one past item {self.history.most_tokens}, together more "
                f"than maxTokens {self.max_tokens}, so a history might never be shown; raise maxTokens"
            )
        return self


class PromptSpec(_Document):
    """prompts.json without its percentiles, or `spec.model.prompts` of a manifest."""

    format_version: Literal[1] = 1
    member: MemberPrompt
    item: ItemPrompt

    @classmethod
    def parse(cls, document: Any, source: str = "prompts") -> PromptSpec:
        """Validate a document; BadInput names each wrong field by its path in `source`."""
        return validate_document(cls, document, source)

    def document(self) -> dict[str, Any]:
        """The JSON document; what is not set is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def max_tokens(self) -> dict[str, int]:
        """Budget per side, BOS and EOS included."""
        return {"member": self.member.max_tokens, "item": self.item.max_tokens}

    def scoped_fields(self) -> Iterator[tuple[str, PromptField]]:
        """Every field with its scope (member, history or item), in prompt order: the scope is part of its token."""
        yield from (("member", field) for field in self.member.fields)
        if self.member.history:
            yield from (("history", field) for field in self.member.history.fields)
        yield from (("item", field) for field in self.item.fields)

    def percentile_names(self) -> tuple[str, ...]:
        """`side.NAME` of every field rendered as a percentile, sorted; a history field is its item's column."""
        sides = {"member": "member", "history": "item", "item": "item"}
        names = {f"{sides[scope]}.{f.name}" for scope, f in self.scoped_fields() if f.rendering == "percentile"}
        return tuple(sorted(names))

    @classmethod
    def default_for(cls, dataset: DatasetSpec) -> PromptSpec:
        """Every declared column in the rendering of its kind, texts first, then categories, counts, derived fields."""
        members, items = dataset.members, dataset.items
        member_fields = (
            *_fields_of(members.text, members.category, members.count, "member"),
            _field("activity", "percentile"),
        )
        derived = ("engagements", "ageDays") if items.created_at else ("engagements",)
        item_fields = (
            *_fields_of(items.text, items.category, items.count, "item"),
            *(_field(name, "percentile") for name in derived),
        )
        # A past item shows what it is about; its numbers would crowd out older items.
        history_fields = _fields_of(items.text, () if items.text else items.category, (), "history")
        history = HistorySpec(max_items=DEFAULT_HISTORY_ITEMS, fields=history_fields) if history_fields else None
        profile_tokens = MARGIN_TOKENS + sum(field.most_tokens for field in member_fields)
        entry_tokens = sum(field.most_tokens for field in history_fields)
        return cls(
            member=MemberPrompt(
                fields=member_fields,
                history=history,
                max_tokens=max(
                    profile_tokens + entry_tokens,
                    min(DEFAULT_MEMBER_TOKENS, profile_tokens + DEFAULT_HISTORY_ITEMS * entry_tokens),
                ),
            ),
            item=ItemPrompt(
                fields=item_fields, max_tokens=MARGIN_TOKENS + sum(field.most_tokens for field in item_fields)
            ),
        )


def _fields_of(
    texts: Sequence[str], categories: Sequence[str], counts: Sequence[str], scope: str
) -> tuple[PromptField, ...]:
    return (
        *(_field(name, "text", DEFAULT_TEXT_TOKENS[scope]) for name in texts),
        *(_field(name, "category", DEFAULT_CATEGORY_TOKENS) for name in categories),
        *(_field(name, "percentile") for name in counts),
    )


def _field(name: str, rendering: Rendering, max_tokens: int | None = None) -> PromptField:
    document = {"name": name, "rendering": rendering, "maxTokens": max_tokens}
    return validate_document(PromptField, document, f"the prompt field for dataset column {name!r}")
