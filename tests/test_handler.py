"""hf_files/handler.py, as an endpoint starts it, in the folder of a model that was trained on normalised dialogue."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import SAMPLE, TOKENIZER, run
from tests.endpoint_server import load_endpoint

PROMPT = "[speaker001:]   bonjour ,  ça va[NOISE] ?\n[speaker002:]"
NORMAL = "[Intervenant 1:] bonjour, ça va ?\n[Intervenant 2:]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_config):
    """Prepared with metadata, trained for two steps, converted: all by the programs themselves."""
    place = tmp_path_factory.mktemp("endpoint")
    source = ("--source_path", SAMPLE / "french", "--checkpoint_dir", TOKENIZER, "--metadata", SAMPLE / "metadata.csv")
    data = ("--destination_path", place / "data", "--max_length", 64, "--num_workers", 1, "--augmentation_level", 0)
    run("prepare_data.py", *source, *data)
    model = ("--checkpoint_dir", TOKENIZER, "--model_config", model_config, "--precision", "32-true")
    steps = ("--max_steps", 2, "--warmup_steps", 1, "--eval_samples", 4, "--batch_size", 2)
    run("pretrain.py", "--data_dir", place / "data", "--out_dir", place / "run", *model, *steps)
    converted = ("--output_dir", place / "model", "--verify", "tensors")
    run("convert_litgpt_to_transformers.py", "--input_path", place / "run", *converted)
    return place / "model"


@pytest.fixture(scope="module")
def endpoint(folder):
    return load_endpoint(folder)


def asked(endpoint, monkeypatch, answer, text, **parameters):
    """What the model is given for `text`, and what the endpoint makes of its `answer`."""
    prompts = []

    def continue_(prompt, parameters):
        prompts.append(prompt)
        written = parameters.get("restore", str)(answer)
        return [type(endpoint).__call__.__globals__["Answer"](written, "length", [], [], 0)]

    monkeypatch.setattr(endpoint, "_continue", continue_)
    (result,) = endpoint({"inputs": text, "parameters": parameters})
    return prompts[0], result["generated_text"]


def test_provenance_says_what_was_normalised(folder, endpoint):
    provenance = json.loads((folder / "training_provenance.json").read_text())
    assert set(provenance["normalised"].values()) == {"fr"} and len(provenance["normalised"]) == 3
    assert endpoint.language == "fr"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "[Intervenant 1:] Bonjour, vous m'entendez ?\\n[Intervenant 2:]" in card and "`fr`" in card


def test_text_is_normalised_and_names_come_back(endpoint, monkeypatch):
    answer = " Oui.\n[Intervenant 1:] Et toi ?\n[Intervenant 12:] [rire]"
    back = " Oui.\n[speaker001:] Et toi ?\n[speaker012:] [rire]"
    assert asked(endpoint, monkeypatch, answer, PROMPT) == (NORMAL, PROMPT + back)
    assert asked(endpoint, monkeypatch, answer, PROMPT + " \n", return_full_text=False) == (NORMAL, back)
    named = "[MARIE DUPONT:] Oui\n[Jean:]"
    expected = "[Marie Dupont:] Oui\n[Jean:]"
    answer = " Non.\n[Marie Dupont:] Si.\n[Intervenant 3:] Ah"
    assert asked(endpoint, monkeypatch, answer, named)[0] == expected
    assert asked(endpoint, monkeypatch, answer, named)[1] == f"{named} Non.\n[MARIE DUPONT:] Si.\n[Intervenant 3:] Ah"


def test_language_of_a_request(endpoint, monkeypatch):
    answer = " Yes.\n[Speaker 1:] Good"
    english = "[Speaker 1:] bonjour, ça va?\n[Speaker 2:]"
    assert asked(endpoint, monkeypatch, answer, PROMPT, language="en") == (
        english,
        f"{PROMPT} Yes.\n[speaker001:] Good",
    )
    assert asked(endpoint, monkeypatch, answer, PROMPT, language=None) == (PROMPT, PROMPT + answer)
    with pytest.raises(ValueError, match="'de' cannot be normalised, only in en and fr"):
        endpoint({"inputs": PROMPT, "parameters": {"language": "de"}})


def chatted(endpoint, monkeypatch, answer, messages, **parameters):
    """The prompt, and what the parameters of the model's call are, of a conversation; and the choice made of it."""
    calls = []

    def continue_(prompt, settings):
        calls.append((prompt, settings))
        written = settings["restore"](answer)
        return [type(endpoint).__call__.__globals__["Answer"](written, "stop_sequence", [1, 2], [], 7)]

    monkeypatch.setattr(endpoint, "_continue", continue_)
    result = endpoint({"messages": messages, **parameters})
    assert result["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    (choice,) = result["choices"]
    return *calls[0], choice


def test_chat_is_the_turns_that_the_model_knows(endpoint, monkeypatch):
    messages = [
        {"role": "system", "content": "Au marché"},
        {"role": "user", "content": "bonjour ,\nça va ?"},
        {"role": "assistant", "content": "Oui."},
        {"role": "user", "content": "et toi ?"},
    ]
    prompt, settings, choice = chatted(endpoint, monkeypatch, " Bien. ", messages, stop=["Fin"])
    turns = ["Au marché", "[Intervenant 1:] bonjour, ça va ?", "[Intervenant 2:] Oui.", "[Intervenant 1:] et toi ?"]
    assert prompt == "\n".join([*turns, "[Intervenant 2:]"])
    assert settings["stop"] == ["Fin", "\n["]
    assert choice["message"] == {"role": "assistant", "content": "Bien."} and choice["finish_reason"] == "stop"
    with pytest.raises(ValueError, match="knows turns of system, user and assistant, not of tool"):
        endpoint({"messages": [*messages, {"role": "tool", "content": "x"}]})


def test_stop_is_a_name_as_the_request_has_it(endpoint, monkeypatch):
    """The model writes `[Intervenant 2:]`, the request says `[speaker002:]`."""
    tokenizer = endpoint.tokenizer
    written = tokenizer("Oui.\n[Intervenant 2:] Non.", add_special_tokens=False).input_ids

    def generate(ids, stopping_criteria, **_):
        import torch

        for token in written:
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
            if any(bool(criterion(ids, None)) for criterion in stopping_criteria):
                break
        return type("Output", (), {"sequences": ids})

    monkeypatch.setattr(endpoint.model, "generate", generate)
    asked = {"inputs": PROMPT, "parameters": {"stop": "[speaker002:]", "return_full_text": False}}
    (result,) = endpoint(asked)
    assert result["generated_text"] == " Oui.\n"
    (whole,) = endpoint({"inputs": PROMPT, "parameters": {"stop": "[speaker003:]", "return_full_text": False}})
    assert whole["generated_text"] == " Oui.\n[speaker002:] Non."


def test_answer_is_the_models(folder, endpoint):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(NORMAL, return_tensors="pt")
    settings = {"max_new_tokens": 8, "do_sample": False}
    output = model.generate(**inputs, **settings, pad_token_id=tokenizer.eos_token_id)[0]
    expected = tokenizer.decode(output, skip_special_tokens=True)
    assert expected.startswith(NORMAL)
    answers = endpoint({"inputs": [NORMAL, "Il"], "parameters": settings})
    assert answers[0]["generated_text"] == expected and answers[1]["generated_text"].startswith("Il")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "inputs must be"),
        ({"inputs": None}, "inputs must be"),
        ({"inputs": [1]}, "inputs must be"),
        ({"inputs": {"text": "x"}}, "inputs must be"),
        ({"inputs": "mot " * 100}, "it must have 1 to 63"),
    ],
)
def test_bad_requests(endpoint, data, words):
    with pytest.raises(ValueError, match=words):
        endpoint(data)


def test_folder_needs_nothing_of_this_program(folder, tmp_path):
    """A fresh process elsewhere, which cannot import lit_gpt or utils."""
    code = (
        "import importlib.util, sys\n"
        "assert importlib.util.find_spec('utils') is None and importlib.util.find_spec('lit_gpt') is None\n"
        f"sys.path.insert(0, {str(folder)!r})\n"
        "from handler import EndpointHandler\n"
        f"answer = EndpointHandler({str(folder)!r})({{'inputs': 'Il', 'parameters': {{'max_new_tokens': 3}}}})\n"
        "assert answer[0]['generated_text'].startswith('Il')\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
