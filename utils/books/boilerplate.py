"""What paragraphs of Project Gutenberg's own say: its name, its licence, its headers of fifty years.

Two measures: STRICT names what no author writes of his own work; BROAD has in addition the words of licences and of the
pages about Project Gutenberg, which count only between a marker and the file's end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from utils.books.edits import Text
from utils.books.paragraphs import Paragraph, paragraphs_from

NAME = re.compile(
    r"""proje[ck]to?\w?\s+gutenberg | projet\s+gutenberg | proyecto\s+gutenberg | progetto\s+gutenberg
    | gutenberg(?:'s|’s)?[\s-]+(?:e-?text|e-?book|literary\s+archive|licen[sc]e|tm\b) | gutenberg\.(?:org|net|ca|com)
    | project\s+runeberg | runeberg\.org | pgdp\.(?:net|org) | pglaf\.org | faded\s*page | distributed\s+proofread
    | gutenberg2000\.de | gutenberg\.spiegel\.de | gutenberg-(?:tm|de)""",
    re.IGNORECASE | re.VERBOSE,
)
"""Names of Project Gutenberg, its sisters and its producers, in several languages."""

_NAME_SEEDS = ("gutenberg", "runeberg", "pgdp", "pglaf", "faded", "proofread")

FIELD = re.compile(
    r"""\W{0,3}(?:title|subtitle|author|translator|editor|illustrator|contributor|commentator|annotator|compiler|composer
    |release\s+date|posting\s+date|last\s+updated?|most\s+recently\s+updated|official\s+release\s+date|first\s+posted
    |first\s+released|date\s+(?:first\s+posted|last\s+updated|most\s+recently\s+updated|of\s+first\s+publication)
    |language|character\s+set\s+encoding|encoding|original\s+publication|credits|edition|e-?(?:book|text)\s+no\.?
    |other\s+information\s+and\s+formats|edition\s+used\s+as\s+base\s+for\s+this\s+e-?book)\s*:""",
    re.IGNORECASE | re.VERBOSE,
)
"""A line of a header's table, as `Title: …`."""

_STRICT = re.compile(
    r"""this\s+(?:e-?text|e-?book|electronic\s+(?:text|edition))\b | almost\s+no\s+restrictions\s+whatsoever
    | \[\s*(?:e-?book|e-?text)\s*\#?\s*\d+ | legal\s+small\s+print | small\s+print(?:!|["”]\s+v\.)
    | plain\s+vanilla\s+(?:electronic\s+)?texts | \bend\s+of\s+(?:the\s+)?e-?text\b
    | in\s+the\s+canadian\s+public\s+domain | first\s+thing\s+seen\s+when | 501\(c\)\(3\)
    | readable\s+by\s+both\s+humans | prepared\s+by\s+(?:hundreds|thousands)\s+of\s+volunteers
    | copyright\s+laws\s+are\s+changing\s+all\s+over\s+the\s+world\W+(?:please\s+)?be\s+sure
    | please\s+take\s+a\s+look\s+at\s+the\s+important
    | please\s+do\s+not\s+(?:remove|change\s+or\s+edit)\s+(?:it|this|the\s+header)
    | (?:e-?text|e-?book)s?\s+(?:was\s+|were\s+)?(?:prepared|produced|scanned|created|transcribed|converted|edited)
    | this\s+file\s+was\s+(?:first\s+)?(?:produced|made)\s+from\s+(?:page\s+)?(?:images|scans)
    | images\s+of\s+the\s+original\s+pages\s+are\s+available | \A\s*</?pre>(?:\s*</?pre>)*\s*\Z
    | (?:html|epub)\s+(?:version|edition)\s+(?:produced\s+|prepared\s+)?by | character\s+set\s+encoding""",
    re.IGNORECASE | re.VERBOSE,
)
_BROAD = re.compile(
    r"""\be-?texts?\b | \be-?books?\b | public\s+domain | copyright | licen[sc]e | trade-?mark | royalt(?:y|ies)
    | disclaimer | indemni | warrant(?:y|ies) | \bdamages\b | donat(?:e|ion) | contributions? | tax[\s-]deductible
    | foundation | volunteers? | newsletter | mailing\s+list | electronic\s+works? | michael\s+(?:s\.\s+)?hart
    | \S+@\S+\.\w | https?:// | www\. | \bftp\b | \.(?:txt|zip|htm|html)\b | carnegie[\s-]mellon | benedictine
    | updated\s+editions | the\s+old\s+editions | renamed | formats | \b1\.[a-f](?:\.\d)?\. | section\s+\d\.
    | produced\s+by | prepared\s+by | transcribed | proofread | html\s+version | scanned\s+by | corrections\s+by
    | hypercard | readable | computers? | \bascii\b | salt\s+lake | fairbanks | mississippi | \birs\b | refund | defect
    | \bfiles?\b | \bweb\s?site\b | internet | download""",
    re.IGNORECASE | re.VERBOSE,
)
_TITLES = r"""\W*(?:this\s+is\s+)?(?:the\s+|an?\s+)?project\s+gutenberg(?:'s|’s)?\s+
        (?:(?:of\s+)?(?:australia|canada|europe)(?:'s)?\s+)?(?:e-?(?:book|text)s?\b|edition\s+of)
    | \W*project\s+gutenberg(?:'s|’s)\s.{3,200}\sby\s.{3,80}[^.!?]$
    | \W*project\s+gutenberg\s+(?:of\s+)?(?:australia|canada|europe)\W*(?:a\s+treasure|$)
    | \W*(?:a\s+)?distributed\s+proofreaders\s+canada\s+e-?book | \W*project\s+runeberg\s+publishes"""
HEADER_TITLE = re.compile(_TITLES, re.IGNORECASE | re.VERBOSE)
"""How a header begins that names its book."""
HEADER_BEGINS = re.compile(
    _TITLES
    + r"""| .{0,200}\bthis\s+e-?(?:book|text)\s+is\s+for\s+the\s+use\s+of\s+anyone\s+anywhere
    | .{0,200}\bthis\s+e-?book\s+is\s+made\s+available\s+at\s+no\s+cost
    | \W*welcome\s+to\s+the\s+world\s+of\s+free\s+plain\s+vanilla
    | \W*copyright\s+laws\s+are\s+changing\s+all\s+over\s+the\s+world\W+(?:please\s+)?be\s+sure
    | \W*this\s+is\s+the\s+\w+\s+e-?text\s+file\s+presented\s+by\s+project\s+gutenberg
    | \*+\s*start\**\s*the\s+small\s+print""",
    re.IGNORECASE | re.VERBOSE,
)
"""How the first paragraph of a header, or one near it, begins."""

BRACKETED_END = re.compile(r"\s*\[(?:the\s+)?end\s+of\s.{1,150}\sby\s.{1,80}\]\s*$", re.IGNORECASE)
"""The last line of Canadian editions, which names no project."""

_LICENCE_BEGINS = re.compile(
    r"""start:\s+full\s+licen[sc]e | the\s+full\s+project\s+gutenberg | updated\s+editions\s+will\s+replace
    | general\s+terms\s+of\s+use\s+and\s+redistributing | start\**\s*the\s+small\s+print | \*small\s+print!
    | creating\s+the\s+works\s+from\s+(?:public\s+domain|print)""",
    re.IGNORECASE | re.VERBOSE,
)
_LICENCE_ENDS = re.compile(
    r"""subscribe\s+to\s+our\s+email\s+newsletter | end\**\s*the\s+small\s+print | end:\s+full\s+licen[sc]e""",
    re.IGNORECASE | re.VERBOSE,
)


def is_strict(paragraph: Paragraph) -> bool:
    """Whether no author could have written a paragraph that stands at a work's edge; a header's table is such."""
    return names_producers(paragraph) or bool(FIELD.match(paragraph.joined))


def names_producers(paragraph: Paragraph) -> bool:
    """Whether a paragraph speaks of Project Gutenberg, or of how the electronic text was made."""
    joined = paragraph.joined
    return bool(NAME.search(joined) or _STRICT.search(joined))


def is_broad(joined: str) -> bool:
    """Whether a paragraph can be a licence's, or a page's about Project Gutenberg."""
    return bool(_BROAD.search(joined) or NAME.search(joined)) or not any(map(str.isalnum, joined))


def lines_with(text: Text, seeds: Iterable[str]) -> list[int]:
    """The lines that have one of the seeds, written small or large: ten times as fast as a regular expression."""
    lowered = text.text.lower()
    if len(lowered) != len(text.text):  # some capitals, as a Turkish one, become two characters
        lowered = "\n".join(line.lower()[: len(line)].ljust(len(line)) for line in text.lines)
    lines = set()
    for seed in seeds:
        place = lowered.find(seed)
        while place >= 0:
            line = text.line_at(place)
            lines.add(line)
            place = lowered.find(seed, text.starts[line + 1])
    return sorted(lines)


def named_lines(text: Text) -> list[int]:
    """The lines in which a name of Project Gutenberg's begins, or ends."""
    return [
        line for line in lines_with(text, _NAME_SEEDS) if NAME.search(" ".join(text.lines[max(line - 1, 0) : line + 2]))
    ]


class Scan:
    """What follows an end marker: up to where it is Project Gutenberg's, and whether a licence is among it.

    Without a licence, each paragraph has to be strict; names and dates between a marker and a licence are allowed.
    """

    def __init__(self, text: Text, line: int) -> None:
        self.past = line
        """The line after the last paragraph that is boilerplate; those before it are, too."""
        self.has_licence = False
        strict, within, strange = True, 0, 0
        for paragraph in paragraphs_from(text, line):
            joined = paragraph.joined
            begins = HEADER_TITLE if within > 0 else HEADER_BEGINS  # a licence quotes what headers say
            if paragraph.first > line and begins.match(joined):
                return
            if _LICENCE_BEGINS.search(joined):
                self.has_licence, within = True, LONGEST_LICENCE
            strict = strict and (
                is_strict(paragraph) or (paragraph.first == line and bool(BRACKETED_END.match(joined)))
            )
            known = strict or (self.has_licence and (within > 0 or is_broad(joined)))
            within = 0 if _LICENCE_ENDS.search(joined) else within - len(joined)
            if known:
                self.past, strange = paragraph.past, 0
                continue
            strange += len(joined)
            if strange > MOST_STRANGE:
                return


MOST_STRANGE = 1000
"""Characters that may stand between an end marker and the licence: names, a title, a date."""
LONGEST_LICENCE = 30_000
"""Characters of a licence whose end is not seen; that of 2008 has 18,000."""
