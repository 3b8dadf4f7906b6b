"""Text appears piece by piece without broken characters and never shows a stop string."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_studio.serving.text_stream import TextStream
from tests.models import make_tokenizer

TOKENIZERS = {name: make_tokenizer(name).backend_tokenizer for name in ("llama", "gemma2")}


def decoder(name: str) -> TextStream:
    tokenizer = TOKENIZERS[name]
    return TextStream(lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)))


@given(st.sampled_from(sorted(TOKENIZERS)), st.text(max_size=40))
@settings(deadline=None)
def test_pieces_concatenate_to_the_text(name: str, text: str) -> None:
    stream = decoder(name)
    ids = TOKENIZERS[name].encode(text, add_special_tokens=False).ids
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == stream.text == TOKENIZERS[name].decode(ids, skip_special_tokens=False)


@given(st.sampled_from(sorted(TOKENIZERS)), st.lists(st.integers(5, 300), max_size=40))
@settings(deadline=None)
def test_random_ids_lose_nothing_that_was_shown(name: str, ids: list[int]) -> None:
    stream = decoder(name)
    assert "".join([stream.push(token) for token in ids] + [stream.finish()]) == stream.text


def test_a_character_of_several_tokens_comes_in_one_piece() -> None:
    stream = decoder("llama")
    ids = TOKENIZERS["llama"].encode("é", add_special_tokens=False).ids
    assert len(ids) == 2
    assert [stream.push(token) for token in ids] == ["", "é"]


def characters(text: str, *stops: str) -> tuple[list[str], TextStream]:
    stream = TextStream(lambda ids: "".join(map(chr, ids)), stops)
    pieces = []
    for character in text:
        pieces.append(stream.push(ord(character)))
        if stream.is_stopped:
            break
    return [*pieces, stream.finish()], stream


def test_text_ends_before_the_stop_string() -> None:
    pieces, stream = characters("one END two", "END")
    assert stream.is_stopped
    assert "".join(pieces) == stream.text == "one "


def test_what_could_become_a_stop_string_is_held_back_until_it_cannot() -> None:
    pieces, stream = characters("aENx", "END")
    assert pieces == ["a", "", "", "ENx", ""]
    assert not stream.is_stopped


def test_a_held_beginning_of_a_stop_string_is_released_at_the_end() -> None:
    assert "".join(characters("aEN", "END")[0]) == "aEN"


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_released_text_is_the_text_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    pieces, stream = characters(text, *stops)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert "".join(pieces) == text
        return
    first_end = min(ends)
    starts = [text[:first_end].find(stop) for stop in stops if stop in text[:first_end]]
    assert "".join(pieces) == text[: min(starts)]
    assert stream.is_stopped
