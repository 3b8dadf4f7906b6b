"""Encoding: sampled ids are kept, cuts are fair, and what teaches nothing is dropped and counted."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import PreferencePair, SampledText
from dpo_studio.dpo.batches import TokenPair
from dpo_studio.errors import BadInput
from dpo_studio.training.encoding import EncodedPairs, encode_pairs, fit_pair


def encode(messages: Sequence[Message], response: SampledText) -> tuple[list[int], list[int]]:
    """One token a letter; ids that were sampled are kept."""
    if messages[0].content == "refused":
        raise BadInput("no system turns")
    ids = [ord(c) for c in response.text] if response.token_ids is None else list(response.token_ids)
    return [ord(c) for c in messages[0].content], ids


def pair(prompt: str, chosen: SampledText, rejected: SampledText) -> PreferencePair:
    return PreferencePair("p", (Message("user", prompt),), chosen, rejected, ("v",), ("anna",))


def run(*pairs: PreferencePair, max_length: int = 100) -> EncodedPairs:
    return encode_pairs(pairs, encode, max_length=max_length, vocabulary=128)


def test_sampled_ids_are_used_as_they_are() -> None:
    found = run(pair("q", SampledText("yes", (7, 8, 9)), SampledText("no")))
    assert found.pairs == (TokenPair((ord("q"),), (7, 8, 9), (ord("n"), ord("o"))),)
    assert (found.num_truncated, found.num_dropped) == (0, 0)


def test_what_teaches_nothing_is_dropped_with_its_reason() -> None:
    found = run(
        pair("q", SampledText("  "), SampledText("no")),
        pair("q", SampledText("yes"), SampledText("")),
        pair("q", SampledText("same"), SampledText("same")),
        pair("q", SampledText("yes", (500,)), SampledText("no")),
        pair("refused", SampledText("yes"), SampledText("no")),
        pair("q", SampledText("yes"), SampledText("no")),
    )
    assert len(found.pairs) == 1
    assert found.dropped == {
        "with an empty response": 2,
        "with two equal responses": 1,
        "with token ids of another tokenizer": 1,
        "whose prompt the chat template refuses": 1,
    }
    assert "2 with an empty response" in found.explain_drops()


def test_an_empty_answer_that_the_model_itself_gave_may_be_rejected() -> None:
    found = run(pair("q", SampledText("yes"), SampledText("", (3,))))
    assert found.pairs[0].rejected == (3,)


def test_two_texts_of_one_encoding_after_the_cut_are_dropped() -> None:
    found = run(pair("q" * 10, SampledText("a" * 50 + "b"), SampledText("a" * 50 + "c")), max_length=20)
    assert found.dropped == {"with two equal responses": 1}
    assert found.num_truncated == 0


def test_cuts_are_counted_by_pair() -> None:
    found = run(
        pair("q" * 30, SampledText("yes"), SampledText("no")),
        pair("q", SampledText("yes"), SampledText("no")),
        max_length=20,
    )
    assert found.num_truncated == 1
    assert len(found.pairs[0]) == 20


def test_a_long_prompt_loses_its_beginning() -> None:
    fitted = fit_pair(TokenPair(tuple(range(50)), (1, 2, 3), (4,)), 20)
    assert fitted == TokenPair(tuple(range(33, 50)), (1, 2, 3), (4,))


def test_both_responses_are_cut_at_the_same_length() -> None:
    fitted = fit_pair(TokenPair(tuple(range(50)), tuple(range(40)), tuple(range(30))), 20)
    assert (len(fitted.prompt), len(fitted.chosen), len(fitted.rejected)) == (10, 10, 10)


def test_a_short_prompt_leaves_its_room_to_the_responses() -> None:
    fitted = fit_pair(TokenPair((1, 2), tuple(range(40)), (5,)), 20)
    assert (len(fitted.prompt), len(fitted.chosen), len(fitted.rejected)) == (2, 18, 1)


sizes = st.integers(1, 60)


@settings(deadline=None)
@given(sizes, sizes, sizes, st.integers(2, 50))
def test_a_fitted_pair_fits_and_keeps_something_of_everything(p: int, c: int, r: int, most: int) -> None:
    whole = TokenPair(tuple(range(p)), tuple(range(c)), tuple(range(r)))
    fitted = fit_pair(whole, most)
    assert len(fitted) <= max(most, 2)
    assert fitted.prompt and fitted.chosen and fitted.rejected
    assert whole.prompt[p - len(fitted.prompt) :] == fitted.prompt
    assert whole.chosen[: len(fitted.chosen)] == fitted.chosen
    assert (fitted == whole) is (len(whole) <= most)


def ranking(prompt: str, *responses: str) -> PreferencePair:
    best, *between, worst = (SampledText(text) for text in responses)
    return replace(pair(prompt, best, worst), between=tuple(between))


def test_a_ranking_keeps_its_order_and_all_are_cut_at_the_same_length() -> None:
    (found,) = run(ranking("q" * 50, "a" * 40, "b" * 30, "c", "d" * 20), max_length=20).pairs
    assert [(chr(ids[0]), len(ids)) for ids in found.responses] == [("a", 10), ("b", 10), ("c", 1), ("d", 10)]
    assert (len(found.prompt), len(found)) == (10, 20)


def test_a_ranking_of_which_one_part_teaches_nothing_is_dropped() -> None:
    found = run(
        ranking("q", "yes", " ", "no"),
        ranking("q", "yes", "no", ""),
        ranking("q", "yes", "no", "no"),
        ranking("q" * 10, "a" * 50 + "b", "x", "a" * 50 + "c"),
        ranking("q", "yes", "perhaps", "no"),
        max_length=20,
    )
    assert len(found.pairs) == 1
    assert found.dropped == {"with an empty response": 2, "with two equal responses": 2}


def test_a_probability_is_used_only_with_soft_labels_and_survives_a_cut() -> None:
    doubted = replace(pair("q" * 30, SampledText("yes"), SampledText("no")), chosen_probability=0.75)
    hard = encode_pairs([doubted], encode, max_length=10, vocabulary=128)
    soft = encode_pairs([doubted], encode, max_length=10, vocabulary=128, soft_labels=True)
    assert [found.pairs[0].chosen_probability for found in (hard, soft)] == [1.0, 0.75]
    assert (hard.num_truncated, soft.num_truncated) == (1, 1)
    assert replace(soft.pairs[0], chosen_probability=1.0) == hard.pairs[0]


def test_a_probability_is_no_cut() -> None:
    doubted = replace(pair("q", SampledText("yes"), SampledText("no")), chosen_probability=0.75)
    assert encode_pairs([doubted], encode, max_length=10, vocabulary=128, soft_labels=True).num_truncated == 0
