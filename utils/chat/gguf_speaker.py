"""A GGUF file that answers: llama.cpp computes, by the template that is in the file."""

import codecs
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.programs import reason_of
from lit_gpt.inference.generation import UpTo, begun
from lit_gpt.inference.sampling_options import Sampling
from lit_gpt.tokenizer.chat_template import ChatTemplate, Message, strings_of
from lit_gpt.tokenizer.tokenizer import require_utf8
from utils.chat.gguf import GGUFTokens, read_metadata
from utils.chat.speaker import Form, Prompt, Tools, choose_form, own_sampling
from utils.export.llama_cpp import ANSWER_ALONE, LlamaCpp, thread_count
from utils.run.chat_options import ChatOptions

_ENDED, _LAST = " [end of text]\n", "\n\n"  # what llama-completion prints at an end token, and at last
_SAMPLING = (("temperature", "temp"), ("top_k", "top_k"), ("top_p", "top_p"), ("repetition_penalty", "penalty_repeat"))
_NEVER = "\0"  # behind these two: while the answer comes, all of them is held back


class GGUFSpeaker:
    """A model that llama.cpp runs, a process an answer. What it refuses is a DataError."""

    def __init__(
        self,
        label: str,
        file: Path,
        llama: LlamaCpp,
        form: Form,
        context: int,
        tokens: GGUFTokens,
        own: dict[str, float | int],
    ) -> None:
        self.label, self.form, self.context, self.own = label, form, context, own
        self.by_itself = False
        self._file, self._llama, self._tokens = file, llama, tokens
        end = form.template.end_of_turn if form.template else None
        # llama.cpp ends at tokens that the file names; another one it would not even print
        self._ends = [] if end is None or end in tokens.end_ids else [token_name(tokens, end)]

    def prompt(self, messages: list[Message], tools: Tools | None) -> Prompt:
        text = self.form.render(messages, tools)
        require_utf8(text)
        for said in strings_of([messages, tools]):
            for name in self._tokens.chat_control_tokens:
                if name in said:
                    raise UserError(f"a message holds {name!r}, which llama.cpp would take for that token")
        return Prompt(text, self._token_ids(text))

    def _token_ids(self, text: str) -> list[int]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "prompt")
            path.write_bytes(text.encode())
            return self._llama.token_ids(self._file, path, add_begin=self.form.template is None)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        self.by_itself = False
        limit = min(sampling.max_new_tokens, self.context - len(prompt.ids))
        text = UpTo((*self._ends, *self.form.stop, *sampling.stop))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "prompt")
            path.write_bytes(prompt.text.encode())
            for piece in self._printed(self._command(path, len(prompt.ids), limit, sampling), Path(folder, "errors")):
                if shown := text.push(piece):
                    yield shown
                if text.ended:
                    self.by_itself = True
                    return
        if rest := text.finish():
            yield rest

    def used(self, prompt: Prompt, answer: str) -> int:
        return len(self._token_ids(prompt.text + answer))

    def finish(self) -> None:
        """Has nothing to say: llama.cpp reads the file."""

    def _command(self, prompt: Path, length: int, limit: int, sampling: Sampling) -> list[str]:
        # the memory of all that a model can see may be large
        context = min(self.context, max(256, 1 << (length + limit).bit_length()))
        words: list[object] = [self._llama.programs / "llama-completion", "-m", self._file, "-f", prompt]
        words += ["-n", limit, "-c", context, "-t", thread_count(), "--seed", sampling.seed % 2**32]
        # the same sampling as ours, in the same order: the penalty is on all tokens so far
        words += ["--samplers", "penalties;temperature;top_k;top_p", "--temp", sampling.temperature]
        words += ["--top-k", sampling.top_k or 0, "--top-p", sampling.top_p]
        words += ["--repeat-penalty", sampling.repetition_penalty]
        words += ["--repeat-last-n", sampling.repetition_window or context]
        words += ANSWER_ALONE
        if self.form.template is not None:  # it has written what begins a text
            words += ["--override-kv", "tokenizer.ggml.add_bos_token=bool:false"]
        words += ["--special"] if self._ends else []
        return [str(word) for word in words]

    def _printed(self, command: list[str], errors: Path) -> Iterator[str]:
        """The answer as the program prints it; `by_itself` says afterwards whether it printed an end."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        held = ""
        # a session of its own: Ctrl-C is for this program, which then ends that one
        with (
            errors.open("wb") as log,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            ) as process,
        ):
            try:
                assert process.stdout is not None
                while found := os.read(process.stdout.fileno(), 1 << 16):
                    held += decoder.decode(found)
                    kept = max(begun(held, f"{_ENDED}{_LAST}{_NEVER}"), begun(held, _LAST + _NEVER))
                    if kept < len(held):
                        yield held[: len(held) - kept]
                        held = held[len(held) - kept :]
            except BaseException:  # the answer is not wanted any more
                process.kill()
                raise
        if process.returncode:
            reason = reason_of(errors.read_text(encoding="utf-8", errors="replace"))
            raise DataError(f"llama-completion failed on {self._file} (exit code {process.returncode}): {reason}")
        held = held.removesuffix(_LAST)
        if held.endswith(_ENDED):
            self.by_itself, held = True, held.removesuffix(_ENDED)
        if held:
            yield held


def token_name(tokens: GGUFTokens, index: int) -> str:
    return next(name for name in tokens.special_tokens if tokens.token_id(name) == index)


def gguf_speaker(file: Path, label: str, options: ChatOptions) -> GGUFSpeaker:
    """The model in a GGUF file; a UserError if there is no llama.cpp, a DataError if it is no such file."""
    metadata = read_metadata(file)
    llama = LlamaCpp.find(options.llama_cpp_dir)
    tokens = GGUFTokens(file, metadata)
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if not isinstance(context, int) or not metadata.get("tokenizer.ggml.tokens"):
        raise DataError(f"{file} says neither its context nor its tokens: it is no language model")
    source = metadata.get("tokenizer.chat_template")
    form = choose_form(options, source is not None, lambda: ChatTemplate(tokens, source or ""))
    found = {
        name: metadata[f"general.sampling.{key}"] for name, key in _SAMPLING if f"general.sampling.{key}" in metadata
    }
    own = own_sampling({"do_sample": True, **found}, file)
    return GGUFSpeaker(label, file, llama, form, context, tokens, own)
