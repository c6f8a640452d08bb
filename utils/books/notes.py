"""Notes of those who made the electronic text: producers' credits, and transcribers' notes with or without a frame."""

from __future__ import annotations

import re

from utils.books.boilerplate import names_producers
from utils.books.edits import Doubt, Edit, Found, Text
from utils.books.paragraphs import Paragraph, begins_at, line_before, paragraphs_from

PRODUCERS, TRANSCRIBERS = "producers' note", "transcriber's note"
UNSURE_PRODUCERS, UNSURE_TRANSCRIBERS = "producers' note unsure", "transcriber's note unsure"

_CREDIT = re.compile(
    r"""\W*(?:(?:this|the)\s+(?:e-?text|e-?book|file|text|electronic\s+\w+|project\s+gutenberg\s+\S+)\s+(?:was|is)\s+)?
    (?:first\s+)?(?:produced|prepared|transcribed|scanned|digiti[sz]ed|proof-?read|typed|keyed|entered|converted|created
    |html\s+updated|corrected|formatted|e-?text\s+(?:prepared|produced|scanned)|etext\s+by
    |produit|produziert|erstellt|prodotto|producido|produzido|geproduceerd|tuottaneet|tuottanut)
    (?:\s+(?:and|&|,)\s*\w+)*(?:\s+(?:and|&)\s+\w+)?\s*(?:by|par|von|da|por|door)?:?\s""",
    re.IGNORECASE | re.VERBOSE,
)
_HELPERS = re.compile(
    r"a|an|and|the|of|at|by|from|for|in|with|on|to|this|that|was|were|is|made|file|files|images|image|"
    r"generously|available|through|produced|prepared|transcribed|scanned|proofread|proofreading|proofed|"
    r"edition|version|html|text|etext|e-?text|ebook|page|pages|public|domain|material|print|project|"
    r"university|library|libraries|corrections|further|additional|typed|typing|it|into|as|using|provided|"
    r"courtesy|copy|original|printed|edited|volunteer|volunteers|volume|team|online|distributed|"
    r"proofreaders|anonymous|updated|converted|corrected|kindly|which|can|be|found|editing|revised|de|la|"
    r"et|und|von|e|y|i|en|others|many|thanks|special|email|e-?mail|digital|scans|book|books|work|"
    r"conversion|creation|credits|formatting|illustrations|index|greek|hebrew|music|notation|ascii|unicode|"
    r"latin-?1|utf-?8",
    re.IGNORECASE,
)
"""Words that a credit has beside names."""
_NOTE = re.compile(
    r"""[\W_]*(?:transcriber(?:'|’)?s?(?:'|’)?\s+(?:end)?notes?\b | transcription\s+notes?\b | transcriber\s*:
    | notes?\s+(?:from|by|of)\s+(?:the\s+)?transcriber | errata\s+(?:\(?noted\s+by\s+(?:the\s+)?)transcriber
    | notes?\s+(?:du|de\s+la|sur\s+la)\s+transcri\w+ | notes?\s+au\s+lecteur\s+de\s+ce\s+fichier
    | anmerkung(?:en)?\s+(?:zur|des|der)\s+(?:transkri\w+|bearbeit\w+) | zur\s+transkription
    | opmerkingen\s+van\s+de\s+bewerker | notas?\s+d(?:el|o|e)\s+(?:transcri\w+) | nota\s+del\s+trascrittore
    | \[this\s+(?:e-?text|text|file)\s+(?:uses|is\s+(?:intended|encoded|in)|comes\s+in)\s | \[note\s+project\s+gutenberg
    | note\s+del\s+trascrittore | notas?\s+de\s+transcri\w+ | anmärkningar?\s+(?:av|från)\s+utskriv\w+)""",
    re.IGNORECASE | re.VERBOSE,
)
_ABOUT_TEXT = re.compile(
    r"""spelling|hyphenat|typograph|typo\b|typos|errors?|corrected|correction|retained|preserved|original|printed|edition
    |\bscan(?:s|ned|ning|nos?)?\b|footnotes?\b|italic|underscor|illustrat|punctuation|inconsisten|e-?text|e-?book|html|utf-8|unicode|latin-1|ascii
    |changed\s+to|page\s+\d|pg\.?\s*\d|p\.\s*\d|line\s+\d|accented|diacrit
    |orthograph|coquille|corrig|erreur|conserv|fehler|korrigiert|schreibweise|zeichensetzung|druckfehler|rechtschreib
    |gesperrt|kursiv|spelling|drukfout|errores|ortograf|corregid|correzion|refus[oi]|grafia|errata|for\s+[“"'].+read
    |s(?:eite|\.)\s*\d|bl(?:ad|z)\.?\s*\d|transcri|digital|version|unchanged|missing|invisible|full\s+stop|comma\b|text\b|public\s+domain""",
    re.IGNORECASE | re.VERBOSE,
)
"""What notes speak of; lines that none of it is in are no note's."""
_RULE = re.compile(r"\s*(?:[+|*#=_~\-–—.]\s?){5,}\s*")
_LONGEST = 150
"""Lines of a note; long lists of corrections are at the end."""
_FRONT_LINES = 400
"""Lines in which notes without brackets or frame may stand before the work."""


