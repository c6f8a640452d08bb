"""Special tokens such as `<s>`, and text that holds their names: it stays text, unless somebody asks for the tokens.

With `encode_special_tokens` the tokenizers library does not look for such names. But a Unigram, WordLevel or WordPiece
model that has `<s>` in its vocabulary makes that token of the three characters all the same, so there it is renamed.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

HIDDEN = "\0"  # no document holds this character
_END = ""  # in a tree of names: one ends here

# `<|im_end|>`, `<｜User｜>`, `<turn|>`, `</s>`, `<start_of_turn>`, `[INST]`; not `<tool_call>`, which is text to many
CONTROL_NAME = re.compile(
    r"<[|｜][^\s<>]{1,50}>|<[^\s<>|｜]{1,50}[|｜]>|</?s>|<[be]os>|<(?:start|end)_of_turn>|\[/?INST\]"
)


def problems_of_names(names: Sequence[str]) -> list[str]:
    """What of these names cannot be that of a special token, whatever the tokenizer."""
    problems = [f"{name!r} twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    for name in dict.fromkeys(names):
        if not name.strip():
            problems.append(f"{name!r}, which is blank")
        elif name != name.strip():
            problems.append(f"{name!r}, which begins or ends with a blank")
        elif not name.isprintable():  # controls, and what was not UTF-8 on the command line
            problems.append(f"{name!r}, which holds characters that are not printed")
    return problems


def made_by_model(tokenizer_json: dict[str, Any], names: Collection[str]) -> bool:
    """Whether the model of a tokenizer.json may make one of these tokens out of the characters of its name."""
    model = tokenizer_json["model"]
    own = set(names).intersection(_entries(model))
    is_bpe = model.get("type") == "BPE" or "merges" in model  # OpenAI's own file of GPT-2 names no type
    if not is_bpe or model.get("ignore_merges"):
        return bool(own)
    return any(len(name) == 1 for name in own) or any("".join(pair) in own for pair in _merges(model))


def hide(tokenizer_json: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The same tokenizer with other names for these tokens, which no text holds: theirs, after a NUL."""
    new_names = {name: HIDDEN + name for name in names}
    model = dict(tokenizer_json["model"])
    if isinstance(model["vocab"], list):
        model["vocab"] = [[new_names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {new_names.get(piece, piece): index for piece, index in model["vocab"].items()}
    if "merges" in model:
        hidden = set(names)
        model["merges"] = [pair for pair in _merges(model) if hidden.isdisjoint([*pair, "".join(pair)])]
    if model.get("unk_token") in new_names:
        model["unk_token"] = new_names[model["unk_token"]]
    added = []
    for token in tokenizer_json.get("added_tokens") or []:
        added.append({**token, "content": new_names.get(token["content"], token["content"])})
    changed = {"model": model, "added_tokens": added, "post_processor": None, "padding": None, "truncation": None}
    return {**tokenizer_json, **changed}


def any_of(names: Iterable[str]) -> str:
    """A regular expression that finds any of `names`, the longest one where several begin; there must be one.

    It is a tree, not a list: some tokenizers have a thousand names that begin alike.
    """
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for character in name:
            node = node.setdefault(character, {})
        node[_END] = {}
    return _branches(tree)


def _branches(node: dict[str, Any]) -> str:
    branches = []
    last = []  # characters with which a name ends
    for character, following in sorted(node.items()):
        if following.keys() == {_END}:
            last.append(re.escape(character))
        elif character != _END:
            branches.append(re.escape(character) + _branches(following))
    if last:
        branches.append(last[0] if len(last) == 1 else f"[{''.join(last)}]")
    pattern = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{pattern})?" if _END in node else pattern


def _entries(model: dict[str, Any]) -> Iterable[str]:
    vocabulary = model["vocab"]
    return (piece for piece, _ in vocabulary) if isinstance(vocabulary, list) else vocabulary


def _merges(model: dict[str, Any]) -> list[list[str]]:
    """The pairs of a BPE model, which older files write as one text with a space between."""
    return [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
