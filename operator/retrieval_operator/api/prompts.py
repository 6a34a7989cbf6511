"""`spec.model.prompts`: which fields a prompt shows, in which order, within which token budget.

The same fields, bounds and rules as retrieval_core.prompts.spec, which reads the document in a training: the control
plane imports no component (a test compares the two). Here a mistake is told before anything is started. Nothing is
added to what was written: a default is the trainer's affair, and the hash of a revision is over what a person typed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from retrieval_operator.api.types import Manifest

MAX_PROMPT_TOKENS = 32_768  # far above what a prompt of short fields needs; the bound catches typing errors
ITEM_DERIVED = ("engagements", "impressions", "ageDays")  # docs/contracts.md section 3: they change with time
# A name becomes part of an added token: no control characters, none of its delimiters.
NAME_PATTERN = r"^[^<|>\x00-\x1f\x7f]+$"

TokenBudget = Annotated[int, Field(ge=1, le=MAX_PROMPT_TOKENS)]


class PromptField(Manifest):
    """One field of a prompt: a token of its own, followed by its value."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=64)] = Field(
        description="name of a declared column or of a derived field of the dataset."
    )
    rendering: Literal["text", "category", "percentile"] = Field(
        description="rendering: text or category (the value as it is), or percentile (a number as one token)."
    )
    max_tokens: TokenBudget | None = Field(
        default=None,
        description="maxTokens bounds the value's tokens, the field's own not counted; default: what the prompt has "
        "left. A percentile is one token and has none.",
    )

    @model_validator(mode="after")
    def percentile_has_no_budget(self) -> Self:
        if self.rendering == "percentile" and self.max_tokens is not None:
            raise ValueError(
                f"maxTokens: found {self.max_tokens}, expected none with rendering percentile: it is always one token"
            )
        return self

    @property
    def most_tokens(self) -> int:
        """Tokens it may take by its own bound, its own token included; an unbounded value may also be empty."""
        return 2 if self.rendering == "percentile" else 1 + (self.max_tokens or 0)


Fields = Annotated[list[PromptField], Field(min_length=1, max_length=32)]


def _refuse_repeats(fields: Sequence[PromptField]) -> None:
    repeated = [name for name, uses in Counter(field.name for field in fields).items() if uses > 1]
    if repeated:
        raise ValueError(f"fields: found {', '.join(repeated)} more than once, expected each name once")


class PromptHistory(Manifest):
    """The member's past positives: how many at most, and which fields of each item."""

    max_items: Annotated[int, Field(ge=1, le=1000)] = Field(
        description="maxItems: at most so many past items, the newest that fit; one is never cut."
    )
    fields: Fields = Field(description="fields of each past item, in prompt order; text and category with maxTokens.")

    @model_validator(mode="after")
    def distinct_fields(self) -> Self:
        _refuse_repeats(self.fields)
        return self

    @model_validator(mode="after")
    def fixed_columns(self) -> Self:
        derived = [field.name for field in self.fields if field.name in ITEM_DERIVED]
        if derived:
            raise ValueError(
                f"fields: found {', '.join(derived)}, expected columns that do not change with time: "
                f"none of {', '.join(ITEM_DERIVED)}"
            )
        return self

    @model_validator(mode="after")
    def bounded_fields(self) -> Self:
        unbounded = [f.name for f in self.fields if f.rendering != "percentile" and f.max_tokens is None]
        if unbounded:
            raise ValueError(
                f"fields: found no maxTokens at {', '.join(unbounded)}, expected maxTokens of every text and category: "
                "one long past item would push out all others"
            )
        return self


class ItemPrompt(Manifest):
    """An item's prompt: system, then the fields."""

    system: Annotated[str, Field(max_length=4096)] = Field(
        default="", description="system is a text in front of the fields, the same in every prompt of this side."
    )
    fields: Fields = Field(description="fields in prompt order, each name once.")
    max_tokens: TokenBudget = Field(description="maxTokens of the whole prompt, BOS and EOS included.")

    @model_validator(mode="after")
    def distinct_fields(self) -> Self:
        _refuse_repeats(self.fields)
        return self

    @model_validator(mode="after")
    def fields_fit(self) -> Self:
        if self.profile_tokens > self.max_tokens:
            raise ValueError(
                f"maxTokens: found {self.max_tokens}, expected at least what its fields may take: their maxTokens, and "
                f"1 for each field, 2 for a percentile ({self.profile_tokens})"
            )
        return self

    @property
    def profile_tokens(self) -> int:
        """Tokens that the fields may take, by their own bounds."""
        return sum(field.most_tokens for field in self.fields)


class MemberPrompt(ItemPrompt):
    """A member's prompt: system, then the profile's fields, then as much of the newest history as fits."""

    history: PromptHistory | None = None

    @model_validator(mode="after")
    def history_is_no_field(self) -> Self:
        if any(field.name == "history" for field in self.fields):
            raise ValueError("fields: found history, expected past items in history beside fields")
        return self

    @model_validator(mode="after")
    def history_fits(self) -> Self:
        item = sum(field.most_tokens for field in self.history.fields) if self.history else 0
        if item and self.profile_tokens + item > self.max_tokens:
            raise ValueError(
                f"maxTokens: found {self.max_tokens}, expected room for the fields and one past item, or a history "
                f"might never be shown ({self.profile_tokens} and {item})"
            )
        return self


class Prompts(Manifest):
    """The prompts of both sides."""

    format_version: Annotated[int, Field(ge=1, le=1)] = Field(
        default=1, description="formatVersion of this document: 1."
    )
    member: MemberPrompt
    item: ItemPrompt
