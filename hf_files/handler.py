"""What a Hugging Face Inference Endpoint runs: this folder's model, loaded once, continuing texts and conversations.

https://huggingface.co/docs/inference-endpoints/guides/custom_handler

It answers what huggingface_hub's InferenceClient sends for `text_generation` and `chat_completion`. Each parameter is
understood, or at the value that asks for nothing, or named in an error. An answer comes whole: a handler cannot stream.

A model that was trained on normalised conversations gets them in that form, `[speaker001:]` as `[Intervenant 1:]`, and
its answer comes back with the speakers named as in the request. dialogue_text.py is the file that prepared the training
data; training_provenance.json says whether, and in which languages.
"""

import importlib.util
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import transformers
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, StoppingCriteria

DEFAULTS = {"max_new_tokens": 100, "do_sample": True, "temperature": 0.8, "top_p": 0.95}

# What transformers' `generate` gets: a kind of number with its least and largest value, or a yes or no.
GENERATE = {
    "max_new_tokens": (int, 1, None),
    **dict.fromkeys(("num_return_sequences", "num_beams"), (int, 1, None)),
    **dict.fromkeys(("min_new_tokens", "top_k", "no_repeat_ngram_size"), (int, 0, None)),
    **dict.fromkeys(("do_sample", "early_stopping"), (bool, None, None)),
    "temperature": (float, 0, None),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), (float, 0, 1)),
    "repetition_penalty": (float, 1e-6, None),
    "length_penalty": (float, None, None),
}
OWN = {
    "seed": (int, 0, 2**64 - 1),
    "truncate": (int, 1, None),
    **dict.fromkeys(("details", "logprobs", "return_full_text"), (bool, None, None)),
}
ALIASES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "n": "num_return_sequences",
    "stop_sequences": "stop",
}
# Parameters of other servers, with the values at which they ask for nothing; so does null.
NEUTRAL = {
    **dict.fromkeys(("stream", "decoder_input_details", "watermark"), (False,)),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "top_n_tokens", "top_logprobs"), (0,)),
    **dict.fromkeys(("wait_for_model", "use_cache", "use_gpu"), (True, False)),  # `options` of the Hub's older servers
    **dict.fromkeys(("stream_options", "tool_prompt", "grammar", "adapter_id"), ()),
    "best_of": (1,),
    "logit_bias": ({}, []),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("auto", "none"),
}
OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


class Answer(NamedTuple):
    """What the model wrote after a prompt."""

    text: str  # up to the first of the texts that stop it
    finish_reason: str  # eos_token, stop_sequence or length, as text-generation-inference calls them
    ids: list[int]  # with the end token, or the tokens of the text that stopped it
    tokens: list[dict[str, Any]]  # id, text, logprob (natural) and special of each; empty unless they were asked for
    read: int  # the number of the prompt's tokens


