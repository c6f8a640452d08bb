"""Transcribed dialogue made uniform, and its variants for augmentation: text in, text out.

A conversation is a text with turns, `[Name:] words`, most often one per line. `normalise` gives each its one form;
`variants` changes what a model should not depend on: who speaks, upper case, punctuation, how turns are marked. The
other functions are the single changes, for texts that `normalise` gave.

What they do is what the Claire models were trained with; every function takes time linear in its text.

An endpoint of a published model runs this file too, without the rest of the program: it imports nothing of it.
"""

import hashlib
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple


class _Language(NamedTuple):
    speaker: str
    """What a speaker without a name is called, before a number."""
    tags: dict[str, str]
    """How each kind of special tag that is kept is written."""
    given_names: str
    family_names: str
    """Of each kind of name `_NAMES` ones, for invented speakers."""


_NAMES = 53  # a prime, so that any step through a list of names meets every one
_LANGUAGES = {
    "en": _Language(
        "Speaker",
        {"laughter": "[LAUGHTER]", "noise": "[NOISE]"},
        "Adam Alice Amy Andrew Anna Arthur Barbara Ben Brian Carol Charles Claire Daniel David Diana Edward Ellen "
        "Emma Eric Fiona Frank George Grace Hannah Harry Helen Henry Irene Jack James Jane Julia Karen Kate Laura "
        "Liam Linda Lucy Mark Mary Michael Nancy Oliver Paul Peter Rachel Robert Ruth Sarah Simon Susan Thomas "
        "William",
        "Adams Allen Bailey Baker Bell Bennett Brooks Brown Carter Clark Coleman Collins Cooper Davis Edwards Evans "
        "Fisher Foster Gray Green Hall Harris Hill Hughes Jackson Jenkins Johnson Jones King Lewis Marshall Mason "
        "Miller Mitchell Moore Morgan Murphy Nelson Parker Phillips Price Reed Roberts Scott Shaw Smith Stewart "
        "Taylor Turner Walker Watson Wilson Wright",
    ),
    "fr": _Language(
        "Intervenant",
        {"laughter": "[rire]", "noise": "[bruit]"},
        "Agathe Alain Alice Amélie André Anne Antoine Aurélie Bernard Camille Catherine Cécile Chloé Claire Claude "
        "David Denis Élise Émile Emma Éric Estelle Fabien Florence François Gaëlle Gérard Guillaume Hélène Henri Hugo "
        "Inès Jacques Jeanne Jules Julie Laurent Léa Louise Lucas Marc Marie Mathieu Nadia Nicolas Pascal Paul "
        "Philippe Rose Sophie Sylvie Théo Yves",
        "Aubert Barbier Bernard Bertrand Blanc Bonnet Boyer Brun Carpentier Chevalier Clément Colin David Denis "
        "Dubois Dupont Durand Fabre Faure Fontaine Fournier Garnier Gauthier Girard Guérin Henry Lambert Laurent "
        "Lefebvre Legrand Lemaire Leroy Marchand Martin Masson Mathieu Mercier Michel Moreau Morin Muller Noël Perrin "
        "Petit Renard Richard Robert Roche Rousseau Roussel Simon Thomas Vincent",
    ),
}

_KIND_OF_TAG = {
    **dict.fromkeys(("laugh", "laughs", "laughter", "rire", "rires"), "laughter"),
    **dict.fromkeys(("noise", "noises", "bruit", "bruits"), "noise"),
    **dict.fromkeys(("singing", "breath", "cough", "sigh", "sniff", "music", "applause", "silence", "pause"), "other"),
    **dict.fromkeys(("chant", "souffle", "respiration", "toux", "soupir", "musique", "applaudissements"), "other"),
}
"""Special tags, of both languages: transcripts mix them. Brackets with other words are text, as in `l'[h]omme`."""

