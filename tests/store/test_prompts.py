"""The prompt queue: each conversation once, the least used next."""

from dpo_studio.domain.chat import Message
from dpo_studio.store import comparisons, prompts
from dpo_studio.store.database import Database
from tests.store.makers import START, add_comparison, said


def add(db: Database, *texts: str) -> int:
    with db.write() as session:
        return prompts.add_prompts(map(said, texts), source="test", now=START, session=session)


def order(db: Database, labeler: str, count: int) -> list[str]:
    """Texts that `labeler` gets, each one made into a comparison."""
    found = []
    for _ in range(count):
        with db.write() as session:
            prompt = prompts.next_prompt(labeler, session=session)
            assert prompt is not None
            found.append(prompt.messages[0].content)
            add_comparison(session, labeler=labeler, prompt_id=prompt.id, status="ready")
    return found


def test_the_same_conversation_is_stored_once(db: Database) -> None:
    assert add(db, "one", "two", "one") == 2
    assert add(db, "two", "three") == 1
    with db.read() as session:
        assert prompts.count_prompts(session=session) == 3


def test_a_conversation_of_several_turns_comes_back_as_it_was(db: Database) -> None:
    talk = (
        Message("system", "Be kind."),
        Message("user", "Hi"),
        Message("assistant", "Hé"),
        Message("user", "?"),
    )
    with db.write() as session:
        prompts.add_prompts([talk], source="test", now=START, session=session)
        found = prompts.next_prompt("ann", session=session)
    assert found is not None and found.messages == talk


def test_an_empty_queue_gives_none(db: Database) -> None:
    with db.read() as session:
        assert prompts.next_prompt("ann", session=session) is None


def test_one_labeler_goes_round_in_order_of_arrival(db: Database) -> None:
    add(db, "one", "two", "three")
    assert order(db, "ann", 7) == ["one", "two", "three", "one", "two", "three", "one"]


def test_two_labelers_share_the_work(db: Database) -> None:
    add(db, "one", "two", "three", "four")
    assert order(db, "ann", 2) + order(db, "bob", 2) == ["one", "two", "three", "four"]


def test_a_labeler_gets_what_they_have_not_had_before_what_is_merely_used_less(db: Database) -> None:
    add(db, "one", "two")
    assert order(db, "ann", 2) == ["one", "two"]
    assert order(db, "bob", 3) == ["one", "two", "one"]


def test_a_dropped_comparison_gives_its_prompt_back(db: Database) -> None:
    add(db, "one", "two")
    assert order(db, "ann", 1) == ["one"]
    with db.write() as session:
        assert comparisons.drop_superseded("v1", session=session) == 1
    assert order(db, "ann", 2) == ["one", "two"]
