from __future__ import annotations

from openai_gateway.bench.prompts import Writer


def test_no_two_texts_begin_alike() -> None:
    writer = Writer()
    beginnings = {text[:12] for text in (*(writer.fresh(5) for _ in range(500)), Writer().fresh(5))}
    assert len(beginnings) == 501


def test_texts_have_the_length_that_was_asked_for() -> None:
    writer = Writer()
    assert len(writer.words(300).split()) == 300
    conversation = writer.conversation(2100)
    assert 2000 < sum(len(message["content"].split()) for message in conversation) < 2200
    roles = [message["role"] for message in conversation]
    assert roles == ["user", "assistant"] * 10 + ["user"]


def test_a_change_is_in_the_middle_and_nowhere_else() -> None:
    writer = Writer()
    conversation = writer.conversation(500)
    changed = writer.changed(conversation)
    different = [place for place, pair in enumerate(zip(conversation, changed, strict=True)) if pair[0] != pair[1]]
    assert different == [len(conversation) // 2]
    place = different[0]
    assert changed[place]["content"].startswith(conversation[place]["content"])