class EndpointHandler:
    """Loads the model of the folder `path`; a call continues the text or texts of one request."""

    def __init__(self, path: str = "") -> None:
        folder = Path(path)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").to(self.device).eval()
        self.context = self.model.config.max_position_embeddings
        self.dialogue_text = load_module(folder / "dialogue_text.py")
        provenance = json.loads((folder / "training_provenance.json").read_text(encoding="utf-8"))
        languages = Counter((provenance.get("normalised") or {}).values())
        self.language = languages.most_common(1)[0][0] if languages else None
        self.knows_turns = bool(languages or provenance.get("turns"))
        self.end_text = end_text_of(self.tokenizer)
        self._one_at_a_time = threading.Lock()  # a seed is the whole process's

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]] | dict[str, Any]:
        """`{"inputs": text or list of texts, "parameters": {…}}` → `[{"generated_text": …}, …]`, or a chat completion.

        Parameters are those of `GENERATE`, over `DEFAULTS`, and

        - `max_tokens`, `n`, `stop_sequences`: other names of `max_new_tokens`, `num_return_sequences`, `stop`;
        - `stop`: a text or a list of them; an answer ends before the first one;
        - `seed`: the same seed gives the same answer to the same text;
        - `return_full_text` (true): the input stands before its continuation;
        - `truncate`: so many tokens of the input's end are read;
        - `details`: the tokens with their logarithmic probabilities, and why the answer ended;
        - `language`: in which one conversations are normalised, null that they are not. Default: that of most datasets.

        A temperature of 0 takes the most likely token always. An answer ends where the context does. Each of several
        texts has its answers one after the other.

        `{"messages": [{"role": …, "content": …}, …], …}` is a conversation in OpenAI's form, with the parameters beside
        it; where a server asks for `inputs`, all of it may be in there. It needs a chat template, or a model that was
        trained on turns.

        Raises:
            ValueError: for what cannot be done, by its name; and for inputs that are no texts, are too long, or in a
                language that cannot be normalised.
        """
        json.dumps(data, ensure_ascii=False).encode()  # a surrogate, half of a character, is a ValueError
        inputs = data.get("inputs")
        rest = {key: value for key, value in data.items() if key != "inputs"}
        if isinstance(inputs, dict) and "messages" in inputs:
            return self._chat({**inputs, **rest})
        if "messages" in data:
            return self._chat(data)
        texts = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("inputs must be a text or a list of texts")
        for name in ("options", "parameters"):
            if not isinstance(given := rest.pop(name, None) or {}, dict):
                raise ValueError(f"{name} must be an object")
            rest |= given
        parameters = read_parameters(rest, self.language)
        results = []
        for text in texts:
            text = text.rstrip() if parameters["language"] else text
            before = text if parameters.get("return_full_text", True) else ""
            for answer in self._answers(text, parameters):
                result = {"generated_text": before + answer.text}
                if parameters.get("details"):
                    result["details"] = details_of(answer, parameters.get("seed"))
                results.append(result)
        return results

    def _answers(self, text: str, parameters: dict[str, Any]) -> list[Answer]:
        """What continues a text, which a conversation is normalised for; with the speakers as the text has them."""
        language = parameters["language"]
        if not language:
            return self._continue(text, parameters)
        prompt = self.dialogue_text.normalise(text, language, open_end=True)
        restore = partial(self.dialogue_text.restore_names, original=text, language=language)
        return self._continue(prompt, {**parameters, "restore": restore})

    def _continue(self, prompt: str, parameters: dict[str, Any]) -> list[Answer]:
        """What the model writes after `prompt`, changed by the parameter `restore`."""
        # one text at a time: each has the same answer in any company
        return self._generate(self.tokenizer(prompt, return_tensors="pt").input_ids.long(), parameters)

    def _generate(self, ids: torch.Tensor, parameters: dict[str, Any]) -> list[Answer]:
        ids = ids[:, -parameters.get("truncate", ids.shape[1]) :]
        length = ids.shape[1]
        if not 0 < length < self.context:
            limit = f"it must have 1 to {self.context - 1}, one less than the context"
            raise ValueError(f"the text has {length} tokens; {limit}")
        settings = {name: value for name, value in parameters.items() if name in GENERATE}
        settings["max_new_tokens"] = min(settings["max_new_tokens"], self.context - length)
        if settings.get("min_new_tokens", 0) > settings["max_new_tokens"]:
            raise ValueError(f"min_new_tokens must not be above {settings['max_new_tokens']}, the most there can be")
        padding, seed = self.tokenizer.pad_token_id, parameters.get("seed")
        wants_tokens = bool(parameters.get("details") or parameters.get("logprobs"))
        text_of = partial(self._text_of, ids[0].tolist(), parameters.get("restore", str))
        stops = Stops(parameters.get("stop", []), length, text_of)
        devices = [self.device] if self.device == "cuda" else []
        with self._one_at_a_time, torch.random.fork_rng(devices, enabled=seed is not None), torch.inference_mode():
            if seed is not None:
                torch.manual_seed(seed)
            output = self.model.generate(
                ids.to(self.device),
                attention_mask=torch.ones_like(ids, device=self.device),
                pad_token_id=self.tokenizer.eos_token_id if padding is None else padding,
                tokenizer=self.tokenizer,  # for texts that generation_config.json may name as the end
                stopping_criteria=[stops] if stops.texts else [],
                return_dict_in_generate=True,
                output_logits=wants_tokens,
                **settings,
            )
        answers = []
        for row, new in enumerate(output.sequences[:, length:].tolist()):
            text, reason, new = self._ended(new, stops)
            logits = [step[row] for step in output.logits[: len(new)]] if wants_tokens else []
            tokens = self._tokens(ids[0].tolist(), new, logits) if wants_tokens else []
            answers.append(Answer(text, reason, new, tokens, length))
        return answers

    def _text_of(self, before: list[int], restore: Callable[[str], str], new: list[int], special: bool = False) -> str:
        """The text of the tokens `new` after those `before`: decoded as a whole, for the space between the two."""
        whole = self.tokenizer.decode([*before, *new], skip_special_tokens=not special)
        return restore(whole[len(self.tokenizer.decode(before, skip_special_tokens=not special)) :])

    def _ended(self, new: list[int], stops: "Stops") -> tuple[str, str, list[int]]:
        """The text of a row of new tokens, why it ended, and the tokens up to there: what follows is padding."""
        ends = self.model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else (ends or [])
        end = next((count for count, token in enumerate(new, start=1) if token in ends), None)
        new = new[:end]
        text = stops.text_of(new)
        if (cut := stops.find(text)) is None:
            return text, "length" if end is None else "eos_token", new
        counts = range(1, len(new) + 1)
        stop = next(count for count in counts if stops.find(stops.text_of(new[:count])) is not None)
        return text[:cut], "stop_sequence", new[:stop]

    def _tokens(self, before: list[int], new: list[int], logits: list[torch.Tensor]) -> list[dict[str, Any]]:
        """`Answer.tokens`, whose texts are together that of all; of a character in several tokens, the last has it."""
        whole, known = self._text_of(before, str, new, special=True), 0
        tokens = []
        for count, (token, values) in enumerate(zip(new, logits, strict=True), start=1):
            text = self._text_of(before, str, new[:count], special=True)
            end = len(whole) if count == len(new) else min(len(text), len(whole))
            if end < known or (text.endswith("\ufffd") and count < len(new)):
                end = known
            logprob = float(torch.log_softmax(values.float(), dim=-1)[token])
            special = token in self.tokenizer.all_special_ids
            tokens.append({"id": token, "text": whole[known:end], "logprob": logprob, "special": special})
            known = end
        return tokens

    def _chat(self, data: dict[str, Any]) -> dict[str, Any]:
        """A conversation in OpenAI's form → its chat completion."""
        messages = read_messages(data["messages"])
        given = {key: value for key, value in data.items() if key not in ("messages", "model")}
        parameters = read_parameters(given, self.language)
        if wrong := [name for name in ("return_full_text", "details") if parameters.get(name)]:
            raise ValueError(f"{wrong[0]} is a parameter of inputs, not of messages")
        if self.tokenizer.chat_template:
            try:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except TemplateError as e:
                raise ValueError(f"the model's chat template refuses the messages: {e}") from None
            ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.long()
            parameters["stop"] = [*parameters.get("stop", []), *([self.end_text] if self.end_text else [])]
            answers = self._generate(ids, parameters)
        elif self.knows_turns:
            text = turns_of(messages)
            parameters["stop"] = [*parameters.get("stop", []), "\n["]  # somebody else's turn
            answers = [answer._replace(text=answer.text.strip()) for answer in self._answers(text, parameters)]
        else:
            raise ValueError("messages: the model has no chat template and knows no turns; give it a text in inputs")
        choices = [choice_of(index, answer) for index, answer in enumerate(answers)]
        read, written = answers[0].read, sum(len(answer.ids) for answer in answers)
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": data.get("model") or "",
            "system_fingerprint": f"transformers {transformers.__version__}",
            "choices": choices,
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }


