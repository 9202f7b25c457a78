"""What token ids tell of answers: the commonest, those of another prompt, those from a store."""

from pipeline.client.tokens import TokenAnswer, commonest, is_exchanged, store_doubt


def answer(ids: tuple[int, ...], prompt: int = 1, short_of: int = 0) -> TokenAnswer:
    return TokenAnswer(ids, "", (prompt,), 0, short_of=short_of)


def test_the_commonest_answer_is_the_first_of_its_kind() -> None:
    assert commonest([answer((9,)), answer((1,), 7), answer((1,), 8)]).prompt_ids == (7,)


REFERENCES = {"a": answer((1, 2), 1), "b": answer((3, 4), 2), "c": answer((1, 2), 3)}


def test_an_answer_with_another_prompts_tokens_was_exchanged() -> None:
    assert is_exchanged("a", answer((3, 4), 1), REFERENCES, by_text=True)
    assert not is_exchanged("a", answer((3, 4), 1), REFERENCES, by_text=False), "the suite's answers are of few forms"
    assert is_exchanged("a", answer((3, 4), 2), REFERENCES, by_text=False), "its prompt was another"
    assert is_exchanged("a", answer((5,), 2), REFERENCES, by_text=False)


def test_its_own_answer_was_not_exchanged_though_another_prompt_has_the_same() -> None:
    assert not is_exchanged("a", answer((1, 2), 1), REFERENCES, by_text=True)
    assert not is_exchanged("a", answer((7, 8), 1), REFERENCES, by_text=True), "it differs, and is nobody else's"


def test_a_store_gives_itself_away() -> None:
    assert store_doubt({}) == ""
    assert store_doubt({"a": [answer((1,))], "b": [answer((1,), 2)]}) == ""
    assert "one was cut off at 1 tokens where 5 were allowed" in store_doubt({"a": [answer((2,)), answer((1,), short_of=5)]})
    assert "two prompts came back with the same token ids" in store_doubt({"a": [answer((1,))], "b": [answer((2,))]})
