"""How a round trained, in sentences for pages and commands."""

from dpo_studio.domain.round import TrainingFacts


def sentences(facts: TrainingFacts) -> tuple[str, ...]:
    """The layout, what was out of the ordinary, what became of pairs and references, and how long it took."""
    told = (facts.layout, *facts.notes, *_of_pairs(facts), _of_references(facts))
    return (*filter(None, told), _of_time(facts))


def duration(seconds: float) -> str:
    """E.g. "1 min 29 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _of_pairs(facts: TrainingFacts) -> tuple[str, ...]:
    if not facts.num_truncated and not facts.num_dropped:
        return ("Every pair was used, and none was cut.",)
    cut = f"{_pairs(facts.num_truncated)} {_was(facts.num_truncated)} too long and cut to fit."
    left_out = (
        f"{_pairs(facts.num_dropped)} {_was(facts.num_dropped)} left out: nothing could be learnt there."
    )
    return (cut if facts.num_truncated else "", left_out if facts.num_dropped else "")


def _of_references(facts: TrainingFacts) -> str:
    computed, known = facts.num_reference_computed, facts.num_reference_known
    if not known:
        return f"Reference log-probabilities of {_pairs(computed)} were computed." if computed else ""
    rest = f"those of {_pairs(computed)} were computed" if computed else "none had to be computed"
    return f"Reference log-probabilities of {_pairs(known)} were known from earlier rounds; {rest}."


def _of_time(facts: TrainingFacts) -> str:
    # Neither is of a round that went on: its checkpoint held them, as a note says. Its seconds are those of
    # the last worker alone.
    went_on = not facts.num_reference_computed and not facts.num_reference_known
    start = "Since it went on, training" if went_on else "Training"
    return f"{start} and measuring took {duration(facts.train_seconds)}."


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"
