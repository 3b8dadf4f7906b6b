"""HTML from values, escaped by construction.

`element` is the only way pages make HTML out of data: every string among its children and attribute
values is escaped, and only `Html` (what `element` itself returned) is taken as it is. It knows no
component and refuses script-bearing names.
"""

from html import escape

_NAMES = frozenset(
    (
        *("a", "article", "button", "caption", "del", "details", "div", "h2", "h3", "header", "ins", "li"),
        *("nav", "p", "progress", "section", "span", "strong", "summary"),
        *("table", "tbody", "td", "th", "thead", "time", "tr", "ul"),
    )
)
_ATTRIBUTES = frozenset(
    (
        *("class", "id", "href", "role", "title", "type", "scope", "hidden", "datetime", "value", "max"),
        *("open", "data-action", "data-key", "data-name"),
    )
)


class Html(str):
    """A string that is HTML already, made by `element` or `join`."""

    __slots__ = ()


def element(name: str, *children: "str | Html", **attributes: "str | bool | None") -> Html:
    """`<name …>children</name>`. `cls` is the class; `_` in other names stands for `-`; None is left out."""
    assert name in _NAMES, f"{name} is not an element that pages may make"
    spelled = "".join(_attribute(key, value) for key, value in attributes.items())
    return Html(f"<{name}{spelled}>{join(*children)}</{name}>")


def join(*children: "str | Html") -> Html:
    """Children one after the other; plain strings escaped."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def _attribute(key: str, value: "str | bool | None") -> str:
    name = "class" if key == "cls" else key.replace("_", "-")
    assert name in _ATTRIBUTES or name.startswith("aria-"), f"{name} is not an attribute that pages may set"
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(value)}"'
