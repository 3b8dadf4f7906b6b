"""Tables in Markdown, line by line."""

from collections.abc import Iterator


def head(*names: str) -> Iterator[str]:
    """The two lines above a table's rows."""
    yield line(*names)
    yield f"|{'---|' * len(names)}"


def line(*cells: object) -> str:
    """One row."""
    return f"| {' | '.join(map(str, cells))} |"
