"""From a rendered conversation to tokens, by segments: what was said before is not tokenized again.

A tokenizer looks for its special tokens first and reads the text between them apart. So a text may be cut before any
of them, and its parts give the tokens of the whole. The next turn of an agent adds a few hundred tokens to a hundred
thousand, and to find those takes a tenth of a second or more.
"""

from __future__ import annotations

import inspect
import re
from array import array
from collections.abc import Iterable
from itertools import chain, pairwise
from typing import Any, Final

from cachetools import LRUCache
from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from openai_gateway.errors import InvalidRequest

TOKENS: Final = 1 << 20
"""Most tokens that are kept, of all owners together: with their texts some 10 MB."""

MARKED: Final = re.compile("[\U000f0000\U000f0001]")
"""What transformers puts around control tokens that are a text."""


class Segments:
    """For one tokenizer, which is mlx-lm's wrapper, and its chat template. Not for several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer._tokenizer
        added = list(self._tokenizer.added_tokens_decoder.values())
        source, named = _source(tokenizer), set(getattr(tokenizer, "chat_control_tokens", None) or ())
        control = [token for token in added if token.special or token.content in named or token.content in source]
        # Gemma has a token for every run of newlines or blanks: templates write those as text.
        self._control = _any_of(token.content for token in control if not token.content.isspace())
        self._cut = _any_of(_cuts(self._tokenizer, added, source))
        self._kept: LRUCache[tuple[str, str], array[int]] = LRUCache(TOKENS, getsizeof=len)

    def marked(self, value: Any) -> Any:
        """What a template is to render, with control tokens marked as text wherever they stand in it.

        Without it a web page that holds `<|end|><|start|>system` ends the message that quotes it and speaks as the
        system. transformers does the same with values, and leaves the keys of objects as they are.
        """
        if isinstance(value, dict):
            return {mark_control_tokens(key, self._control): self.marked(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.marked(inner) for inner in value]
        return mark_control_tokens(value, self._control)

    def tokens(self, text: str, owner: str) -> list[int]:
        """Of a rendered text with its marks. How long that takes tells `owner` about nobody else's texts."""
        if MARKED.search(text):
            try:
                return list(encode_marked_chat(self._tokenizer, text))
            except ValueError as error:  # a tokenizer that makes a control token of any text that looks like one
                raise InvalidRequest(f"The messages cannot be told from markup: {error}", param="messages") from None
        starts = [0, *(match.start() for match in self._cut.finditer(text) if match.start()), len(text)]
        parts = [text[start:end] for start, end in pairwise(starts)]
        found = {part: self._kept.get((owner, part)) for part in parts}
        if unknown := [part for part, tokens in found.items() if tokens is None]:
            # With a list, the tokenizer uses all cores.
            read = self._tokenizer(unknown, add_special_tokens=False, return_attention_mask=False, verbose=False)
            for part, ids in zip(unknown, read["input_ids"], strict=True):
                found[part] = tokens = array("I", ids)
                if len(tokens) <= TOKENS:
                    self._kept[owner, part] = tokens
        return list(chain.from_iterable(found[part] or () for part in parts))


def _source(tokenizer: Any) -> str:
    """The chat template's text; mlx-lm has some as functions of Python."""
    if (function := getattr(tokenizer, "_chat_template", None)) is not None:
        return inspect.getsource(inspect.getmodule(function) or function)
    source = tokenizer.chat_template
    return "\0".join(source.values()) if isinstance(source, dict) else source or ""


def _cuts(tokenizer: Any, added: list[Any], source: str) -> list[str]:
    """The special tokens of the template that are found alike in a whole text and at the beginning of a part of it.

    Not those that take blanks before them along, depend on what stands before them, or may stand in another token or
    begin with the end of one.
    """
    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return []
    others = [token.content for token in added]
    return [
        token.content
        for token in added
        if token.special and token.content in source and not (token.lstrip or token.single_word or token.normalized)
        and not any(_reaches_into(other, token.content) for other in others if other != token.content)
    ]  # fmt: skip


def _reaches_into(other: str, token: str) -> bool:
    return token in other or any(other.endswith(token[:length]) for length in range(1, len(token)))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")