class Stops(StoppingCriteria):
    """Ends a row of tokens whose text, from the token `begin` on, holds one of `texts`."""

    def __init__(self, texts: list[str], begin: int, text_of: Callable[[list[int]], str]) -> None:
        self.texts, self.begin, self.text_of = texts, begin, text_of

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        found = [self.find(self.text_of(row)) is not None for row in input_ids[:, self.begin :].tolist()]
        return torch.tensor(found, device=input_ids.device)

    def find(self, text: str) -> int | None:
        """Where in `text` the first of the texts begins."""
        return min((text.find(stop) for stop in self.texts if stop in text), default=None)


# ------------------------------------------------------------------------------------------------------------- requests


def read_parameters(given: dict[str, Any], language: str | None) -> dict[str, Any]:
    """The parameters that `generate` and this file take, over the defaults; a ValueError names one that they cannot."""
    found: dict[str, Any] = {"language": given.get("language", language)}
    for name, value in given.items():
        known = ALIASES.get(name, name)
        if name == "language" or value is None:
            continue
        if known in found:
            raise ValueError(f"{name} and {known} say the same: give one of them")
        if known == "stop":
            found["stop"] = [value] if isinstance(value, str) else value
            if not isinstance(found["stop"], list) or not all(isinstance(text, str) and text for text in found["stop"]):
                raise ValueError(f"{name} must be a text or a list of texts, none of them empty")
        elif known in GENERATE or known in OWN:
            found[known] = check_value(name, value, *{**GENERATE, **OWN}[known])
        elif name not in NEUTRAL:
            known_names = ", ".join(sorted([*GENERATE, *OWN, *ALIASES, "stop", "language"]))
            raise ValueError(f"unknown parameter {name}; known are {known_names}")
        elif (value, isinstance(value, bool)) not in [(one, isinstance(one, bool)) for one in NEUTRAL[name]]:
            reason = "an answer comes whole" if name == "stream" else "leave it out"
            raise ValueError(f"{name} {json.dumps(value)[:100]} is not supported: {reason}")
    found = {**DEFAULTS, **found}
    count, beams = found.get("num_return_sequences", 1), found.get("num_beams", 1)
    if found["temperature"] < 1e-6 or not found["do_sample"]:  # floats do not hold logits divided by less
        found = {name: value for name, value in found.items() if name not in OF_SAMPLING} | {"do_sample": False}
    if count > beams and (beams > 1 or not found["do_sample"]):
        raise ValueError(f"num_return_sequences {count}: without sampling there is one answer, or one for each beam")
    if beams > 1 and (found.get("details") or found.get("logprobs")):
        raise ValueError("details and logprobs are of answers without beams: leave num_beams out")
    return found


