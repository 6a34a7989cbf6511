"""How members and items become the text an encoder reads (docs/contracts.md section 4).

spec.py         which fields a prompt has, in which order, within which budget
percentiles.py  which numbers fall into which of the tokens <|pct.1|> .. <|pct.100|>
tokens.py       the tokens a spec adds to a tokenizer, and their first rows in a model
renderer.py     features -> the exact string a tokenizer reads
safe_text.py    user text that can neither become a special token nor exceed its budget
"""

from retrieval_core.prompts.percentiles import Percentiles
from retrieval_core.prompts.renderer import Features, PromptRenderer
from retrieval_core.prompts.spec import HistorySpec, ItemPrompt, MemberPrompt, PromptField, PromptSpec, Rendering
from retrieval_core.prompts.tokens import add_tokens, added_tokens

__all__ = [
    "Features",
    "HistorySpec",
    "ItemPrompt",
    "MemberPrompt",
    "Percentiles",
    "PromptField",
    "PromptRenderer",
    "PromptSpec",
    "Rendering",
    "add_tokens",
    "added_tokens",
]
