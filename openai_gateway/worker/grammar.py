"""Compiles what a request says of the form of its answers, for the tokens of one model.

Runs beside the threads that make prompts and the model's steps, and Python's lock is free meanwhile. A grammar takes a
millisecond or two, a large one half a second; one that is meant to harm is bounded in size, in llguidance's own
measures and in time.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from operator import itemgetter
from threading import Lock, Semaphore
from time import monotonic
from typing import cast

from cachetools import LRUCache
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from openai_gateway.errors import InvalidRequest
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.lark import Lark, Part

logger = logging.getLogger(__name__)

LIMITS = LLParserLimits(max_lexer_states=50_000, step_max_items=20_000, verbose_errors=False)
"""Each step of a grammar that needs as much takes some 15 ms; an ordinary one takes 10 µs."""
TOTAL = 1024 * 1024
"""Characters of one grammar with all its parts, as of 128 tools with 8 kB of schema each."""
CACHED = 64
"""Most grammars that are kept; fewer if they are large."""
PATIENCE = 5.0
"""Seconds of compiling after which no further part of a grammar is begun."""
COMPILERS = 2
"""Most that are compiled at a time; each takes a core."""


class Grammars:
    """The grammars of one model. `eos` are the ids that end its answers.

    Made when the model is loaded: a vocabulary of 200,000 tokens takes a second, and 60 MB.
    """

    def __init__(self, table: TokenTable, eos: Iterable[int], *, patience: float = PATIENCE) -> None:
        self.eos = sorted(eos)
        self._cut = table.cut
        self._patience = patience
        # Without bytes of its own for each token, or an end, no answer can be held to anything.
        self._tokenizer = _tokenizer(table, self.eos) if table.exact and self.eos else None
        self._cache: LRUCache[bytes, tuple[LLMatcher, int]] = LRUCache(2 * TOTAL, getsizeof=itemgetter(1))
        self._cached = Lock()
        self._compiling = Semaphore(COMPILERS)

    def lark(self) -> Lark:
        """To write a grammar for this model with."""
        return Lark(self._cut)

    def compiled(self, lark: Lark, start: str) -> LLMatcher:
        """A matcher at the beginning of an output that must be `start`: to be copied, and never advanced itself.

        Raises `InvalidRequest`, which names the part of the request that is at fault.
        """
        source = lark.source(start)
        if len(source) > TOTAL:
            raise _refusal(lark.parts, f"all of them together are longer than {TOTAL} characters")
        key = sha256(source.encode()).digest()
        if (known := self._known(key)) is not None:
            return known
        with self._compiling:
            if (known := self._known(key)) is not None:
                return known  # somebody else asked for the same meanwhile
            matcher = self._compile(lark.parts, source)
        with self._cached:
            self._cache[key] = matcher, max(len(source), 2 * TOTAL // CACHED)
        return matcher

    def _known(self, key: bytes) -> LLMatcher | None:
        with self._cached:
            return self._cache.get(key, (None, 0))[0]

    def behind(self, matcher: LLMatcher, given: Sequence[int]) -> LLMatcher:
        """The same behind the first tokens of an output, which the prompt holds already.

        Raises `InvalidRequest` where no output begins so, and where that takes too long to be found out.
        """
        if not given:
            return matcher
        matcher = matcher.deep_copy()
        deadline = monotonic() + self._patience
        for token in given:
            if not matcher.consume_token(token):
                raise InvalidRequest("What is to be continued is no beginning of what is asked for.", param="messages")
            if monotonic() > deadline:
                raise InvalidRequest("What is to be continued takes too long to be followed.", param="messages")
        return matcher

    def _compile(self, parts: list[Part], source: str) -> LLMatcher:
        deadline = monotonic() + self._patience
        # By itself each part says more of what is wrong with it, and all that nothing fits is found.
        for part in parts:
            self._begun([part], part.alone)
            if monotonic() > deadline:
                raise _refusal([part], "it takes too long to compile")
        return self._begun(parts, source)

    def _begun(self, parts: list[Part], source: str) -> LLMatcher:
        if self._tokenizer is None:
            raise _refusal(parts, "this model's tokens have no text of their own that could be held to it")
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=LIMITS)
        # Some schemas that nothing fits, such as endless references, show in the first step.
        first = int.from_bytes(matcher.compute_bitmask(), "little")
        if reason := matcher.get_error():
            raise _refusal(parts, legible(reason))
        if first.bit_count() <= len(self.eos) and matcher.is_accepting():
            raise _refusal(parts, "only the empty text fits")
        return matcher


def _tokenizer(table: TokenTable, eos: list[int]) -> LLTokenizer:
    return LLTokenizer(cast(TokenizerWrapper, _Words(table, eos[0])), n_vocab=len(table), eos_token=eos)


class _Words:
    """A vocabulary as llguidance asks for it: the bytes of each token are those that a client is sent for it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, table: TokenTable, eos: int) -> None:
        self.eos_token_id = eos
        self.tokens = [table.bytes_of(id) for id in range(len(table))]
        self.special_token_ids = [id for id in range(len(table)) if table.is_special(id)]

    def __call__(self, text: str) -> list[int]:
        """Never asked: it would be for text that a grammar forces, which is left to the model, piece by piece."""
        return []


def _refusal(parts: list[Part], reason: str) -> InvalidRequest:
    """Blames the first of `parts`."""
    title, param = (parts[0].title, parts[0].param) if parts else ("Invalid grammar", None)
    return InvalidRequest(f"{title}: {reason}.", param=param, code="invalid_value")


def legible(reason: str) -> str:
    """llguidance's errors on one line, without its own state and traces."""
    if "panic" in reason:
        logger.warning("llguidance: %s", reason)
        return "it is too complex"
    if reason.startswith("NoExtension"):
        return "no text fits"
    return re.sub(r"\s+", " ", reason.split("<non-verbose/>")[0]).strip()[:300].rstrip(".")
