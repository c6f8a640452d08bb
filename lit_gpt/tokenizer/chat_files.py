"""What a training on chats changes of a tokenizer's files: the chat template, and the tokens that end an answer."""

import json

from lit_gpt.json_files import read_json_if_there
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.tokenizer import CHAT_TEMPLATE, GENERATION_CONFIG, Tokenizer


def chat_files(tokenizer: Tokenizer, template: str) -> dict[str, bytes]:
    """chat_template.jinja with `template`, and generation_config.json with the tokens that end an answer by it, with
    calls of tools too.

    The tokens that ended a text before end it still: the tokenizer's own comes first, by which programs know it.
    A UserError if the template refuses a question and its answer.
    """
    files = {CHAT_TEMPLATE: template.encode()}
    values = read_json_if_there(tokenizer.directory / GENERATION_CONFIG)
    if not values and tokenizer.bos_id is not None:
        values["bos_token_id"] = tokenizer.bos_id
    own = ChatTemplate(tokenizer, template)
    known = [tokenizer.eos_id, *sorted(tokenizer.end_ids), own.end_of_turn, own.end_of_calls]
    ends = list(dict.fromkeys(index for index in known if index is not None))
    if ends:
        values["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        files[GENERATION_CONFIG] = (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
    return files


def with_default_system(template: str, system: str | None) -> str:
    """The template with `system` as the system message of conversations that begin with none.

    So each program that renders it sends what was trained. The line that says so ends with the newline that Jinja's
    trim_blocks takes away: what follows is at the beginning of a line as before.
    """
    if system is None:
        return template
    added = "[{'role': 'system', 'content': " + json.dumps(system, ensure_ascii=False) + "}]"
    condition = "not messages or messages[0]['role'] not in ('system', 'developer')"
    return f"{{% if {condition} %}}{{% set messages = {added} + messages %}}{{% endif %}}\n{template}"
