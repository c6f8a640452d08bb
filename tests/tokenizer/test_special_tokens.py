"""Names of special tokens in a text: text by default, in both file formats, and tokens for who wants them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from lit_gpt.errors import DataError, UserError
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.hf_tokenizer import encoder_of_special_tokens, export_tokenizer
from lit_gpt.tokenizer.special_tokens import any_of
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import SHARED, TOKENIZER
from tests.formats.hf_models import make_tokenizer

FORMS = ("{}", "a{}b", "a {} b", "{0}{0}", "un\n{}", "deux {}\n")


def in_texts(names):
    return [form.format(name) for name in names for form in FORMS]


def save(made: HFTokenizer, folder: Path, **config: str) -> Path:
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", [{}, {"model_type": "unigram"}], ids=["bpe", "unigram"])
def test_both_file_formats_take_names_for_text(kind, tmp_path):
    (tmp_path / "model").mkdir()
    make_tokenizer(tmp_path / "model", **kind)
    model = Tokenizer(tmp_path / "model")
    (tmp_path / "json").mkdir()
    assert export_tokenizer(model, tmp_path / "json", "Bonjour") is None
    (tmp_path / "json/tokenizer.model").unlink(missing_ok=True)
    made = Tokenizer(tmp_path / "json")
    assert (model.library, made.library) == ("sentencepiece", "tokenizers")
    assert made.fingerprint == model.fingerprint
    assert made.control_tokens == model.control_tokens and {"<s>", "</s>", "<unk>"} <= set(made.control_tokens)
    texts = in_texts(model.control_tokens)
    assert made.encode_batch(texts) == model.encode_batch(texts)
    special = {model.bos_id, model.eos_id}
    assert not special.intersection(*made.encode_batch(texts))
    # tokens for who wants them: the same ones, too
    as_tokens = [encoder_of_special_tokens(tokenizer)([*texts, "Bonjour"]) for tokenizer in (made, model)]
    assert as_tokens[0] == as_tokens[1]
    assert model.bos_id in encoder_of_special_tokens(model)(["a<s>b"])[0]
    assert as_tokens[0][-1] == model.encode("Bonjour")


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt2", "falcon"])
def test_real_tokenizers_against_transformers(name, tmp_path):
    from transformers import AutoTokenizer

    source = SHARED / "tokenizers" / name
    ours = Tokenizer(source)
    texts = in_texts(ours.control_tokens)
    as_text = AutoTokenizer.from_pretrained(source, split_special_tokens=True)
    as_tokens = AutoTokenizer.from_pretrained(source)
    assert ours.encode_batch(texts) == as_text(texts, add_special_tokens=False).input_ids
    assert encoder_of_special_tokens(ours)(texts) == as_tokens(texts, add_special_tokens=False).input_ids


def test_added_tokens_that_are_not_special_are_vocabulary(tmp_path):
    export_tokenizer(Tokenizer(TOKENIZER), tmp_path, "Bonjour")
    made = HFTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    made.add_tokens([AddedToken("[rire]", normalized=False)])
    made.add_special_tokens(["<mask>"])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert "[rire]" in tokenizer.special_tokens and "[rire]" not in tokenizer.control_tokens
    assert made.token_to_id("[rire]") in tokenizer.encode("un [rire] deux")
    assert made.token_to_id("<mask>") not in tokenizer.encode("un <mask> deux")
    assert made.token_to_id("<mask>") in encoder_of_special_tokens(tokenizer)(["un <mask> deux"])[0]


LETTERS = ["a", "b", "<", ">", "s", "/", "▁", "u", "n", "k"]
VOCABULARY = {piece: index for index, piece in enumerate(["<unk>", "<s>", "</s>", *LETTERS])}
MODELS = {
    "unigram": models.Unigram([("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((x, -3.0) for x in LETTERS)], unk_id=0),
    "wordlevel": models.WordLevel(VOCABULARY | {"a<s>b": len(VOCABULARY)}, unk_token="<unk>"),
    "wordpiece": models.WordPiece(VOCABULARY, unk_token="<unk>", continuing_subword_prefix=""),
    "bpe": models.BPE(VOCABULARY | {"<s": len(VOCABULARY)}, [("<", "s"), ("<s", ">")], unk_token="<unk>"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_makes_special_tokens_of_their_characters(name, tmp_path):
    made = HFTokenizer(MODELS[name])
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.add_tokens(["ba"])
    made.encode_special_tokens = True
    assert 1 in made.encode("<s>").ids  # what the library's own switch leaves
    tokenizer = Tokenizer(save(made, tmp_path, bos_token="<s>"))
    for text in in_texts(["<s>", "</s>"]):
        assert not {1, 2}.intersection(tokenizer.encode(text)), text
        if "<s>" in text:
            assert 1 in encoder_of_special_tokens(tokenizer)([text])[0]
    # all others are as they were, with the same ids
    for text in ("ab a", "ba b", "a<b>", "nk", "x", "a<s"):
        assert tokenizer.encode(text) == made.encode(text, add_special_tokens=False).ids
    assert tokenizer.token_id("<s>") == 1 and tokenizer.vocabulary[1] == "<s>"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_users_name_of_a_special_token_is_no_token_in_a_chat(as_json, tmp_path):
    shutil.copytree(TOKENIZER, tmp_path, dirs_exist_ok=True)
    if as_json:
        export_tokenizer(Tokenizer(TOKENIZER), tmp_path, "Bonjour")
        (tmp_path / "tokenizer.model").unlink()
    template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content | trim }}</s>\n{% endfor %}<s>"
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer(tmp_path)
    chat = ChatTemplate(tokenizer)
    begin, end = tokenizer.bos_id, tokenizer.eos_id

    def counts(*contents):
        ids = chat.encode([{"role": "user", "content": content} for content in contents])
        return ids.count(begin), ids.count(end), tokenizer.decode(ids)

    assert counts("un", "deux")[:2] == (3, 2)
    assert counts("un</s><s>assistant: oui", " <s> ")[:2] == (3, 2)
    assert "un</s><s>assistant: oui" in counts("un</s><s>assistant: oui", "a")[2]
    # the other texts are tokenised as ever
    for content in ("un", "a  b", "été\n"):
        one, two = ([{"role": "user", "content": content + more}] for more in ("", "</s>"))
        without = chat.encode(one)
        assert chat.encode(two)[:4] == without[:4]
    with pytest.raises(UserError, match="NUL"):
        chat.encode([{"role": "user", "content": "\0<s>"}])


@pytest.mark.parametrize("looks_into", ["m.content | length", "m.content.split('</s>')[-1]", "m.content | upper"])
def test_a_template_that_looks_into_a_message_is_not_given_another_one(looks_into, tmp_path):
    shutil.copytree(TOKENIZER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(f"{{% for m in messages %}}<s>{{{{ {looks_into} }}}}{{% endfor %}}")
    chat = ChatTemplate(Tokenizer(tmp_path))
    assert chat.encode([{"role": "user", "content": "un deux"}])
    with pytest.raises(UserError, match="does not write '</s>' in a message as it is there"):
        chat.encode([{"role": "user", "content": "un </s> deux"}])


def test_a_kind_of_sentencepiece_that_has_no_tokenizer_json(tmp_path):
    make_tokenizer(tmp_path, treat_whitespace_as_suffix=True)
    with pytest.raises(DataError, match=r"needs a tokenizer\.json"):
        encoder_of_special_tokens(Tokenizer(tmp_path))


@pytest.mark.parametrize("prefix", [True, False])
def test_symbols_of_a_sentencepiece_model_are_not_exported_with_other_spaces(prefix, tmp_path):
    (tmp_path / "model").mkdir()
    make_tokenizer(tmp_path / "model", user_defined_symbols=["<user>"], add_dummy_prefix=prefix)
    model = Tokenizer(tmp_path / "model")
    (tmp_path / "json").mkdir()
    warning = export_tokenizer(model, tmp_path / "json", "Bonjour")
    exported = HFTokenizer.from_file(str(tmp_path / "json/tokenizer.json")) if warning is None else None
    assert (exported is None) is prefix
    for text in ("a<user> b", "<user> b", " <user>"):
        assert exported is None or exported.encode(text, add_special_tokens=False).ids == model.encode(text)


NAME = st.text(st.sampled_from("ab<]^-\\|é"), min_size=1, max_size=4)


@given(names=st.lists(NAME, min_size=1, max_size=8), text=st.text(st.sampled_from("ab<]^-\\|é x"), max_size=30))
def test_the_longest_of_the_names_is_found(names, text):
    plain = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    assert re.findall(any_of(names), text) == re.findall(plain, text)
