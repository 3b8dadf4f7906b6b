"""Text of models and users, made harmless for the Markdown component.

Gradio's sanitizer stops scripts but lets images, CSS and forms through, so a sampled answer could fetch
from other machines or draw over the page. `safe_md` keeps Markdown (lists, emphasis, links, code) and
turns every HTML tag and every image into text. `plain_md` turns all Markdown into text as well, for
sentences that are not ours to format. What always holds: a `<` stays only where every reading of the
text is code. Components that show it must have `latex_delimiters=[]`, or formulas could swallow a fence.
"""

import re
import string

# A backtick fence in the first column, closed like marked closes it (an indented one may belong to a
# list item that ends before it), or a one-line span after a blank. Pipes are left out because a table
# splits cells inside code, and a span glued to a word may be part of an address.
_CODE = re.compile(
    r"(?P<block>^(?P<fence>`{3,})[^`\n]*(?:\n.*?)?(?:\n {0,3}(?P=fence)[~`]* *$|\Z))"
    r"|(?<!\S)`[^`\n|]+`(?!`)",
    re.S | re.M,
)
_ENTITIES = {ord(char): f"&#{ord(char)};" for char in string.punctuation}


def safe_md(text: str) -> str:
    """Markdown that renders without any HTML tag or image of the text's own."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts: list[str] = []
    end = 0
    for code in _CODE.finditer(text):
        is_certain = code["block"] is not None or "]:" not in code.group()
        parts += [
            _escape(text[end : code.start()]),
            code.group() if is_certain else _escape(code.group()),
        ]
        end = code.end()
    return "".join([*parts, _escape(text[end:])])


def plain_md(text: str) -> str:
    """Markdown that shows `text` letter by letter on one line: every punctuation mark is an entity."""
    return " ".join(text.split()).translate(_ENTITIES)


def _escape(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("![", "!\\[")
    # Tilde fences and link definitions may swallow a backtick fence, after which what counts as code
    # here would be HTML to the browser's parser.
    return escaped.replace("~~~", "\\~~~").replace("]:", "]\\:")
