"""The Modelfile with which Ollama runs a GGUF file as the model was trained: its context, stop tokens and template.
Source of the format: https://docs.ollama.com/modelfile; templates are Go's text/template."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.formats.hf_files import read_json
from lit_gpt.tokenizer.chat_template import find_template
from utils.export.provenance import PROVENANCE
from utils.prepare.dialogue import normalise

DIALOGUE = (
    '{{{{ range .Messages }}}}{{{{ if eq .Role "assistant" }}}}{model}{{{{ else }}}}{user}{{{{ end }}}} '
    "{{{{ .Content }}}}\n{{{{ end }}}}{model}"
)


class Form(NamedTuple):
    description: str
    template: str | None  # None: Ollama takes the one in the GGUF file
    stops: tuple[str, ...]


COMPLETION = Form("completion of text", "{{ .Prompt }}", ())
CHATS = (  # a chat template that holds the first stop of one of these is of that form
    Form(
        "chat, in ChatML",
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        ("<|im_start|>", "<|im_end|>"),
    ),
    Form(
        "chat, in Llama 3's form",
        "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|start_header_id|>", "<|eot_id|>"),
    ),
)


def form_of(folder: Path) -> Form:
    """How the model in `folder`, a Hugging Face folder, was trained to be spoken to."""
    provenance = _read_if_there(folder / PROVENANCE)
    languages = list((provenance.get("normalised") or {}).values())
    if languages:
        return _dialogue(Counter(languages).most_common(1)[0][0])
    if provenance.get("turns"):
        return _dialogue(None)
    if provenance.get("options"):
        return COMPLETION
    # a run of this program teaches conversations or plain text; a chat template counts for other models
    template = find_template(folder, _read_if_there(folder / "tokenizer_config.json"))
    if template is None:
        return COMPLETION
    for form in CHATS:
        if form.stops[0] in template:
            return form
    return Form("chat; Ollama has to know the template in the GGUF file: see `ollama show`", None, ())


def _dialogue(language: str | None) -> Form:
    # Turns are lines, normalised where the data was. The user speaks first; a new line's speaker ends the model's turn.
    turns = "[speaker001:] a\n[speaker002:] a"
    written = normalise(turns, language) if language else turns
    user, model = (line[: line.index("]") + 1] for line in written.splitlines())
    return Form(f"dialogue, {user} with {model}", DIALOGUE.format(user=user, model=model), ("\n[",))


def served_context(folder: Path, positions: int) -> int:
    """Tokens of context: those of a row in the run that trained the model, else `positions`, all that it can see."""
    schedule = _read_if_there(folder / PROVENANCE).get("schedule") or {}
    window = schedule.get("window")  # one token more than the model sees: the last is only predicted
    return min(positions, window - 1) if window else positions


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def modelfile(gguf: str, form: Form, context: int, end_token: str | None) -> str:
    stops = [*form.stops]
    if end_token:
        stops.append(end_token)
    lines = [f"# {form.description}", f"FROM ./{gguf}", f"PARAMETER num_ctx {context}"]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]  # not escaped: Ollama reads no escapes, but several lines
    if form.template is not None:
        lines.append(f'TEMPLATE """{form.template}"""')
    return "\n".join(lines) + "\n"