_TURN = re.compile(r"\[(?=\s*[^\s:\[\]])([^\[\]]+):\]")
_BRACKETED = re.compile(r"\[([^\[\]:\s]+)\]")
_UNNAMED = re.compile(r"(?:speaker|intervenant)[ _]?0*(0|[1-9][0-9]*)", re.IGNORECASE)
_NEVER_LOWERED = re.compile(r"(\[(?:[^\[\]]+:|[A-Z_]{2,})\])")
_POSSESSIVE_OR_WORD = re.compile(r"(?<=\w['’])([sS])(?!\w)|[^\W\d_](?:[^\W\d_]|[\u0300-\u036f])*\.?")

_SAYS_NOTHING = frozenset(".,")  # what is left of "[rire]." or "[rire],"

# A single space that goes: before punctuation that stands apart, ".5" does not; but never a turn's first.
_SPACE_BEFORE_ANY = re.compile(r""" (?<!:\] )(?=[.,;:?!…]+(?:["'”’»\s]|\Z))""")
_SPACE_BEFORE_LOW = re.compile(r""" (?<!:\] )(?=[.,…][.,;:?!…]*(?:["'”’»\s]|\Z))""")
# French double punctuation that has no space before it; not that in 12:30, a?b or a smiley.
_NO_SPACE_BEFORE_DOUBLE = re.compile(r"""[;:?!](?<=[\w%»)\]"'”’].)[.;:?!…]*(?=["'”’»\s]|\Z)""")

# One mark, or brackets with nothing but marks in them. Not in "3.5" or "12:30", nor as all that a bracket begins with,
# which may be a speaker called "?". It begins with a set of characters: these the regex engine finds fastest.
_MARK = r"""
[\[.,;:?!…"“”«»](?:
    (?<=\[)[.,;?!…]+\]
  | (?<!\[)(?<!\[.)(?:
        (?<=[;?!…"“”«»])
      | (?<=:)(?=[\s.,;:?!…"“”«»]|\[[.,;?!…]+\]|\Z)
      | (?<=[.,])(?:(?<![0-9].)|(?![0-9]))
    )
)"""
_MARKS = re.compile(rf"{_MARK}(?:[ ]|{_MARK})*", re.VERBOSE)


def normalise(text: str, language: str, keep_specials: bool = False, open_end: bool = False) -> str:
    """The one form of a conversation: a turn per line, `[speaker001:]` as `[Intervenant 1:]` or `[Speaker 1:]`.

    Names are capitalised, white space is single, punctuation is spaced as the language has it. Special tags, such as
    `[NOISE]`, go; with `keep_specials` laughter and noise stay, in the language's words. A turn without words is left
    out, and what one speaker says before and after it becomes one turn. With `open_end` a last turn without words
    stays, as a prompt has it for a model to go on. Turns that stand in one line stay in one, and lines that stand
    before the first turn, or in a text without turns, stay lines.

    No word is lost but special tags, and `normalise` of its own result changes nothing.

    Raises:
        ValueError: if the language is not known.
    """
    speech = _language(language)
    written = speech.tags if keep_specials else {}

    def rewrite(found: re.Match[str]) -> str:
        kind = _KIND_OF_TAG.get(found[1].casefold())
        return f" {written.get(kind, '')} " if kind else found[0]

    text = _BRACKETED.sub(rewrite, text)
    pieces = _TURN.split(text)
    pieces[1::2] = _map_unique(lambda name: _speaker_name(name, speech.speaker), pieces[1::2])
    text = _join_turns(pieces, _SAYS_NOTHING.union(written.values()), open_end)
    if language == "fr":
        return _NO_SPACE_BEFORE_DOUBLE.sub(r" \g<0>", _SPACE_BEFORE_LOW.sub("", text))
    return _SPACE_BEFORE_ANY.sub("", text)


def _language(language: str) -> _Language:
    if language not in _LANGUAGES:
        known = " and ".join(_LANGUAGES)
        raise ValueError(
            f"dialogue in language {language!r} cannot be normalised, only in {known}; correct the dataset's language, "
            "or treat it as plain text"
        )
    return _LANGUAGES[language]


def _map_unique(function: Callable[[str], str], names: list[str]) -> list[str]:
    """`function` of each of the names, called once for each that is different, in order of appearance."""
    results = {name: function(name) for name in dict.fromkeys(names)}
    return [results[name] for name in names]


