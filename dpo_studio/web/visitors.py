"""Who asks. On a loopback bind without accounts there is one person: the local admin."""

from typing import Annotated

from fastapi import Depends

LOCAL = "local"


def current_visitor() -> str:
    """Name under which votes and decisions of this request are recorded."""
    return LOCAL


Visitor = Annotated[str, Depends(current_visitor)]
