"""A round's data, frozen: two JSONL files and the hashes that prove them.

The same pairs give the same bytes whatever order they come in. A snapshot is written once; writing over
one is refused. Nothing is left out silently: every pair given is in one of the two files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpo_studio.domain.preference import PreferencePair
from dpo_studio.errors import BadInput, Conflict
from dpo_studio.files import canonical_json, sha256_of_bytes, sha256_of_file, write_jsonl
from dpo_studio.paths import RoundPaths
from dpo_studio.rounds.split import split_pairs


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was written."""

    train_sha256: str
    heldout_sha256: str
    dataset_sha256: str
    """Hash of the two hashes."""
    num_train: int
    num_heldout: int
    vote_ids: tuple[str, ...]
    """Every vote behind a pair, sorted, each once."""


def write_snapshot(pairs: Sequence[PreferencePair], paths: RoundPaths, heldout_share: float) -> Snapshot:
    """Write `train.jsonl` and `heldout.jsonl`. Raises BadInput without pairs, Conflict when they exist."""
    if not pairs:
        raise BadInput("Expected at least one preference pair to train on, found none; label some first")
    for path in (paths.train, paths.heldout):
        if path.exists():
            raise Conflict(f"{path} exists already; a snapshot is never written over, start another round")
    ordered = sorted(pairs, key=lambda pair: pair.pair_id)
    assert len({pair.pair_id for pair in ordered}) == len(ordered), "pair ids must differ"
    train, heldout = split_pairs(ordered, heldout_share)
    write_jsonl(paths.train, map(pair_to_row, train))
    write_jsonl(paths.heldout, map(pair_to_row, heldout))
    train_sha256 = sha256_of_file(paths.train)
    heldout_sha256 = sha256_of_file(paths.heldout)
    return Snapshot(
        train_sha256=train_sha256,
        heldout_sha256=heldout_sha256,
        dataset_sha256=dataset_hash(train_sha256, heldout_sha256),
        num_train=len(train),
        num_heldout=len(heldout),
        vote_ids=tuple(sorted({vote_id for pair in ordered for vote_id in pair.vote_ids})),
    )


def dataset_hash(train_sha256: str, heldout_sha256: str) -> str:
    """One name for both files."""
    return sha256_of_bytes(canonical_json({"heldout": heldout_sha256, "train": train_sha256}).encode())


def pair_to_row(pair: PreferencePair) -> dict[str, Any]:
    """One line of a snapshot: TRL's conversational format, the sampled ids and where it came from.

    `between`, only of a ranking: its responses worse than `chosen` and better than `rejected`, best first.
    """
    # Left out where nobody disagreed, so that such data has the hash it always had.
    doubt = {} if pair.chosen_probability == 1 else {"chosen_probability": pair.chosen_probability}
    between = [
        {"role": "assistant", "content": text.text, "ids": text.token_ids, "version": text.version}
        for text in pair.between
    ]
    return {
        "pair_id": pair.pair_id,
        "prompt": [{"role": message.role, "content": message.content} for message in pair.messages],
        "chosen": [{"role": "assistant", "content": pair.chosen.text}],
        "rejected": [{"role": "assistant", "content": pair.rejected.text}],
        "chosen_ids": pair.chosen.token_ids,
        "rejected_ids": pair.rejected.token_ids,
        "chosen_version": pair.chosen.version,
        "rejected_version": pair.rejected.version,
        "vote_ids": pair.vote_ids,
        "labelers": pair.labelers,
        **doubt,
        **({"between": between} if between else {}),
    }