def _speaker_name(name: str, unnamed: str) -> str:
    """A turn's name in its one form: `Jean-Pierre D'Estaing`, `Henry VI`, `Intervenant 1`."""
    name = " ".join(name.split())
    if number := _UNNAMED.fullmatch(name):
        return f"{unnamed} {number[1]}"
    all_upper = name.isupper() and " " in name

    def capitalise(found: re.Match[str]) -> str:
        word = found[0]
        # two letters in a name that is not all in capitals are initials: JR, VO
        is_shouted = word.isupper() and (len(word) > 2 or all_upper) and not set("IVX.").issuperset(word)
        if found[1]:
            return "s"
        return word.capitalize() if word.islower() or is_shouted else word

    return _POSSESSIVE_OR_WORD.sub(capitalise, name)


def _join_turns(pieces: list[str], wordless: frozenset[str], open_end: bool = False) -> str:
    """The text of `pieces`: what stands before the first turn, then each turn's name and text.

    A turn of nothing but `wordless` is left out, a speaker's turns that then meet are joined.
    """
    lines = (" ".join(line.split()) for line in pieces[0].splitlines())
    parts = ["\n".join(filter(None, lines))]
    speaker = None
    starts_line = False
    last = len(pieces) - 1
    for i in range(2, len(pieces), 2):
        before, name, words = pieces[i - 2], pieces[i - 1], pieces[i].split()
        starts_line = starts_line or "\n" in before[len(before.rstrip()) :]
        if wordless.issuperset(words) and not (open_end and i == last):
            continue
        spoken = " ".join(words)
        # an open bracket would close in the next turn and be another turn's beginning
        if name == speaker and parts[-1].rfind("[") <= parts[-1].rfind("]"):
            parts.append(f" {spoken}")
        else:
            parts.append(f"{chr(10) if starts_line else ' '}[{name}:] {spoken}")
        speaker, starts_line = name, False
    return "".join(parts).strip()


def restore_names(text: str, original: str, language: str) -> str:
    """What continues `normalise(original, language)`, with the speakers as `original` writes them.

    A new one keeps the name, but where `original` has `[speaker001:]`, `[Intervenant 4:]` becomes `[speaker004:]`.

    Raises:
        ValueError: if the language is not known.
    """
    unnamed = _language(language).speaker
    written: dict[str, str] = {}
    for name in _TURN.findall(original):
        written.setdefault(_speaker_name(name, unnamed), name)
    first = next((name for known, name in written.items() if _UNNAMED.fullmatch(known)), "")
    form = re.match(r"(.*?)(\d+)\s*$", first)

    def restore(name: str) -> str:
        number = _UNNAMED.fullmatch(name)
        if name in written or not number or not form:
            return written.get(name, name)
        return form[1] + number[1].zfill(len(form[2]))

    return _rename(text, restore)


def anonymise(text: str, language: str) -> str:
    """Every speaker as `[Intervenant 1:]` or `[Speaker 1:]`, numbered from 1 as they first speak.

    Raises:
        ValueError: if the language is not known.
    """
    number, speaker = itertools.count(1), _language(language).speaker
    return _rename(text, lambda _: f"{speaker} {next(number)}")


