"""hf_files/handler.py behind a server, asked by huggingface_hub's own client; answers are those of `generate`."""

from __future__ import annotations

import json
import re

import pytest
import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError

from convert_litgpt_to_transformers import main
from tests.endpoint_server import load_endpoint, serving
from tests.formats.hf_models import make_litgpt
from utils.export.options import ConvertOptions

CONTEXT = 64
SIZES = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'critic' %}{{ raise_exception('no critics') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
PROMPT = "Il était une fois"
MESSAGES = [{"role": "system", "content": "Sois bref."}, {"role": "user", "content": "Ça va ?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GPT-2, which has no position after its context's last, with a chat template."""
    place = tmp_path_factory.mktemp("endpoint")
    (place / "foundation").mkdir()
    make_litgpt(place / "foundation", "GPT2LMHeadModel", SIZES)
    config = json.loads((place / "foundation" / "tokenizer_config.json").read_text())
    (place / "foundation" / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    main(ConvertOptions(place / "foundation", place / "model", verify="tensors"))
    return place / "model"


@pytest.fixture(scope="module")
def endpoint(folder):
    return load_endpoint(folder)


@pytest.fixture(scope="module")
def client(endpoint):
    """A client of the endpoint's server."""
    with serving(endpoint) as (address, requests):
        client = InferenceClient(address, token="hf_x", timeout=60)
        client.requests = requests
        yield client


@pytest.fixture(scope="module")
def reference(folder):
    """What transformers generates after a text: the ids, and the whole text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)

    def generate(text, special=True, **settings):
        inputs = tokenizer(text, add_special_tokens=special, return_tensors="pt")
        output = model.generate(**inputs, **settings)[0]
        return output[inputs.input_ids.shape[1] :].tolist(), tokenizer.decode(output, skip_special_tokens=True)

    generate.tokenizer, generate.model = tokenizer, model
    return generate


def test_text_generation(client, reference):
    _, whole = reference(PROMPT, max_new_tokens=9, do_sample=False)
    assert client.text_generation(PROMPT, max_new_tokens=9, do_sample=False) == whole
    assert (
        client.text_generation(PROMPT, max_new_tokens=9, temperature=0, return_full_text=False) == whole[len(PROMPT) :]
    )
    assert client.requests[-1][1]["inputs"] == PROMPT and client.requests[-1][0] == "/"
    assert PROMPT in client.text_generation(PROMPT)  # the client's and the handler's own defaults


def test_answer_ends_where_the_context_does(client, reference):
    """It crashed: a GPT-2 has an embedding for each of its positions."""
    length = len(reference.tokenizer(PROMPT).input_ids)
    answer = client.text_generation(PROMPT, max_new_tokens=500, temperature=0, details=True, return_full_text=False)
    new, whole = reference(PROMPT, max_new_tokens=CONTEXT - length, do_sample=False)
    assert [token.id for token in answer.details.tokens] == new and answer.generated_text == whole[len(PROMPT) :]
    assert length + answer.details.generated_tokens == CONTEXT
    assert answer.details.finish_reason == "length"


def test_details_are_the_models_probabilities(client, reference):
    answer = client.text_generation(PROMPT, max_new_tokens=6, seed=3, details=True, return_full_text=False)
    ids = [token.id for token in answer.details.tokens]
    prompt = reference.tokenizer(PROMPT).input_ids
    with torch.inference_mode():
        logits = reference.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, -1)[range(len(ids)), ids]
    assert [token.logprob for token in answer.details.tokens] == pytest.approx(expected.tolist(), abs=1e-4)
    assert answer.details.seed == 3 and answer.details.prefill == []
    written = "".join(token.text for token in answer.details.tokens if not token.special)
    assert written == answer.generated_text


def test_same_seed_same_answer(client):
    def ask(**settings):
        return client.text_generation(PROMPT, max_new_tokens=20, temperature=1.5, **settings)

    state = torch.get_rng_state()
    assert ask(seed=1) == ask(seed=1) != ask(seed=2)
    assert torch.equal(torch.get_rng_state(), state), "the next request's chance does not depend on a seed before it"
    assert len({ask() for _ in range(4)}) > 1


def test_answer_ends_before_the_first_stop(client, reference):
    new, whole = reference(PROMPT, max_new_tokens=40, do_sample=False)
    continued = whole[len(PROMPT) :]
    assert len(continued) > 25
    stop = continued[11:14]
    cut = continued.index(stop)
    for settings in ({"stop": ["never written", stop]}, {"stop_sequences": [stop]}):
        answer = client.text_generation(
            PROMPT, max_new_tokens=40, temperature=0, return_full_text=False, details=True, **settings
        )
        assert answer.generated_text == continued[:cut] and answer.details.finish_reason == "stop_sequence"
        ids = [token.id for token in answer.details.tokens]
        assert ids == new[: len(ids)] and len(ids) < 40


def test_end_token_ends_and_is_not_text(endpoint, reference, monkeypatch):
    new, _ = reference(PROMPT, max_new_tokens=12, do_sample=False)
    end = next(token for token in new if new.index(token) > 2)
    monkeypatch.setattr(endpoint.model.generation_config, "eos_token_id", end)
    (result,) = endpoint({"inputs": PROMPT, "parameters": {"temperature": 0, "details": True, "max_new_tokens": 12}})
    assert result["details"]["finish_reason"] == "eos_token"
    assert [token["id"] for token in result["details"]["tokens"]] == new[: new.index(end) + 1]


def test_a_chat_ends_at_the_text_that_ends_answers(endpoint, monkeypatch):
    """Where the tokenizer has no token for it: the template says what it is."""
    asked = {"messages": MESSAGES, "temperature": 0, "max_tokens": 40}
    (whole,) = endpoint(asked)["choices"]
    assert whole["finish_reason"] == "length" and endpoint.end_text == ""
    end = re.search(r"\w{3}", whole["message"]["content"][5:])[0]
    template = TEMPLATE.replace("m.content", f"m.content + ('{end}' if m.role == 'assistant' else '')")
    monkeypatch.setattr(endpoint.tokenizer, "chat_template", template)
    monkeypatch.setattr(endpoint, "end_text", type(endpoint).__init__.__globals__["end_text_of"](endpoint.tokenizer))
    (ended,) = endpoint(asked)["choices"]
    assert ended["message"]["content"] == whole["message"]["content"].partition(end)[0]
    assert ended["finish_reason"] == "stop"


def test_several_answers(endpoint):
    settings = {"max_new_tokens": 8, "seed": 5, "return_full_text": False, "stop": "e"}
    for name in ("num_return_sequences", "n"):
        answers = endpoint({"inputs": [PROMPT, "The"], "parameters": {**settings, name: 3, "details": True}})
        assert len(answers) == 6 and len({answer["generated_text"] for answer in answers[:3]}) > 1
        for answer in answers:
            assert "e" not in answer["generated_text"]
            assert (answer["details"]["finish_reason"] == "stop_sequence") == any(
                "e" in token["text"] for token in answer["details"]["tokens"]
            )
    alone = endpoint({"inputs": "The", "parameters": {**settings, "n": 3}})
    assert [answer["generated_text"] for answer in alone] == [answer["generated_text"] for answer in answers[3:]]


def test_chat_completion(client, reference):
    text = "system: Sois bref.\nuser: Ça va ?\nassistant:"
    _, whole = reference(text, special=False, max_new_tokens=8, do_sample=False)
    answer = client.chat_completion(MESSAGES, max_tokens=8, temperature=0, logprobs=True)
    assert client.requests[-1][0] == "/v1/chat/completions"
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content == whole[len(text) :]
    assert choice.finish_reason == "length" and len(choice.logprobs.content) == 8
    read = len(reference.tokenizer(text, add_special_tokens=False).input_ids)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (read, 8, read + 8)
    stop = whole[len(text) + 4 : len(text) + 6]
    parts = [{"type": "text", "text": "Sois "}, {"type": "text", "text": "bref."}]
    stopped = client.chat_completion(
        [{"role": "system", "content": parts}, MESSAGES[1]], max_tokens=8, temperature=0, stop=[stop]
    )
    assert stopped.choices[0].finish_reason == "stop" and stop not in stopped.choices[0].message.content
    assert whole[len(text) :].startswith(stopped.choices[0].message.content)
    several = client.chat_completion(MESSAGES, max_tokens=8, n=2, seed=1, top_p=0.9, extra_body={"top_k": 7})
    assert [one.index for one in several.choices] == [0, 1]
    assert several.choices[0].message.content != several.choices[1].message.content


def test_chat_inside_of_inputs(endpoint):
    """For a server that takes no request without them."""
    asked = {"messages": MESSAGES, "max_tokens": 5, "temperature": 0}
    inside, outside = endpoint({"inputs": asked}), endpoint(asked)
    assert inside["choices"] == outside["choices"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stream": True}, "stream true is not supported: an answer comes whole"),
        ({"frequency_penalty": 0.5}, "frequency_penalty 0.5 is not supported"),
        ({"best_of": 2}, "best_of 2 is not supported"),
        ({"grammar": {"type": "regex", "value": "a"}}, "grammar"),
        ({"adapter_id": "org/x"}, 'adapter_id "org/x" is not supported'),
        ({"watermark": True}, "watermark true is not supported"),
        ({"details": True, "decoder_input_details": True}, "decoder_input_details true is not supported"),
        ({"top_n_tokens": 3}, "top_n_tokens 3 is not supported"),
        ({"temperature": -1.0}, "temperature must be a number of at least 0, not -1.0"),
        ({"top_p": 1.5}, "top_p must be a number of at least 0 and at most 1, not 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, not 0"),
        ({"stop": [""]}, "stop must be a text or a list of texts"),
        ({"prompt": "mot " * 100}, "tokens; it must have 1 to 63"),
    ],
)
def test_text_generation_is_refused_by_name(client, settings, words):
    with pytest.raises(BadRequestError, match=words):
        client.text_generation(**{"prompt": PROMPT, **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stream": True}, "stream true is not supported: an answer comes whole"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs 2 is not supported"),
        ({"presence_penalty": 1.0}, "presence_penalty 1.0 is not supported"),
        ({"logit_bias": [1.0]}, "logit_bias"),
        ({"n": 2, "temperature": 0}, "num_return_sequences 2: without sampling there is one answer"),
        ({"extra_body": {"max_new_tokens": 3}, "max_tokens": 3}, "say the same: give one of them"),
        ({"extra_body": {"temprature": 3}}, "unknown parameter temprature; known are details"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "chat template refuses the messages: no critics"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "other than"),
        ({"messages": []}, "messages must be a list"),
    ],
)
def test_chat_is_refused_by_name(client, settings, words):
    with pytest.raises(BadRequestError, match=words):
        client.chat_completion(**{"messages": MESSAGES, **settings})


def test_options_of_older_servers_and_a_tiny_temperature_are_taken(endpoint):
    data = {"inputs": PROMPT, "options": {"wait_for_model": True, "use_cache": False}}
    first, second = (endpoint({**data, "parameters": {"max_new_tokens": 3, "temperature": t}}) for t in (0, 1e-45))
    assert first == second


def test_what_asks_for_nothing_is_taken(client):
    neutral = {"frequency_penalty": 0.0, "best_of": 1, "watermark": False, "details": False}
    assert client.text_generation(PROMPT, max_new_tokens=2, **neutral, decoder_input_details=False, stream=False)
    neutral = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "tools": [], "response_format": {"type": "text"}}
    assert client.chat_completion(MESSAGES, max_tokens=2, **neutral, stream=False).choices


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"inputs": PROMPT, "parameters": {"max_lenght": 3}}, "unknown parameter max_lenght"),
        ({"inputs": PROMPT, "parameters": {"pad_token_id": 0}}, "unknown parameter pad_token_id"),
        ({"inputs": PROMPT, "max_tokens": 3, "parameters": {"max_new_tokens": 3}}, "say the same"),
        ({"inputs": PROMPT, "parameters": [1]}, "parameters must be an object"),
        ({"inputs": PROMPT, "parameters": {"max_new_tokens": True}}, "max_new_tokens must be a whole number"),
        ({"inputs": PROMPT, "parameters": {"seed": "1"}}, 'seed must be a whole number .* not "1"'),
        ({"inputs": PROMPT, "parameters": {"min_new_tokens": 99, "max_new_tokens": 99}}, "min_new_tokens must not be"),
        ({"inputs": PROMPT, "parameters": {"num_beams": 2, "details": True}}, "answers without beams"),
        ({"inputs": PROMPT, "options": {"priority": 1}}, "unknown parameter priority"),
        ({"inputs": "half of a character: \ud83d"}, "surrogates not allowed"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "surrogates not allowed"),
        ({"messages": MESSAGES, "return_full_text": True}, "return_full_text is a parameter of inputs"),
        ({"messages": "Ça va ?"}, "messages must be a list"),
        ({"messages": [{"content": "x"}]}, "message 1 must have a role"),
    ],
)
def test_requests_of_others_are_refused_by_name(endpoint, data, words):
    with pytest.raises(ValueError, match=words):
        endpoint(data)
