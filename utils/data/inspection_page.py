"""What an inspection shows as one page of HTML: no other file, no network, no script; readable without colours."""

from collections.abc import Iterable
from html import escape

from utils.data.shown_rows import MARKS, REASONS, Shown

_COLOURS = {
    "target": "#bfe5bf",
    "first": "#e3e3e3",
    "repeated": "#e3e3e3",
    "template": "#f4f4f4",
    "system": "#f6dfc4",
    "user": "#cfe2f7",
    "tool": "#e5d6f2",
    "weight_0": "#f8d0d0",
    "earlier_answer": "#f3f0c0",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #111;
  background: #fff }
pre { overflow-x: auto }
h2 { font-size: 1.1em; margin: 2em 0 0.3em }
h3 { font-size: 1em; font-weight: normal; margin: 0.8em 0 0.2em }
.mark { display: flex; border-top: 1px solid #ddd }
.mark b { flex: 0 0 8em; padding: 0 0.5em; font-weight: normal }
.mark span { flex: 1; white-space: pre-wrap; overflow-wrap: anywhere; padding: 0 0.5em }
.target b { font-weight: bold }
.target span { border-left: 4px solid #111 }
"""
_STYLE += "".join(f".{label} {{ background: {colour} }}\n" for label, colour in _COLOURS.items())


def page(name: str, summary: str, items: Iterable[Shown]) -> str:
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">',
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">""",
        f"<title>{escape(name)}</title>\n<style>{_STYLE}</style>\n<h1>{escape(name)}</h1>",
        f"<pre>{escape(summary)}</pre>",
        f"<p>{escape(MARKS)}</p>",
        *(_mark(label, reason) for label, reason in REASONS.items()),
    ]
    for item in items:
        parts.append(f"<h2>{escape(item.title)}</h2>")
        for segment in item.segments:
            parts.append(f"<h3>{escape(segment.title)}</h3>")
            parts += [_mark(mark.label, mark.marked) for mark in segment.marks]
        parts += [f'<p dir="auto">{escape(line)}</p>' for line in item.rest]
    return "\n".join([*parts, "</html>\n"])


def _mark(label: str, text: str) -> str:
    """`text` may be in any script: it is written in its own direction."""
    return f'<div class="mark {label}"><b>{label}</b><span dir="auto">{escape(text)}</span></div>'
