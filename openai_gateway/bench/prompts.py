"""Texts of plain words to ask with, of a wanted length, and never the same twice."""

from __future__ import annotations

import secrets
from random import Random

Messages = list[dict[str, str]]

QUESTION = 8
"""Words of a short question, besides its beginning."""
COMMON = (
    "about above after again air all along also always and animal answer around ask away back because before begin "
    "between big book both boy bring build call can car carry change children city close cold come country cut day "
    "different do door down draw each early earth eat end even every eye face family far farm fast father feet few "
    "find fire first follow food form four friend from girl give good great green ground group grow hand hard have "
    "head hear help here high hold home horse hot house idea keep kind know land large last late learn leave left "
    "letter life light like line list little live long look made make many mean men might mile money more morning "
    "most mother mountain move much music name near need never new next night north nothing now number often old "
    "once only open other over own page paper part people place plant play point read red rest river road rock room "
    "round run school sea second see sentence set ship short show side small snow some song soon sound stand star "
    "start state stop story street strong study sun table take talk tell thing think three time together town tree "
    "true turn under until voice walk want warm watch water way week well white whole wind winter wood word work "
    "world write year young"
)
"""Words that most tokenizers of real models make one token of."""


class Writer:
    """Writes texts; those of two writers never begin alike, so no server has one of them in its cache."""

    def __init__(self) -> None:
        self._random = Random(secrets.randbits(64))
        self._words = COMMON.split()

    def words(self, count: int) -> str:
        return " ".join(self._random.choices(self._words, k=count))

    def fresh(self, count: int) -> str:
        """That many words, behind a beginning that no other text has."""
        return f"{self._random.getrandbits(48):012x} {self.words(count)}"

    def question(self) -> Messages:
        """A short question that was never asked before."""
        return [{"role": "user", "content": self.fresh(QUESTION)}]

    def instructed(self, system: str) -> Messages:
        """A short question of its own under a system prompt."""
        return [{"role": "system", "content": system}, *self.question()]

    def conversation(self, count: int, turns: int = 10) -> Messages:
        """A conversation of about `count` words, from a message of the user to one of the user."""
        size = max(1, count // (2 * turns + 1))
        messages = [{"role": "user", "content": self.fresh(size)}]
        for _ in range(turns):
            messages.append({"role": "assistant", "content": self.words(size)})
            messages.append({"role": "user", "content": self.words(size)})
        return messages

    def changed(self, messages: Messages) -> Messages:
        """The same conversation, but for a few words at the end of its middle message."""
        middle = len(messages) // 2
        changed = {**messages[middle], "content": f"{messages[middle]['content']} {self.words(4)}"}
        return [*messages[:middle], changed, *messages[middle + 1 :]]
