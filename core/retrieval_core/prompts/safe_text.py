"""User text that can neither become a special token nor exceed its budget.

What a tokenizer makes of a text is decided by its added tokens, its normaliser (NFKC, lower case, ...) and its model.
Instead of guessing, the text is tokenised where it will stand, between two added tokens, and what comes out is checked;
a look-alike is broken up and the text is tried again. So the last tokenisation proves three things at once:
no special or added token came out of the text, its ids are those it will have in the prompt, and they fit the budget.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

# Distinct texts kept per tokenizer: titles repeat in histories, and are short. A character takes up to four bytes, here
# and in the result, so these are 130 MB at most, and 20 of usual titles.
CACHED_TEXTS = 65_536
CACHED_CHARACTERS = 256
# A text longer than its budget could ever need is cut before it is tokenised. Tokens average 3 to 5 characters;
# only runs of one character (rulers of dashes) exceed this, and lose nothing that matters.
CHARACTERS_PER_TOKEN = 16
# A look-alike is broken up by a space, which keeps it readable; after so many rounds it is removed.
BREAKING_ROUNDS = 4

_SPACE = " "
# C0 and C1 controls, and all that Unicode calls white space.
_CONTROL = re.compile(r"[\x00-\x20\x7f-\xa0\s]+")


class SafeText(NamedTuple):
    """A text as it stands in a prompt, and how many tokens it takes there."""

    text: str
    tokens: int


_NOTHING = SafeText("", 0)


class _Span(NamedTuple):
    """Characters that became a reserved token; `remove`: breaking them up would not help."""

    start: int
    end: int
    remove: bool


def collapse(text: str) -> str:
    """Control characters and runs of white space become one space; lone surrogates, which no encoder takes, U+FFFD."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _CONTROL.sub(_SPACE, text).strip()


class SafeTexts:
    """Prepares texts for one tokenizer. Results are cached; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, delimiter: str) -> None:
        """`tokenizer` neither pads nor truncates; `delimiter` is one of its added tokens, as it follows every text."""
        self._tokenizer = tokenizer
        self._delimiter = delimiter
        # An unknown token stands for characters the tokenizer has no pieces for; it may be the id of BOS or EOS.
        self._unknown_id = _unknown_id(tokenizer)
        self._reserved = frozenset(tokenizer.get_added_tokens_decoder()) | {self._unknown_id}
        self._fit_cached = lru_cache(maxsize=CACHED_TEXTS)(self._fit)

    def fit(self, text: str, before: str, budget: int, separator: str = _SPACE) -> SafeText:
        """The longest safe beginning of `text` that takes at most `budget` tokens after `before`.

        `before` is an added token, or empty at a prompt's start. A text that is too long is cut at the last
        `separator` that fits, unless that would lose more than half of it, as in scripts without spaces.
        Characters that the tokenizer does not know are left out.
        """
        if not text:
            return _NOTHING
        longest = CHARACTERS_PER_TOKEN * max(0, budget)
        if len(text) > longest:
            text = collapse(text)[:longest]
        fit = self._fit_cached if len(text) <= CACHED_CHARACTERS else self._fit
        return fit(text, before, budget, separator)

    def _fit(self, text: str, before: str, budget: int, separator: str) -> SafeText:
        text = collapse(text)
        rounds = 0
        while text:
            encoding = self._tokenizer.encode(before + text + self._delimiter, add_special_tokens=False)
            tokens = len(encoding.ids) - bool(before) - 1
            last_resort = rounds >= BREAKING_ROUNDS
            spans = self._reserved_spans(encoding, len(before), len(text), remove=last_resort)
            if spans:
                broken = collapse(_break(text, spans, gap="" if last_resort else _SPACE))
                # Where a space changes nothing (the space itself is reserved), characters have to go.
                rounds = rounds + 1 if broken != text else BREAKING_ROUNDS
                text = broken
            elif tokens > budget:
                overflow, _ = encoding.offsets[bool(before) + budget]
                text = _cut(text, overflow - len(before), separator)
            else:
                return SafeText(text, tokens)
        return _NOTHING

    def _reserved_spans(self, encoding: Encoding, before: int, length: int, *, remove: bool) -> list[_Span]:
        """Where the text, `length` characters after the first `before`, became reserved tokens.

        A token made of the text's end and the delimiter's start, such as `<<`, is among them.
        """
        inner = slice(bool(before), -1)
        return [
            _Span(min(start - before, length - 1), end - before, remove or identifier == self._unknown_id)
            for identifier, (start, end) in zip(encoding.ids[inner], encoding.offsets[inner], strict=True)
            if identifier in self._reserved
        ]


def _break(text: str, spans: Iterable[_Span], gap: str) -> str:
    """Put a gap after the first character of each span, or in place of a span that is removed or has only one."""
    pieces, done = [], 0
    for start, end, remove in spans:
        kept = start if remove or end - start < 2 else start + 1
        pieces.append(text[done:kept])
        done = max(end, start + 1) if kept == start else kept
    return gap.join([*pieces, text[done:]])


def _cut(text: str, overflow: int, separator: str) -> str:
    """Cut before the character at `overflow`, and back to a separator that keeps at least half of what is left."""
    # At least one character goes, so that cutting ends whatever a normaliser does to offsets.
    cut = max(0, min(overflow, len(text) - 1))
    if not text.startswith(separator, cut):
        boundary = text.rfind(separator, 0, cut)
        cut = boundary if boundary >= cut / 2 else cut
    return text[:cut].rstrip(separator)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id the model gives to what it has no pieces for; None when it has pieces for everything."""
    name = getattr(tokenizer.model, "unk_token", None)
    if isinstance(name, str):
        return tokenizer.token_to_id(name)
    return getattr(tokenizer.model, "unk_id", None)