def is_credit(paragraph: Paragraph) -> bool:
    """Whether a paragraph right below a header says who made the electronic text, in names and a credit's words."""
    joined = paragraph.joined
    if len(joined) > 1200 or not _CREDIT.match(joined):
        return False
    words = re.findall(r"[^\W\d_][\w'’.-]*", re.sub(r"\S*(?:@|://|www\.|\.(?:org|net|com))\S*", " ", joined))
    named = [word for word in words if word[0].isupper() or _HELPERS.fullmatch(word.strip(".'’-"))]
    return len(words) > 1 and len(named) >= 0.95 * len(words) and any(word[0].isupper() for word in words[1:])


def begins_like_credit(paragraph: Paragraph) -> bool:
    return bool(_CREDIT.match(paragraph.joined))


def note_end(text: Text, paragraph: Paragraph) -> tuple[int, int] | None:
    """The lines [first, past) of the transcriber's note that begins with a paragraph; None if its end is not sure."""
    opening = text.lines[paragraph.first].lstrip()
    if opening.startswith("["):
        return _bracketed(text, paragraph.first)
    return _framed(text, paragraph.first)


def is_note(paragraph: Paragraph) -> bool:
    """Whether a transcriber's note begins with a paragraph, or with the line below its rule."""
    lines = [line for line in paragraph.lines if not _RULE.fullmatch(line)]
    return bool(lines and _NOTE.match(lines[0]))


def speaks_of_text(paragraph: Paragraph) -> bool:
    """Whether a paragraph speaks of what transcribers do, or lists what they changed."""
    return bool(_ABOUT_TEXT.search(paragraph.joined))


def _bracketed(text: Text, first: int) -> tuple[int, int] | None:
    """A note in brackets, which may have others in it; it ends at a line's end."""
    depth = 0
    for number in range(first, min(first + _LONGEST, len(text.lines))):
        line = text.lines[number]
        depth += line.count("[") - line.count("]")
        if depth <= 0:
            return (first, number + 1) if line.rstrip().endswith("]") else None
    return None


def _framed(text: Text, first: int) -> tuple[int, int] | None:
    """A note between two rules, of lines such as `+-----+`, or one whose lines all begin with `|`."""
    above = first
    if not _RULE.fullmatch(text.lines[first]):
        above = line_before(text, first)
        if above < 0 or first - above > 3 or not _RULE.fullmatch(text.lines[above]):
            return None
    start = begins_at(text, above + 1)
    for number in range(start + 1, min(start + _LONGEST, len(text.lines))):
        if _RULE.fullmatch(text.lines[number]):
            speaks = sum(bool(_ABOUT_TEXT.search(line)) for line in text.lines[start:number])
            return (above, number + 1) if speaks else None
    return None


def open_note_end(text: Text, paragraph: Paragraph) -> int | None:
    """The line after a note without brackets or frame: its paragraphs speak of the text, until three blank lines.

    One that begins with its heading, in the same paragraph, ends with that. None where the end is not sure.
    """
    past = paragraph.past
    has_text = len(paragraph.lines) > 1 or bool(re.search(r":\s+\w+\s+\w+", paragraph.joined))
    said = {match.lower() for match in _ABOUT_TEXT.findall(paragraph.joined[20:])}
    if has_text and len(said) > 1:
        return past  # what follows without a heading of its own may be the work's
    speaks = False
    for number, part in enumerate(paragraphs_from(text, paragraph.first)):
        if part.first - past > 2 or part.past - paragraph.first > _LONGEST:
            break
        about = bool(_ABOUT_TEXT.search(part.joined))
        if number > 0 and not about:
            return None
        speaks = speaks or (about and (number > 0 or len(part.lines) > 1))
        past = part.past
    gap = begins_at(text, past) - past
    return past if speaks and (gap > 2 or past >= len(text.lines)) else None


def _printed_first(text: Text, heading: Paragraph) -> int | None:
    """The line after a note's heading and a paragraph that only a producer writes, as where a story was first printed.

    None for any other note.
    """
    below = next(paragraphs_from(text, heading.past), None)
    if below is None or len(heading.lines) > 1 or below.first - heading.past > 2:
        return None
    return below.past if names_producers(below) else None


def find_front_notes(text: Text) -> Found:
    """Credits and notes before a work; a title page may stand among them."""
    edits: list[Edit] = []
    doubts: list[Doubt] = []
    directly = True
    done = 0
    for paragraph in paragraphs_from(text, 0):
        if paragraph.first >= _FRONT_LINES:
            break
        if paragraph.first < done:
            continue
        if is_note(paragraph):
            found = note_end(text, paragraph)
            if found is None and (end := open_note_end(text, paragraph) or _printed_first(text, paragraph)):
                found = (paragraph.first, end)
            if found is None:
                continue  # `find_back_notes`, which looks everywhere, says so
            edits.append(text.taken_out(*found, TRANSCRIBERS))
            done = found[1]
        elif (directly and names_producers(paragraph)) or (
            is_credit(paragraph) and (directly or names_producers(paragraph))
        ):
            edits.append(text.taken_out(paragraph.first, paragraph.past, PRODUCERS))
        elif not _RULE.fullmatch(paragraph.joined):
            if directly and begins_like_credit(paragraph):
                doubts.append(text.doubtful(paragraph.first, paragraph.past, UNSURE_PRODUCERS))
            directly = False
    return edits, doubts
