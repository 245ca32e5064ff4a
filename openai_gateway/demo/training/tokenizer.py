"""Trains the byte-level BPE tokenizer: no byte is unknown, and every digit is a token of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from string import ascii_letters

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|return|>",
    "<|call|>",
)
STOP_TOKENS = ("<|return|>", "<|call|>", "<|endoftext|>")

# One digit at a time, so that sums can be learned by place; words carry their leading space.
_PIECES = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s"
_BARE_PIECES = r"\p{N}|\p{L}+|[^\s\p{L}\p{N}]+|\s"
_SPACE = "\u0120"
"""How byte-level BPE writes a blank."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns merges from `texts`, which should hold no special tokens; at most `vocab_size` tokens, or a few less.

    The last merges join a blank with the token behind it, for every token of letters, so that a word is cut alike with
    a blank before it and without: ` Zorvex` is ` Z`, `or`, `vex` where `Zorvex` is `Z`, `or`, `vex`. Names and values
    are copied from requests, where a blank stands before them, into JSON, where none does.
    """
    texts = list(texts)
    bare = _byte_level(models.BPE(), _BARE_PIECES)
    # Tokens that are surely no letters; of all the others there is a second one with a blank.
    others = len(SPECIAL_TOKENS) + len(pre_tokenizers.ByteLevel.alphabet()) - len(ascii_letters)
    trainer = trainers.BpeTrainer(
        vocab_size=(vocab_size + others) // 2,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator(texts, trainer)
    learned = json.loads(bare.to_str())["model"]
    known = learned["vocab"]
    words = [token for token in sorted(known, key=known.__getitem__) if token.isalpha() and token.isascii()]
    signs = [token for token, _ in _after_blanks(bare, texts).most_common() if token not in words]
    spaced = (words + signs)[: vocab_size - len(known)]
    vocabulary = known | {_SPACE + token: len(known) + place for place, token in enumerate(spaced)}
    merges = [tuple(pair) for pair in learned["merges"]] + [(_SPACE, token) for token in spaced]
    tokenizer = _byte_level(models.BPE(vocabulary, merges), _PIECES)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _byte_level(model: models.BPE, pieces: str) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _after_blanks(tokenizer: Tokenizer, texts: list[str]) -> Counter[str]:
    """How often each token follows a blank; digits do not, as they are pieces of their own."""
    counted: Counter[str] = Counter()
    for text in texts:
        tokens = tokenizer.encode(text).tokens
        counted.update(token for blank, token in pairwise(tokens) if blank == _SPACE and not token.isdecimal())
    return Counter({token: count for token, count in counted.items() if token not in (_SPACE, "\u010a")})


def spellings(tokenizer: Tokenizer) -> list[tuple[str, bool, bool]]:
    """For every token by id: its word, and whether that has a blank before it or begins with a capital letter."""
    vocabulary = tokenizer.get_vocab()
    return [_spelling(token) for token in sorted(vocabulary, key=vocabulary.__getitem__)]


def _spelling(token: str) -> tuple[str, bool, bool]:
    word = token.removeprefix(_SPACE) or token
    capital = word.isascii() and word.isalpha() and word == word.capitalize()
    return word.lower() if capital else word, word != token, capital


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must be there; KeyError otherwise."""
    return int(tokenizer.get_vocab()[token])


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens that end an answer."""
    return [token_id(tokenizer, token) for token in STOP_TOKENS]


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json the way transformers reads them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
