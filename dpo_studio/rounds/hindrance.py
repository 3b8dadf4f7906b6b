"""Can a worker go on in the folder of a round that was cut off? Looks, changes nothing.

Only the same plan, over the same data, by the same code leads to the adapter that the round would have had;
anything else is a new round's work. Whether the checkpoint can be used the worker decides, who wrote it:
without one it begins at the start.
"""

import os
import shutil

from dpo_studio import __version__
from dpo_studio.domain.codec import from_json
from dpo_studio.domain.round import RoundJob
from dpo_studio.errors import BadInput
from dpo_studio.files import read_json, sha256_of_file
from dpo_studio.paths import RoundPaths

ROOM_BYTES = 64 << 20
"""Beside this much, a worker writes what it wrote before: a checkpoint and an adapter."""


def hindrance(paths: RoundPaths) -> str:
    """Why no worker can go on in this folder, as the end of a sentence; empty when one can."""
    try:
        job = from_json(RoundJob, read_json(paths.job), where="job.json")
        changed = [
            path.name
            for path, expected in ((paths.train, job.train_sha256), (paths.heldout, job.heldout_sha256))
            if sha256_of_file(path) != expected
        ]
        free = shutil.disk_usage(paths.root).free
        written = paths.checkpoint.stat().st_size if paths.checkpoint.exists() else 0
    except (OSError, ValueError, RecursionError, BadInput):
        return "its folder holds no plan that can be read"
    if job.code_version != __version__:
        return f"it was begun by version {job.code_version or 'unknown'} and this is {__version__}"
    if changed:
        return f"{changed[0]} in its folder is not the file that it was begun with"
    if not os.access(paths.root, os.W_OK):
        return "its folder cannot be written"
    if free < ROOM_BYTES + 2 * written:
        return f"the disk has only {free >> 20} MiB left"
    return ""
