"""Features -> prompt: the exact string whose tokenisation is the encoder's input.

A member: `system`, the profile's fields, then the newest history that fits, oldest first.
An item: `system`, then the fields. Every field shows its own token, with nothing after it when the value is unknown,
so that absence is something a model can learn.

The string is a concatenation of added tokens and texts prepared by `safe_text.py`; as an added token always splits the
string, the ids of the parts are the ids of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from retrieval_core.errors import BadInput
from retrieval_core.prompts.percentiles import Percentiles
from retrieval_core.prompts.safe_text import SafeTexts
from retrieval_core.prompts.spec import ItemPrompt, PromptField, PromptSpec
from retrieval_core.prompts.tokens import added_tokens, field_token

# field -> text | texts | number | None; a member's `history` is a sequence of item features, oldest first.
Features = Mapping[str, Any]

# Values of a list are joined by this, and a long list is cut between values.
LIST_SEPARATOR = ", "


class _Slot(NamedTuple):
    """A field, with what rendering it needs made once: a member's prompt has dozens of them."""

    name: str
    path: str
    token: str
    is_percentile: bool
    least_tokens: int
    max_tokens: int | None

    @classmethod
    def of(cls, scope: str, field: PromptField) -> _Slot:
        side = "item" if scope == "history" else scope
        is_percentile = field.rendering == "percentile"
        token = field_token(scope, field.name)
        return cls(field.name, f"{side}.{field.name}", token, is_percentile, field.least_tokens, field.max_tokens)


class PromptRenderer:
    """Renders the prompts of one bundle. Safe to use from several threads."""

    def __init__(self, spec: PromptSpec, percentiles: Percentiles, tokenizer: Any) -> None:
        """`tokenizer`: a Hugging Face fast tokenizer that has the prompts' added tokens (`add_tokens`).

        Raises BadInput when it lacks one of them, or when a side's budget has no room for its fields.
        """
        self.spec = spec
        self.percentiles = percentiles
        private = _private_copy(tokenizer)
        _require_added_tokens(private, added_tokens(spec, percentiles))
        self._texts = SafeTexts(private, delimiter=field_token("member", spec.member.fields[0].name))
        self._slots: dict[str, list[_Slot]] = {"member": [], "history": [], "item": []}
        for scope, field in spec.scoped_fields():
            self._slots[scope].append(_Slot.of(scope, field))
        # BOS and EOS, as the tokenizer adds them by default.
        own_tokens = private.num_special_tokens_to_add(False)
        self._member_start, self._member_room = self._start("member", spec.member, own_tokens)
        self._item_start, self._item_room = self._start("item", spec.item, own_tokens)

    def item(self, features: Features) -> str:
        """The prompt of an item. A missing field is unknown; fields that the prompts do not show are ignored.

        Raises BadInput when a value has a type that its rendering cannot show.
        """
        text, _ = self._fields("item", features, self._item_room)
        return self._item_start + text

    def member(self, features: Features) -> str:
        """The prompt of a member; see `item`. `history` may be missing, None or empty, and longer than is shown."""
        profile, tokens = self._fields("member", features, self._member_room)
        history = self._history(features.get("history"), self._member_room - tokens)
        return self._member_start + profile + history

    def _start(self, side: str, prompt: ItemPrompt, own_tokens: int) -> tuple[str, int]:
        """The side's system text, and how many tokens are left for the values of its fields."""
        system = self._texts.fit(prompt.system, "", prompt.max_tokens)
        room = prompt.max_tokens - own_tokens - system.tokens - sum(field.least_tokens for field in prompt.fields)
        if room < 0:
            raise BadInput(
                f"prompts: {side}.maxTokens is {prompt.max_tokens}, but its system text takes {system.tokens} tokens, "
                f"the tokenizer's own {own_tokens}, and its empty fields need {-room} more; raise maxTokens"
            )
        return system.text, room

    def _history(self, value: Any, room: int) -> str:
        spec = self.spec.member.history
        if spec is None:
            return ""
        shown: list[str] = []
        least = sum(slot.least_tokens for slot in self._slots["history"])
        most = spec.most_tokens
        for past in reversed(_past_items(value)[-spec.max_items :]):
            entry, tokens = self._fields("history", past, most)
            room -= least + tokens
            if room < 0:
                break  # never a cut entry, and never an older one in place of a newer one
            shown.append(entry)
        return "".join(reversed(shown))

    def _fields(self, scope: str, features: Features, room: int) -> tuple[str, int]:
        """The fields' tokens and values, and how many of the `room` tokens the texts took."""
        parts: list[str] = []
        left = room
        for slot in self._slots[scope]:
            value = features.get(slot.name)
            if slot.is_percentile:
                parts += (slot.token, self.percentiles.token(slot.path, _as_number(slot.path, value)))
                continue
            separator = LIST_SEPARATOR if isinstance(value, (list, tuple)) else " "
            text, tokens = self._texts.fit(_as_text(slot.path, value), slot.token, slot.max_tokens or room, separator)
            if tokens > left:
                text, tokens = self._texts.fit(text, slot.token, left, separator)
            left -= tokens
            parts += (slot.token, text)
        return "".join(parts), room - left


def _private_copy(tokenizer: Any) -> Tokenizer:
    """The Rust tokenizer, without the padding and truncation that calls on the original may leave switched on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BadInput(
            f"{type(tokenizer).__name__} is not a fast tokenizer (tokenizer.json): save the base model with one"
        )
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def _require_added_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> None:
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    missing = [token for token in tokens if token not in present]
    if missing:
        raise BadInput(f"the tokenizer has no special token {missing[0]}: it is not the one of these prompts")


def _past_items(value: Any) -> Sequence[Features]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(past, Mapping) for past in value):
        raise BadInput(f"member.history: found {value!r:.80}, expected a list of objects with the fields of an item")
    return value


def _as_text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return LIST_SEPARATOR.join(part for part in value if part)
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        # Digits as a person writes them: 12, 3.5. An unknown number shows nothing.
        return f"{number:.6g}" if math.isfinite(number) else ""
    raise BadInput(f"{name}: found {value!r:.80}, expected a text, a list of texts, a number or null")


def _as_number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    raise BadInput(f"{name}: found {value!r:.80}, expected a number or null")