def check_value(name: str, value: Any, kind: type, least: float | None, most: float | None) -> Any:
    """`value` as this kind of value; a ValueError says what the parameter must be."""
    allowed = (int, float) if kind is float else kind
    is_kind = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    if is_kind and (least is None or value >= least) and (most is None or value <= most):
        return kind(value)
    words = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
    limits = "" if least is None else f" of at least {least}"
    limits += "" if most is None else f" and at most {most}"
    raise ValueError(f"{name} must be {words}{limits}, not {json.dumps(value)[:100]}")


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages of a conversation, each content as one text; a ValueError names what is none."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list of messages")
    read = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {number} must have a role and a content")
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, dict) else None for part in content]
            if not all(isinstance(part, str) for part in parts):
                raise ValueError(f"message {number} has content other than text, which is not supported")
            content = "".join(parts)
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise ValueError(f"message {number}: its content must be a text")
        read.append({**message, "content": content})
    return read


def end_text_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes behind an answer, if that is text; empty for a token, or where nothing is."""
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "An answer."}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False) if tokenizer.chat_template else ""
    except (TemplateError, TypeError):  # it has no place for such an answer
        return ""
    rest = text.rpartition("An answer.")[2].strip()
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    is_token = any(token.strip() and rest.startswith(token) for token in tokens)  # generation_config.json has it
    return rest if "An answer." in text and not is_token else ""


def turns_of(messages: list[dict[str, Any]]) -> str:
    """A conversation as a text of turns, a line each, up to the assistant's next; what a system says comes first."""
    names = {"system": "", "user": "[speaker001:] ", "assistant": "[speaker002:] "}
    lines = []
    for message in messages:
        if message["role"] not in names or message["content"] is None:
            raise ValueError(f"the model knows turns of system, user and assistant, not of {message['role']}")
        lines.append(names[message["role"]] + " ".join(message["content"].split()))
    return "\n".join([*lines, "[speaker002:]"])


# -------------------------------------------------------------------------------------------------------------- answers


def details_of(answer: Answer, seed: int | None) -> dict[str, Any]:
    """text-generation-inference's account of an answer."""
    return {
        "finish_reason": answer.finish_reason,
        "generated_tokens": len(answer.ids),
        "seed": seed,
        "prefill": [],
        "tokens": answer.tokens,
    }


def choice_of(index: int, answer: Answer) -> dict[str, Any]:
    """An answer as one of a chat completion's choices."""
    content = [{"token": one["text"], "logprob": one["logprob"], "top_logprobs": []} for one in answer.tokens]
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text},
        "finish_reason": "length" if answer.finish_reason == "length" else "stop",
        "logprobs": {"content": content} if answer.tokens else None,
    }


def load_module(path: Path) -> ModuleType:
    """The module in the file `path`, wherever the endpoint was started."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
