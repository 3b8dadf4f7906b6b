"""Routes of data: prompts and pairs in as JSONL, pairs out in four formats."""

import itertools
from collections.abc import Iterator
from typing import Literal

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from dpo_studio.errors import BadInput
from dpo_studio.services.studio import Studio
from dpo_studio.web.answers import Json, import_json

ExportFormat = Literal["trl", "openai", "csv", "parquet"]
MEDIA_TYPES: dict[ExportFormat, str] = {
    "trl": "application/jsonl",
    "openai": "application/jsonl",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
ENDINGS: dict[ExportFormat, str] = {"trl": "jsonl", "openai": "jsonl", "csv": "csv", "parquet": "parquet"}


class DataRoutes:
    """Imports are all-or-nothing; an export is one consistent snapshot."""

    def __init__(self, studio: Studio) -> None:
        self._data = studio.data

    async def import_prompts(self, request: Request) -> Json:
        """One prompt a line; answers how many were new."""
        lines = decode_lines(await request.body())
        return import_json(await run_in_threadpool(self._data.import_prompts, lines))

    async def import_pairs(self, request: Request) -> Json:
        """One preference a line, in any of the known shapes; answers how many were new."""
        lines = decode_lines(await request.body())
        return import_json(await run_in_threadpool(self._data.import_pairs, lines))

    def export_pairs(self, format: ExportFormat = "trl") -> StreamingResponse:
        """Every trainable pair, streamed."""
        chunks = _started(self._data.export_pairs(format))
        headers = {"Content-Disposition": f'attachment; filename="pairs-{format}.{ENDINGS[format]}"'}
        return StreamingResponse(chunks, media_type=MEDIA_TYPES[format], headers=headers)


def decode_lines(body: bytes) -> list[str]:
    """Lines of a JSONL body. Raises BadInput naming the first line that is not UTF-8."""
    lines = []
    # Not str.splitlines: U+2028 and form feeds inside a JSON string do not end a line.
    for number, line in enumerate(body.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise BadInput(
                f"line {number}: expected UTF-8 text, found other bytes; nothing was imported"
            ) from None
    return lines


def _started(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, the first one made now: what fails at once is an error and not a cut download."""
    return itertools.chain([next(chunks, b"")], chunks)
