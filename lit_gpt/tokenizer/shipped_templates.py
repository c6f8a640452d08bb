"""Chat templates by name, in `templates/`, and what of a template's special tokens a tokenizer lacks."""

import re
from collections.abc import Iterator
from pathlib import Path

from jinja2 import TemplateSyntaxError, nodes

from lit_gpt.errors import DataError, UserError
from lit_gpt.tokenizer.chat_template import find_template
from lit_gpt.tokenizer.jinja_sandbox import parse
from lit_gpt.tokenizer.special_tokens import CONTROL_NAME, any_of
from lit_gpt.tokenizer.tokenizer import CHAT_TEMPLATE, Tokenizer

FOLDER = Path(__file__).parent / "templates"
OWN = "tokenizer"
SHIPPED = ("chatml", "impruver", "llama3", "saiga", "vicuna")


def template_source(template: str, tokenizer: Tokenizer) -> str:
    """The source of a template: `tokenizer` for the tokenizer's own, a shipped one's name, or a Jinja file's path.

    A UserError if there is none, a DataError if the file is no text, or no template.
    """
    if template == OWN:
        source = find_template(tokenizer.directory, tokenizer.config)
        if source is None:
            others = ", ".join(SHIPPED)
            raise UserError(f"{tokenizer.directory} has no chat template: give --template one of {others}, or a file")
        return source
    path = FOLDER / f"{template}.jinja" if template in SHIPPED else Path(template)
    if path.is_dir():
        path /= CHAT_TEMPLATE
    if not path.is_file():
        raise UserError(f"--template {template} is neither a file nor one of {', '.join((OWN, *SHIPPED))}")
    try:
        source = path.read_text(encoding="utf-8")
        parse(source)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text") from None
    except TemplateSyntaxError as e:
        raise DataError(f"the chat template {path} cannot be read, line {e.lineno}: {e.message}") from None
    return source


def missing_tokens(source: str, tokenizer: Tokenizer) -> list[str]:
    """What looks like special tokens in a template and is plain text to the tokenizer, sorted.

    Also `bos_token` and the like, where the template writes one that the tokenizer's configuration does not name.
    """
    try:
        tree = parse(source)
    except TemplateSyntaxError as e:
        raise DataError(f"the chat template cannot be read: {e}") from None
    known = set(tokenizer.special_tokens)
    missing = {name for text in _texts(tree) for name in CONTROL_NAME.findall(text)} - known
    for node in tree.find_all(nodes.Name):
        if node.ctx == "load" and node.name in ("bos_token", "eos_token") and not tokenizer.config.get(node.name):
            missing.add(node.name)
    return sorted(missing)


def written_tokens(source: str, tokenizer: Tokenizer) -> list[str]:
    """The special tokens that a template can write, sorted: by their names in it, and as `bos_token` and the like."""
    tree = parse(source)
    names = [name for name in tokenizer.special_tokens if name.strip()]
    pattern = re.compile(any_of(names) if names else r"(?!)")
    written = {name for text in _texts(tree) for name in pattern.findall(text)}
    for node in tree.find_all(nodes.Name):
        token = tokenizer.config.get(node.name) if node.ctx == "load" and node.name.endswith("_token") else None
        written.add(token.get("content") if isinstance(token, dict) else token)
    return sorted(written.intersection(names))


def _texts(tree: nodes.Template) -> Iterator[str]:
    for node in tree.find_all((nodes.TemplateData, nodes.Const)):
        text = node.data if isinstance(node, nodes.TemplateData) else node.value
        if isinstance(text, str):
            yield text