def invent_names(text: str, language: str, seed: int) -> str:
    """Every speaker under a name that no other one has; which one depends on `seed` and the order they first speak in.

    Raises:
        ValueError: if the language is not known.
    """
    speech = _language(language)
    given, family = speech.given_names.split(), speech.family_names.split()
    assert len(set(given)) == len(set(family)) == _NAMES
    drawn = hashlib.blake2b(str(seed).encode()).digest()
    first, step, family_first, family_step, full = (int.from_bytes(drawn[i : i + 8], "big") for i in range(0, 40, 8))
    step = 1 + step % (_NAMES - 1)
    number = itertools.count()

    def invent(_: str) -> str:
        i = next(number)
        name = given[(first + step * i) % _NAMES]
        if full % 2 or i >= _NAMES:
            # one family further with each pass over the given names: no pair comes twice in _NAMES^2
            name += " " + family[(family_first + family_step * i + i // _NAMES) % _NAMES]
        return name if i < _NAMES**2 else f"{name} {i // _NAMES**2 + 1}"

    return _rename(text, invent)


def _rename(text: str, function: Callable[[str], str]) -> str:
    pieces = _TURN.split(text)
    pieces[1::2] = [f"[{name}:]" for name in _map_unique(function, pieces[1::2])]
    return "".join(pieces)


def lower_case(text: str) -> str:
    """What is said in lower case; speakers' names and tags such as `[NOISE]` as they were."""
    pieces = _NEVER_LOWERED.split(text)
    pieces[::2] = [piece.lower() for piece in pieces[::2]]
    return "".join(pieces)


def without_punctuation(text: str) -> str:
    """The text without marks that are not heard. What is within a word or number stays: `D'Estaing`, `3.5`, `12:30`."""

    def space(found: re.Match[str]) -> str:
        before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
        if not before or before.isspace():
            return ""
        between_words = all(character.isalnum() or character == "_" for character in (before, after))
        return " " if between_words or " " in found[0] else ""

    return _MARKS.sub(space, text).replace(" \n", "\n").rstrip(" ")


def dashed(text: str) -> str:
    """Every turn after a dash instead of its speaker's name."""
    return _TURN.sub("-", text)


def without_tags(text: str) -> str:
    """The turns without their speakers' names, as a monologue may be."""
    return "\n".join(line.strip(" ") for line in _TURN.sub("", text).split("\n"))


def has_speaker_names(text: str) -> bool:
    """Whether any speaker has a name, not just a number."""
    return not all(_UNNAMED.fullmatch(name) for name in set(_TURN.findall(text)))


def has_upper_case(text: str) -> bool:
    """Whether `lower_case` changes anything."""
    return lower_case(text) != text


def has_punctuation(text: str) -> bool:
    """Whether `without_punctuation` changes anything of what is said."""
    return any(_MARKS.search(spoken) for spoken in _TURN.split(text)[::2])


def variants(text: str, language: str, level: int, seed: int, document: str) -> list[str]:
    """Up to `level` forms of a normalised conversation, none like another or `text` itself.

    Speakers anonymous where they have names and with invented ones where they have none, two speakers by dashes, one
    without a tag; in lower case; without punctuation; and all that these give together, in an order that is a function
    of (`seed`, `document`). `document` names the conversation. The variants of a lower level are the first of a higher.

    Raises:
        ValueError: if the language is not known.
    """
    _language(language)
    assert level >= 0
    speakers = set(_TURN.findall(text))
    changes: list[list[str]] = [["", "lower case"] if has_upper_case(text) else [""]]
    changes.append(["", "no punctuation"] if has_punctuation(text) else [""])
    renamed = ["anonymous" if has_speaker_names(text) else "invented"] if speakers else []
    changes.append(["", *renamed, *{1: ["no tag"], 2: ["dashes"]}.get(len(speakers), [])])
    recipes = [(_hash(seed, document, *recipe), recipe) for recipe in itertools.product(*changes)]
    forms = [text]
    for key, recipe in sorted(recipes):
        if len(forms) > level:
            break
        form = _changed(text, language, recipe, key)
        if form and form not in forms:
            forms.append(form)
    return forms[1:]


def _hash(*values: object) -> int:
    """64 bits that are a function of the values, on every machine and in every process."""
    content = "\0".join(map(str, values)).encode("utf-8", "surrogatepass")  # a file's name may hold surrogates
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _changed(text: str, language: str, recipe: tuple[str, ...], key: int) -> str:
    if "anonymous" in recipe:
        text = anonymise(text, language)
    if "invented" in recipe:
        text = invent_names(text, language, key)
    if "lower case" in recipe:
        text = lower_case(text)
    if "no punctuation" in recipe:
        text = _join_turns(_TURN.split(without_punctuation(text)), frozenset())
    if "dashes" in recipe:
        text = dashed(text)
    return without_tags(text) if "no tag" in recipe else text
