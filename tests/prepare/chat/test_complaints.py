"""What people complain about in the masks of other programs, each with the right value, on real templates."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as HFTokenizer

from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.hf_tokenizer import tokenizer_json
from lit_gpt.tokenizer.shipped_templates import SHIPPED, template_source
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import SHARED, TOKENIZER
from tests.prepare.chat.chat_tokenizers import tokens_named, with_tokens
from tests.prepare.chat.conversations import TIME, WEATHER, call, turns
from tests.prepare.chat.encoded import encode, reasons, samples, target_texts
from utils.data.parts import TARGET
from utils.prepare.chat.encoding import DATE

pytestmark = pytest.mark.shared
_trl = importlib.util.find_spec("trl")
FOLDER = Path(_trl.origin).parent / "chat_templates" if _trl and _trl.origin else Path("trl is not installed")


def source(name):
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def modern(tmp_path_factory):
    """A tokenizer with Llama 3's splits and the special tokens of all of trl's templates."""
    names = tokens_named("".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))))
    return with_tokens("llama3", tmp_path_factory.mktemp("modern"), names, "<bos>", "<eos>")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return with_tokens("gpt2", tmp_path_factory.mktemp("gpt2"), (), "<|endoftext|>", "<|endoftext|>")


def hf(folder):
    return HFTokenizer.from_file(str(folder / "tokenizer.json"))


def decoded(folder, encoded):
    return [hf(folder).decode(ids.tolist(), skip_special_tokens=False) for ids, _ in samples(encoded)]


def test_the_end_of_an_answer_is_a_target_where_it_is_the_padding_too(gpt2):
    encoded = encode(gpt2, "impruver", turns("Hi", "Hello", "And?", "Bye"))
    end = "<|endoftext|>"  # GPT-2's begin, end and, with most programs, padding
    assert target_texts(gpt2, encoded) == [[f"Hello{end}", f"Bye{end}"]]
    assert decoded(gpt2, encoded)[0].count(end) == 8  # nothing before or behind what the template writes


def test_gemmas_ends_of_turn_are_targets_in_answers_only(modern):
    encoded = encode(modern, source("gemma"), turns("a", "one", "b", "two"))
    [(ids, parts)] = samples(encoded)
    end = hf(modern).token_to_id("<end_of_turn>")
    assert end != hf(modern).token_to_id("<eos>")
    assert [bool(part == TARGET) for token, part in zip(ids, parts, strict=True) if token == end] == [False, True] * 2
    assert ids.tolist().count(hf(modern).token_to_id("<bos>")) == 1 and ids[0] == hf(modern).token_to_id("<bos>")


@pytest.mark.parametrize(
    ("name", "before", "end"),
    [
        ("llama3_1", "", "<|eot_id|>"),
        ("gemma3", "", "<end_of_turn>\n"),
        ("qwen3", "<think>\n\n</think>\n\n", "<|im_end|>\n"),
    ],
)
def test_templates_without_marks_have_targets_that_decode_to_the_answers(modern, name, before, end):
    encoded = encode(modern, source(name), turns("a", "Paris.", "b", " Non,\n\nmerci 🙂"))
    found = [run for sample in target_texts(modern, encoded) for run in sample]
    second = " Non,\n\nmerci 🙂" if name == "qwen3" else "Non,\n\nmerci 🙂"
    assert found == [f"{before}Paris.{end}", f"{before}{second}{end}"]


def test_a_token_over_the_border_is_named_and_the_space_on_the_answers_side_is_trained(gpt2):
    tokenizer = hf(gpt2)
    assert tokenizer.encode("Answer: ").ids == [33706, 25, 220]
    assert tokenizer.encode("Answer: hi").ids == [33706, 25, 23105]
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + '\n' }}{% else %}Answer: {{ m.content }}</end>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}Answer: {% endif %}"
    )
    left_out = encode(gpt2, template, turns("Q?", "hi"))
    assert reasons(left_out) == {"token_over_border": 1} and not len(left_out.tokens)
    assert "' hi'" in left_out.left_out[0].detail
    # blanks before the answer keep the border free: the tokens are those of the whole and of the prompt
    mended = template.replace("Answer: {% endif %}", "Answer:{% endif %}")
    trained = encode(gpt2, mended, turns("Q?", "hi"))
    [(ids, parts)] = samples(trained)
    assert ids.tolist() == tokenizer.encode("Q?\nAnswer: hi</end>").ids
    first = parts.tolist().index(TARGET)
    assert ids[first - 2 : first + 1].tolist() == [33706, 25, 23105] and parts[first - 1] != TARGET


def test_line_ends_that_merge_with_the_headers_are_named(modern):
    unmended = encode(modern, source("qwen2_5"), turns("a", "\n\nHello"), turns("a", "Hello"))
    assert reasons(unmended) == {"token_over_border": 1} and len(unmended.lengths) == 1
    shipped = encode(modern, "chatml", turns("a", "\n\nHello"))
    assert target_texts(modern, shipped) == [["Hello<|im_end|>\n"]]


@pytest.mark.parametrize("template", ["vicuna", "saiga", "impruver"])
@pytest.mark.parametrize("as_json", [False, True])
def test_sentencepiece_over_turn_borders_gives_the_ids_of_the_whole(template, as_json, tmp_path):
    folder = with_tokens("sample", tmp_path / "made", ())
    if as_json:
        tokenizer_json(Tokenizer(TOKENIZER)).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer.model").unlink()
    whole = tokenizer_json(Tokenizer(TOKENIZER))
    whole.post_processor = None
    answers = ["Bonjour, le roi.", " Elle vient ?", "Oui"]
    encoded = encode(folder, template, turns("Qui est là ?", answers[0], "Et  elle ?", answers[1], "…", answers[2]))
    begin = {"vicuna": "<s>USER: ", "saiga": "<s>user\n", "impruver": "<s>user\n"}[template]
    [(ids, parts)] = samples(encoded)
    text = begin + whole.decode(ids.tolist(), skip_special_tokens=False).partition("Qui est")[2].join(["Qui est", ""])
    assert ids.tolist() == whole.encode(text, add_special_tokens=False).ids
    runs = "".join(str(int(part == TARGET)) for part in parts).split("0")
    assert len([run for run in runs if run]) == 3
    targets = [int(token) for token, part in zip(ids, parts, strict=True) if part == TARGET]
    end = Tokenizer(TOKENIZER).eos_id
    assert targets.count(end) == 3
    assert "".join(whole.decode(targets).split()) == "".join("".join(answers).split())


def test_a_prompt_of_200_tokens_and_an_answer_of_5_at_64(modern):
    messages = turns("word " * 200, "one two three four five")
    for too_long in ("turns", "drop"):
        encoded = encode(modern, "chatml", messages, too_long=too_long, window=64)
        assert reasons(encoded) == {"too_long": 1} and not len(encoded.lengths)
        assert "64" in encoded.left_out[0].detail and encoded.left_out[0].text.startswith("word word")


def test_an_answer_of_80_tokens_at_50_leaves_no_end_after_a_cut(modern):
    messages = turns("a", "short", "b", "word " * 80)
    encoded = encode(modern, "chatml", messages, window=50)
    assert decoded(modern, encoded) == ["<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nshort<|im_end|>\n"]
    assert (encoded.shortened, encoded.turns_left_out) == (1, 1)
    assert reasons(encode(modern, "chatml", turns("b", "word " * 80), window=50)) == {"too_long": 1}


def test_roles_that_a_template_refuses_are_named(modern):
    double = [{"role": "user", "content": "a"}, *turns("b", "c")]
    encoded = encode(modern, source("gemma"), double, turns("a", "b", system="Be brief."), turns("a", "b"))
    assert reasons(encoded) == {"template_refuses": 2} and encoded.made_from.tolist() == [2]
    assert [left.at for left in encoded.left_out] == [0, 1]
    assert "System role not supported" in encoded.left_out[1].detail


def test_calls_with_different_arguments_have_no_nulls_and_text_beside_them_survives(modern):
    first = [*turns("a"), call("get_weather", {"city": "Zürich"}, "I look it up.")]
    second = [*turns("b"), call("get_time", {"zone": "CET", "ago": 3}, None)]
    encoded = encode(modern, source("qwen2_5"), first, second, tools=[WEATHER, TIME])
    one, two = target_texts(modern, encoded)
    assert one == [
        'I look it up.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>\n'
    ]
    assert "null" not in "".join(one + two) and "None" not in "".join(one + two)
    assert '{"zone": "CET", "ago": 3}' in two[0]
    # templates that would lose one of them are named
    assert reasons(encode(modern, source("muse_glimmer"), first, tools=[WEATHER])) == {"content_missing": 1}
    assert reasons(encode(modern, source("lfm2"), first, tools=[WEATHER])) == {"tool_calls_missing": 1}


def test_two_turns_of_reasoning_are_two_samples(modern):
    messages = turns("a", "one", "b", "two")
    for message, thought in ((messages[1], "First?"), (messages[3], "Second?")):
        message["reasoning_content"] = thought
    encoded = encode(modern, source("qwen3"), messages, turns("c", "three"))
    assert target_texts(modern, encoded) == [
        ["<think>\nFirst?\n</think>\n\none<|im_end|>\n"],
        ["<think>\nSecond?\n</think>\n\ntwo<|im_end|>\n"],
        ["<think>\n\n</think>\n\nthree<|im_end|>\n"],
    ]
    assert encoded.made_from.tolist() == [0, 0, 1]
    second = decoded(modern, encoded)[1]
    assert "First?" not in second and "one" in second  # as serving has it: earlier thoughts are gone


def test_a_template_that_opens_the_thoughts_says_what_to_do_for_answers_without(modern):
    refused = encode(modern, source("nemotron_3_nano"), turns("a", "b"))
    assert reasons(refused) == {"prefix": 1} and "enable_thinking = false" in refused.left_out[0].detail
    mended = "{% set enable_thinking = false %}" + source("nemotron_3_nano")
    assert target_texts(modern, encode(modern, mended, turns("a", "b"))) == [["b<|im_end|>\n"]]


def test_marks_decide(modern):
    marked = encode(modern, source("phi3_training"), turns("a", "b", "c", "d"))
    assert target_texts(modern, marked) == [["b<|end|>\n", "d<|end|>\n<eos>"]]
    messages = turns("a", "b", "c", "d")
    messages[3]["weight"] = 0
    assert target_texts(modern, encode(modern, source("phi3_training"), messages)) == [["b<|end|>\n"]]


def test_the_default_system_message_is_for_conversations_without_one(modern):
    encoded = encode(modern, "chatml", turns("a", "b"), turns("a", "b", system="Own."), system="Default.")
    one, two = decoded(modern, encoded)
    assert one.startswith("<|im_start|>system\nDefault.<|im_end|>") and two.startswith(
        "<|im_start|>system\nOwn.<|im_end|>"
    )
    assert "system" not in decoded(modern, encode(modern, "chatml", turns("a", "b")))[0]


def test_names_of_control_tokens_are_text_in_every_field(modern):
    name = "<|im_end|>"
    messages = [
        *turns(f"x{name}"),
        {**call("get_time", {"zone": name}, "Wait."), "reasoning_content": f"Hm{name}"},
        {"role": "tool", "name": "get_time", "content": name},
        {"role": "assistant", "content": f"So{name}"},
    ]
    encoded = encode(modern, source("qwen3"), messages, tools=[TIME])
    assert encoded.named == {name: 5}
    for ids, _ in samples(encoded):
        text = hf(modern).decode(ids.tolist(), skip_special_tokens=False)
        assert ids.tolist().count(hf(modern).token_to_id(name)) < text.count(name)
    final = target_texts(modern, encoded)[-1][-1]
    assert final.endswith(f"So{name}{name}\n")


def test_names_of_control_tokens_that_are_not_marked_as_special_are_text_too(gpt2, tmp_path):
    """As `<|im_end|>` of some fine-tunes; what a model writes itself, such as <think>, stays a token."""
    shutil.copytree(gpt2, tmp_path, dirs_exist_ok=True)
    made = hf(gpt2)
    made.add_tokens(["<|im_start|>", "<|im_end|>", "<think>"])
    made.save(str(tmp_path / "tokenizer.json"))
    encoded = encode(tmp_path, "chatml", turns("a<|im_end|>", "<think>b"))
    (ids, _), (end, think) = samples(encoded)[0], map(made.token_to_id, ("<|im_end|>", "<think>"))
    assert ids.tolist().count(end) == 2 and ids.tolist().count(think) == 1
    assert encoded.named == {"<|im_end|>": 1} and target_texts(tmp_path, encoded) == [["<think>b<|im_end|>\n"]]


def test_the_same_tokens_whatever_the_block(modern):
    conversations = [turns("a", "b"), turns("x <|im_end|>", "y"), turns("c", "d", "e", "f")]
    together = encode(modern, "chatml", *conversations)
    alone = [encode(modern, "chatml", conversation).tokens.tolist() for conversation in conversations]
    assert together.tokens.tolist() == [token for tokens in alone for token in tokens]


def test_mistrals_tokenizer_too(tmp_path):
    shutil.copytree(SHARED / "tokenizers" / "mistral-7b-v0.1", tmp_path, dirs_exist_ok=True)
    encoded = encode(tmp_path, "vicuna", turns("Hi </s>", "Hello <s> you", "b", "Ça va 🙂"))
    [(ids, parts)] = samples(encoded)
    tokenizer = Tokenizer(tmp_path)
    runs = "".join(chr(token) if part == TARGET else "\0" for token, part in zip(ids, parts, strict=True)).split("\0")
    runs = [[ord(token) for token in run] for run in runs if run]
    assert [tokenizer.decode(run) for run in runs] == ["Hello <s> you", "Ça va 🙂"]
    assert [run.count(tokenizer.eos_id) for run in runs] == [1, 1]
    assert ids.tolist().count(tokenizer.bos_id) == 1 and encoded.named == {"</s>": 1, "<s>": 1}


def test_a_prompt_that_alone_has_other_tokens_is_named(tmp_path):
    names = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    folder = with_tokens("gpt2", tmp_path, names, "<|endoftext|>", "<|endoftext|>")
    alone = hf(folder).encode("<|end_header_id|>\n\n").ids
    assert hf(folder).encode("<|end_header_id|>\n\nHello").ids[: len(alone)] != alone
    encoded = encode(folder, "llama3", turns("a", "Hello"))
    assert reasons(encoded) == {"prompt_tokens": 1} and "another template" in encoded.left_out[0].detail


@pytest.mark.parametrize("name", [*SHIPPED, "llama3_1", "qwen3", "gemma3"])
def test_what_precedes_an_answer_is_what_the_chat_sends(modern, name):
    template = template_source(name, Tokenizer(modern)) if name in SHIPPED else source(name)
    messages = turns("Hi </s>", "Hello", " b\n", "Ça va 🙂 <|im_end|>", "c", "d")
    chat = ChatTemplate(Tokenizer(modern), template, now=lambda: DATE)
    encoded = encode(modern, template, messages)
    asked = [chat.encode(messages[:count]) for count in (1, 3, 5)]
    found = []
    for ids, parts in samples(encoded):
        targets = parts == TARGET
        begins = [index for index in range(1, len(ids)) if targets[index] and not targets[index - 1]]
        found += [ids[:begin].tolist() for begin in begins]
    assert found == asked
