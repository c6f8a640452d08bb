"""Reads a Hugging Face folder or an adapter back and compares it with the trained model.
Each function returns what it found, in words, and raises a DataError if the two differ."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_logits import PROBE_TEXT, agreement, ask_transformers, litgpt_logits, probe_sequences
from lit_gpt.formats.hf_weights import TensorFiles, tensors_to_hf
from lit_gpt.formats.peft import read_peft
from lit_gpt.model.lora import merge_adapter
from lit_gpt.tokenizer.chat_template import ChatTemplate, Message
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.run.merged_model import MergedModel


def verify_logits(stage: Path, model: MergedModel, tokenizer: Tokenizer) -> str:
    """Compares logits and token ids with those that transformers computes from `stage` in a fresh process."""
    sequences = probe_sequences(model.config.padded_vocab_size, model.config.block_size)
    ours = litgpt_logits(model.config, model.state_dict, sequences)
    text = PROBE_TEXT if (stage / "tokenizer.json").is_file() else None
    chats = probe_chats(tokenizer) if model.is_chat else []
    theirs = ask_transformers(stage, sequences, text, [messages for messages, _ in chats])
    verified = agreement(ours, theirs.logits, "the converted files")
    if theirs.ids is None:
        return verified
    ids = tokenizer.encode(PROBE_TEXT)
    other_start = (theirs.starts_with == tokenizer.bos_id) != tokenizer.adds_bos
    if theirs.ids != ids or other_start:
        raise DataError("transformers' AutoTokenizer gives other token ids than the model was trained with")
    if theirs.chats != [expected for _, expected in chats]:
        raise DataError("transformers' apply_chat_template gives other token ids than the model was trained with")
    equal_chats = f"; {len(chats)} chats by its template, too" if chats else ""
    return f"{verified}; {len(ids)} token ids equal{equal_chats}"


def probe_chats(tokenizer: Tokenizer) -> list[tuple[list[Message], list[int]]]:
    """Conversations up to an answer, with the token ids that the model was trained on; none that is refused."""
    template = ChatTemplate(tokenizer)
    questions = ("Bonjour, ça va ?", "  x = 3,50 € – naïve, isn't it?\n\n🙂 ")
    first, second = ({"role": "user", "content": question} for question in questions)
    answered = {"role": "assistant", "content": "Très bien… « et toi » ?"}
    system = {"role": "system", "content": "Be kind."}
    found = []
    for messages in ([first], [first, answered, second], [system, second], [system, first, answered, second]):
        with suppress(UserError):  # as templates refuse a system message
            found.append((messages, template.encode(messages)))
    return found


def verify_tensors(stage: Path, model: MergedModel, hf: dict[str, Any]) -> str:
    """Reads the weights files again and compares every tensor bit for bit with what was to be written."""
    files = TensorFiles(stage)
    names = set()
    for name, tensor in tensors_to_hf(model.state_dict, model.config, hf):
        names.add(name)
        if name not in files:
            raise DataError(f"{name} was not written")
        written = files.read(name, tuple(tensor.shape))
        same_bits = torch.equal(written.view(torch.uint8), tensor.contiguous().view(torch.uint8))
        if written.dtype != tensor.dtype or not same_bits:
            raise DataError(f"{name} was not written as it is")
    if left_over := files.keys() - names:
        raise DataError(f"the files hold tensors that were not to be written: {', '.join(sorted(left_over))}")
    return f"verified: {len(names)} tensors read back, equal bit for bit"


def verify_adapter(stage: Path, model: MergedModel, hf: dict[str, Any], modules: int) -> str:
    """Reads the adapter for peft in `stage`, merges it, and compares every weight with the trained model's."""
    adapter, settings = read_peft(stage, model.config, hf, model.base)
    merged = merge_adapter(model.base, adapter, model.config, settings)
    for name, tensor in model.state_dict.items():
        # peft multiplies by the scale at another point: that differs by a rounding of the weights' type at most
        tolerance = 4 * torch.finfo(tensor.dtype).eps * float(tensor.abs().max())
        if not torch.allclose(merged[name].float(), tensor.float(), atol=tolerance, rtol=0):
            raise DataError(f"the adapter as it was written makes another {name}")
    return f"verified: {modules} modules read back, merged again the same model"
