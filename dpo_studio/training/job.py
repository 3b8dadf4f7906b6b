"""Read a round's folder: the job and its preference pairs, exactly as they were snapshotted.

Refuses files whose sha256 or number of rows is not the one in `job.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_studio.domain.chat import Message
from dpo_studio.domain.codec import from_json
from dpo_studio.domain.preference import PreferencePair, SampledText
from dpo_studio.domain.round import RoundJob
from dpo_studio.errors import BadInput
from dpo_studio.files import read_json, read_jsonl, sha256_of_file
from dpo_studio.paths import RoundPaths


@dataclass(frozen=True, slots=True)
class Assignment:
    """A job with its data."""

    job: RoundJob
    train: tuple[PreferencePair, ...]
    heldout: tuple[PreferencePair, ...]


def read_assignment(paths: RoundPaths) -> Assignment:
    """The job and pairs of one round. Raises BadInput naming the file that cannot be used."""
    try:
        job = from_json(RoundJob, read_json(paths.job), where="job.json")
        return Assignment(
            job=job,
            train=_read_pairs(paths.train, job.train_sha256, job.num_train),
            heldout=_read_pairs(paths.heldout, job.heldout_sha256, job.num_heldout),
        )
    except FileNotFoundError as error:
        raise BadInput(f"{paths.root}: expected a round's folder, found no {error.filename}") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInput(f"{paths.root}: expected JSON in job.json and the pairs, found: {error}") from error


def pair_from_row(row: Any, *, where: str) -> PreferencePair:
    """One line of train.jsonl or heldout.jsonl. Raises BadInput naming the place that does not fit."""
    try:
        return PreferencePair(
            pair_id=row["pair_id"],
            messages=tuple(
                from_json(Message, message, where=f"{where}: prompt") for message in row["prompt"]
            ),
            chosen=_side(row, "chosen", where),
            rejected=_side(row, "rejected", where),
            vote_ids=tuple(row["vote_ids"]),
            labelers=tuple(row["labelers"]),
            # Only where labelers disagreed; earlier snapshots know none.
            chosen_probability=float(row.get("chosen_probability", 1.0)),
            # Only of rankings.
            between=tuple(_between(value, where) for value in row.get("between", ())),
        )
    except (KeyError, TypeError, ValueError, BadInput) as error:
        raise BadInput(
            f"{where}: expected a preference pair, found {type(error).__name__} {error}"
        ) from error


def _side(row: Any, name: str, where: str) -> SampledText:
    (message,) = (from_json(Message, value, where=f"{where}: {name}") for value in row[name])
    return _text(message.content, row[f"{name}_ids"], row[f"{name}_version"])


def _between(value: Any, where: str) -> SampledText:
    said = {"role": value["role"], "content": value["content"]}
    message = from_json(Message, said, where=f"{where}: between")
    return _text(message.content, value["ids"], value["version"])


def _text(content: str, ids: Sequence[int] | None, version: str) -> SampledText:
    return SampledText(content, None if ids is None else tuple(ids), version)


def _read_pairs(path: Path, sha256: str, num_rows: int) -> tuple[PreferencePair, ...]:
    found = sha256_of_file(path)
    if found != sha256:
        raise BadInput(
            f"{path.name}: expected {sha256}, found {found}; the snapshot was changed, start a new round"
        )
    pairs = tuple(
        pair_from_row(row, where=f"{path.name} line {number}")
        for number, row in enumerate(read_jsonl(path), start=1)
    )
    if len(pairs) != num_rows:
        raise BadInput(f"{path.name}: expected {num_rows} pairs, found {len(pairs)}; start a new round")
    return pairs
