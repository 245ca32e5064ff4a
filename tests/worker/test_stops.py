"""Stop strings, however the text is cut."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from openai_gateway.worker.stops import StopStrings


def stopped(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopStrings(stops)
    out = "".join([*map(matcher.push, pieces), matcher.finish()])
    return out, matcher.stopped


@given(
    st.text("ab-", max_size=40),
    st.lists(st.text("ab-", min_size=1, max_size=6), max_size=5),
    st.lists(st.integers(0, 40), max_size=10),
)
def test_text_ends_before_the_earliest_stop_string_however_it_is_cut(
    text: str, stops: list[str], at: list[int]
) -> None:
    found = [text.find(stop) for stop in stops if stop in text]
    cuts = sorted(min(n, len(text)) for n in at)
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert stopped(stops, pieces) == (text[: min(found, default=len(text))], bool(found))


def test_text_is_held_back_only_while_it_may_begin_a_stop_string() -> None:
    matcher = StopStrings(["END", "\n\n"])
    assert [matcher.push(text) for text in ["The ", "E", "N", "d E", "\n", "4\n", "\n5"]] == [
        *("The ", "", "", "ENd ", "E", "\n4", ""),
    ]
    assert matcher.stopped
    assert matcher.push("more") == matcher.finish() == ""


def test_a_stop_string_waits_for_one_that_began_earlier() -> None:
    assert stopped(["abcd", "bc"], ["abc", "d"]) == ("", True)
    assert stopped(["abcd", "bc"], ["abc", "e"]) == ("a", True)
    assert stopped(["abcd", "bc"], ["abc"]) == ("a", True)


def test_characters_with_a_meaning_in_patterns_are_only_characters() -> None:
    assert stopped(["^]-\\", "[[&&"], ["a^]", "-b[[&", "&"]) == ("a^]-b", True)


def test_long_texts_and_many_stop_strings_take_linear_time() -> None:
    begun = time.perf_counter()
    stops = ["a" * n + "b" for n in range(1, 1000, 5)] + ["a" * 20_000 + "b"]
    assert stopped(stops, ["a"] * 100_000) == ("a" * 100_000, False)
    assert time.perf_counter() - begun < 10
