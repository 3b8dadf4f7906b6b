"""Who is asking.

The one place where a handler learns its caller, from the request and never from an input. Until accounts
exist the only visitor is the local one, because the studio binds to loopback alone.
"""

from typing import Any

LOCAL = "local"


def current_labeler(request: Any) -> str:
    """The caller's name: what the mount's auth dependency established, else the local visitor."""
    return str(getattr(request, "username", None) or LOCAL)
