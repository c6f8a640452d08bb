"""What other programs make of our files, and we of theirs: runs each on small models and writes docs/compatibility.md.

    python benchmarks/compatibility.py [--work_dir out/compatibility] [--only litgpt --only peft]

1. The chain makes the models: French plays as JSON lines → a model of 0.2 M parameters → a Hugging Face folder, an
   adapter of it, its merge, GGUF files. Each step is a command that a person could type.
2. Every client reads what the chain wrote, and gives a figure beside ours. None of them runs our code.
3. The table is written, with the versions. A client that fails has its error there; the exit code is then 1.

It needs lm_eval (benchmarks/requirements.txt), requirements-dev.txt, Go, and llama.cpp (utils/install_llama_cpp.py),
and takes some five minutes of two cores. Nothing is asked of the Hub.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # the repository, not this file's folder

TABLE = ROOT / "docs" / "compatibility.md"
TOKENIZER = ROOT / "data" / "sample" / "tokenizer"
LLAMA_CPP = ROOT / ".llama.cpp"
WINDOW = 512
MODEL = f"""
name: compatibility
block_size: {WINDOW}
n_layer: 2
n_embd: 64
n_head: 4
n_query_groups: 2
rotary_percentage: 1.0
parallel_residual: false
bias: false
norm_class_name: RMSNorm
mlp_class_name: LLaMAMLP
intermediate_size: 160
"""
PROMPT = "[speaker001:] Bonjour, monsieur ! Qu'est-ce que je vous sers ?\n[speaker002:]"
Rows = Iterator[tuple[str, str]]  # what was tried, and its result


class Chain:
    """The files that the clients read, in `folder`; made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus, self.data, self.run = folder / "corpus", folder / "data", folder / "run"
        self.hf, self.base = folder / "hf", folder / "base"
        self.lora_run, self.adapter, self.merged = folder / "run_lora", folder / "adapter", folder / "merged"
        self.gguf, self.merged_gguf = folder / "gguf", folder / "merged_gguf"

    def make(self) -> None:
        self._write_corpus()
        tokenizer = ("--checkpoint_dir", TOKENIZER)
        data = ("--source_path", self.corpus, "--destination_path", self.data, "--max_length", WINDOW)
        self.command("prepare_data.py", *data, *tokenizer, "--add_bos", "true", "--add_eos", "true")
        (self.folder / "model.yaml").write_text(MODEL)
        steps = ("--batch_size", 4, "--micro_batch_size", 4, "--precision", "32-true", "--interval_unit", "steps")
        steps += ("--warmup_steps", 2, "--eval_interval", 50, "--save_interval", 50, "--logger", "tensorboard")
        model = ("--data_dir", self.data, *tokenizer, "--model_config", self.folder / "model.yaml")
        self.command("pretrain.py", *model, *steps, "--max_steps", 80, "--learning_rate", 3e-3, "--out_dir", self.run)
        self.command("validate_pretrain.py", "--out_dir", self.run, "--batch_size", 8)
        self.command("convert_litgpt_to_transformers.py", "--input_path", self.run, "--output_dir", self.hf)
        shutil.copytree(self.hf, self.base)
        self.command("lit_gpt/scripts/convert_hf_checkpoint.py", "--checkpoint_dir", self.base)
        lora = ("--data_dir", self.data, "--checkpoint_dir", self.base, "--use_lora", "true", "--lora_mlp", "true")
        self.command(
            "pretrain.py", *lora, *steps, "--max_steps", 20, "--learning_rate", 1e-2, "--out_dir", self.lora_run
        )
        out = ("convert_litgpt_to_transformers.py", "--input_path", self.lora_run, "--output_dir")
        self.command(*out, self.merged)
        self.command(*out, self.adapter, "--as_adapter", "true", "--base_model", "somebody/base")
        for model_dir, folder, methods in (
            (self.hf, self.gguf, ("f32", "q8_0")),
            (self.merged, self.merged_gguf, ("f32",)),
        ):
            self.command(
                "utils/quantize_gguf.py", "--model_dir", model_dir, "--output_dir", folder, "--methods", *methods
            )

    def _write_corpus(self) -> None:
        for split in ("train", "test"):
            plays = sorted((ROOT / "data" / "sample" / "french" / "FR").glob(f"*/{split}.txt"))
            documents = [text for path in plays for text in path.read_text(encoding="utf-8").strip().split("\n\n")]
            # short enough to be measured whole
            lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents if len(text) < 900]
            (self.corpus / "plays").mkdir(parents=True, exist_ok=True)
            (self.corpus / "plays" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def texts(self, split: str) -> list[str]:
        lines = (self.corpus / "plays" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["text"] for line in lines]

    def command(self, script: str, *arguments: object) -> str:
        print(f"$ python {script} {' '.join(map(str, arguments))}", flush=True)
        return call([sys.executable, ROOT / script, *arguments])

    @cached_property
    def sequences(self) -> list[list[int]]:
        from lit_gpt.formats.hf_logits import probe_sequences

        vocabulary = json.loads((self.hf / "config.json").read_text())["vocab_size"]
        return probe_sequences(vocabulary, WINDOW)

    @cached_property
    def text(self) -> str:
        """`PROMPT` and 32 tokens that generate/base.py writes after it, each the most probable."""
        words = ("--checkpoint_dir", self.base, "--prompt", PROMPT, "--max_new_tokens", 32, "--temperature", 0)
        return self.command("lit_gpt/generate/base.py", *words)

    def our_logits(self, path: Path, checkpoint_dir: Path | None = None) -> list[Any]:
        """Of the model in `path`, a run folder or lit_model.pth, as this program computes it."""
        from lit_gpt.formats.hf_logits import litgpt_logits
        from utils.run.merged_model import load_merged_model

        model = load_merged_model(path, checkpoint_dir)
        return litgpt_logits(model.config, model.state_dict, self.sequences)

    def difference(self, ours: list[Any], model: Any) -> str:
        """The largest difference of `ours` from what transformers' `model` computes."""
        import torch

        largest = 0.0
        with torch.inference_mode():
            for row, ids in zip(ours, self.sequences, strict=True):
                theirs = model(input_ids=torch.tensor([ids])).logits[0].float().numpy()
                largest = max(largest, float(abs(row - theirs).max()))
        scale = max(float(abs(row).max()) for row in ours)
        return f"logits differ by {largest:.1e} at most, of {scale:.0f}"


def call(words: list[object], stdin: str | None = None, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        timeout=1200,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise RuntimeError(f"{Path(str(words[1])).name} exited with {done.returncode}: {last}")
    return done.stdout


def load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def transformers(chain: Chain) -> Rows:
    import torch
    from transformers import AutoTokenizer

    yield "our Hugging Face folder", chain.difference(chain.our_logits(chain.run), load(chain.hf))
    tokenizer = AutoTokenizer.from_pretrained(chain.hf)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        output = load(chain.hf).generate(ids, max_new_tokens=32, do_sample=False)[0]
    theirs = tokenizer.decode(output, skip_special_tokens=True)
    yield "`generate`, greedy, 32 tokens, beside generate/base.py", equal_start(chain.text, theirs)


def equal_start(ours: str, theirs: str) -> str:
    ours, theirs = (text[text.index(PROMPT) + len(PROMPT) :].strip() for text in (ours, theirs))
    differing = (place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
    equal = next(differing, min(len(ours), len(theirs)))
    length = max(len(ours), len(theirs))
    return f"the same {equal} characters" if equal == length else f"{equal} of {length} characters are the same"


def trainer(chain: Chain) -> Rows:
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(chain.hf)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = [{"input_ids": tokenizer(text)["input_ids"][:256]} for text in chain.texts("train")]
    back = chain.folder / "trainer"
    settings = TrainingArguments(
        back / "out", max_steps=10, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    model = load(chain.hf).train()
    own = Trainer(
        model, settings, DataCollatorForLanguageModeling(tokenizer, mlm=False), rows, processing_class=tokenizer
    )
    own.train()
    own.save_model(back / "model")
    yield "trains our folder for 10 steps", f"mean loss {own.state.log_history[-1]['train_loss']:.3f}"
    chain.command("lit_gpt/scripts/convert_hf_checkpoint.py", "--checkpoint_dir", back / "model")
    yield (
        "its result, converted back",
        chain.difference(chain.our_logits(back / "model" / "lit_model.pth"), model.eval()),
    )
    more = ("--data_dir", chain.data, "--checkpoint_dir", back / "model", "--out_dir", back / "run", "--max_steps", 2)
    more += ("--precision", "32-true", "--batch_size", 8, "--micro_batch_size", 4, "--interval_unit", "steps")
    chain.command("pretrain.py", *more)
    loss = list(csv.DictReader((back / "run" / "metrics.csv").open()))
    first = next(row["loss"] for row in loss if row.get("loss"))
    yield "and trained on by pretrain.py", f"first loss {float(first):.3f}"


def peft(chain: Chain) -> Rows:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    ours = chain.our_logits(chain.lora_run)
    model = PeftModel.from_pretrained(load(chain.hf), chain.adapter)
    yield "our adapter on our folder", chain.difference(ours, model)
    yield "`merge_and_unload` of it", chain.difference(ours, model.merge_and_unload())
    yield "our merge of it, by transformers", chain.difference(ours, load(chain.merged))
    theirs = get_peft_model(load(chain.hf), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(chain.folder / "peft")
    merged = chain.folder / "peft_merged" / "lit_model.pth"
    words = ("--lora_path", chain.folder / "peft", "--checkpoint_dir", chain.base, "--save_path", merged)
    chain.command("utils/merge_lora.py", *words)
    yield "its adapter, merged by merge_lora.py", chain.difference(chain.our_logits(merged), theirs.eval())


def lm_eval(chain: Chain) -> Rows:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    rows = list(csv.DictReader((chain.run / "validation.csv").open()))
    best = [row for row in rows if row["dataset"] == "all"][-1]
    documents = chain.folder / "lm_eval"
    documents.mkdir(exist_ok=True)
    # a document is trained with its end token, so that it is measured with it
    lines = [json.dumps({"text": text + "</s>"}) for text in chain.texts("test")]
    (documents / "documents.jsonl").write_text("\n".join(lines))
    task = {
        "task": "held_out",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(documents / "documents.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    }
    for adds in (False, True):
        model = HFLM(pretrained=str(chain.hf), dtype="float32", device="cpu", batch_size=1, add_bos_token=adds)
        found = simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0)
        total = sum(likelihood_of(sample) for sample in found["samples"]["held_out"])
        targets = int(best["targets"])
        loss = -total / targets
        yield (
            f"loss of {len(lines)} held-out documents with `add_bos_token={adds}`, beside validate_pretrain.py",
            f"{loss:.6f}, ours {float(best['loss']):.6f} of {targets} tokens",
        )


def likelihood_of(sample: dict[str, Any]) -> float:
    answer = sample["resps"]
    while isinstance(answer, (list, tuple)):
        answer = answer[0]
    return float(answer)


def litgpt(chain: Chain) -> Rows:
    script = Path(sys.executable).with_name("litgpt")
    greedy = ("--max_new_tokens", 32, "--top_k", 1, "--temperature", 1e-6)
    ours = chain.text
    said = call([script, "generate", chain.base, "--prompt", PROMPT, *greedy, "--precision", "32-true"])
    yield "`litgpt generate`, greedy, 32 tokens, beside generate/base.py", equal_start(ours, said)
    asked = "[speaker001:] Bonjour, monsieur ! Je voudrais"
    talk = call([script, "chat", chain.base, *greedy, "--precision", "32-true"], stdin=asked + "\n\n")
    reply = talk.partition(">> Reply: ")[2].partition("\n>> Prompt")[0]
    words = ("--checkpoint_dir", chain.base, "--prompt", asked, "--max_new_tokens", 32, "--temperature", 0)
    expected = chain.command("lit_gpt/generate/base.py", *words)
    expected = expected[expected.index(asked) + len(asked) :]
    spaces = f"{reply.count(' ')} spaces of {expected.count(' ')}"
    yield (
        "`litgpt chat`, beside generate/base.py",
        f"{'the same text' if reply.strip() == expected.strip() else 'another text'}, {spaces}",
    )
    task = chain.folder / "lm_eval" / "task"
    task.mkdir(parents=True, exist_ok=True)
    (task.parent / "documents.jsonl").write_text(json.dumps({"text": chain.texts("test")[0]}) + "\n")
    (task / "held_out.yaml").write_text(
        f"task: held_out\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {task.parent}/documents.jsonl}}}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    evaluate = (
        "import sys; from litgpt.eval.evaluate import convert_and_evaluate\n"
        "import lm_eval.tasks as tasks; manager = tasks.TaskManager\n"
        "tasks.TaskManager = lambda *a, **k: manager(include_path=sys.argv[3])\n"
        "import lm_eval.evaluator as e; e.TaskManager = tasks.TaskManager\n"
        "convert_and_evaluate(sys.argv[1], tasks='held_out', out_dir=sys.argv[2], dtype='float32', device='cpu')\n"
    )
    out = chain.folder / "evaluated"
    call([sys.executable, "-c", evaluate, chain.base, out, task])
    result = json.loads((out / "results.json").read_text())["results"]["held_out"]["bits_per_byte,none"]
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(chain.hf), dtype="float32", device="cpu", batch_size=1)
    manager = TaskManager(include_path=str(task))
    whole = simple_evaluate(model=model, tasks=["held_out"], task_manager=manager, bootstrap_iters=0)
    ours_bits = whole["results"]["held_out"]["bits_per_byte,none"]
    yield (
        "`litgpt evaluate` of our litgpt directory, beside our Hugging Face folder",
        f"{result:.6f} and {ours_bits:.6f} bits a byte",
    )


def llama_cpp(chain: Chain) -> Rows:
    table = {row["method"]: row for row in csv.DictReader((chain.gguf / "quantization.csv").open())}
    for method, row in table.items():
        yield (
            f"perplexity of {method}, beside transformers in float32",
            f"{float(row['perplexity']):.4f} and {float(row['perplexity_hf']):.4f}, greedy {row['greedy_equal']} of "
            f"{row['greedy_tokens']} tokens",
        )
    script = LLAMA_CPP / "convert_lora_to_gguf.py"
    lora = chain.folder / "adapter.gguf"
    words = [sys.executable, script, "--base", chain.hf, "--outtype", "f32", "--outfile", lora, chain.adapter]
    call(words, PYTHONPATH=str(LLAMA_CPP / "gguf-py"))
    text = chain.folder / "text"
    text.write_text("\n\n".join(chain.texts("test")), encoding="utf-8")
    measured = []
    base, merged = chain.gguf / "hf-f32.gguf", chain.merged_gguf / "merged-f32.gguf"
    for model, more in ((base, ()), (base, ("--lora", lora)), (merged, ())):
        words = [LLAMA_CPP / "bin" / "llama-perplexity", "-m", model, "-f", text, "-c", "256", *more]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=600)
        measured.append(re.search(r"Final estimate: PPL = (\S+)", done.stdout + done.stderr)[1])
    yield (
        "our adapter through convert_lora_to_gguf.py, `llama-perplexity --lora`, beside our merge",
        f"{measured[1]} and {measured[2]} (the base {measured[0]})",
    )


def gguf(chain: Chain) -> Rows:
    sys.path.append(str(LLAMA_CPP / "gguf-py"))  # at the end: it has a package `tests`
    import numpy
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.numpy import load_file

    hf = load_file(chain.hf / "model.safetensors")
    for method in ("f32", "q8_0"):
        reader = GGUFReader(chain.gguf / f"hf-{method}.gguf")
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        pairs = {
            "token_embd.weight": "model.embed_tokens.weight",
            "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        }
        found = []
        for theirs, ours in pairs.items():
            values = dequantize(tensors[theirs].data, tensors[theirs].tensor_type).reshape(hf[ours].shape)
            found.append(float(numpy.abs(values - hf[ours]).max()))
        context = int(reader.fields["llama.context_length"].parts[-1][0])
        yield f"{method}: {len(tensors)} tensors, context {context}", f"weights differ by {max(found):.1e} at most"


def tensorboard(chain: Chain) -> Rows:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = {path.parent for path in chain.run.rglob("events.out.tfevents*")}
    read = EventAccumulator(str(events))
    read.Reload()
    rows = list(csv.DictReader((chain.run / "metrics.csv").open()))
    ours = {}
    for row in rows:
        step, dataset = int(row["step"]), row["dataset"]
        if dataset:
            ours[f"{row['split']}/{dataset}", step] = row["loss"]
        else:
            ours |= {(f"train/{column}", step): row[column] for column in ("loss", "learning_rate", "grad_norm")}
    tags = {tag for tag, _ in ours}
    theirs = {(tag, event.step): event.value for tag in tags for event in read.Scalars(tag)}
    # between two training losses a second passes, as said in loggers.py: the file has not every step
    differences = [abs(value - float(ours[key])) / abs(float(ours[key])) for key, value in theirs.items() if ours[key]]
    yield (
        f"{len(tags)} curves, {len(differences)} values, beside metrics.csv",
        f"differ by {max(differences):.1e} at most",
    )


def pandas(chain: Chain) -> Rows:
    import pandas

    for name in ("metrics.csv", "validation.csv"):
        frame = pandas.read_csv(chain.run / name)
        with (chain.run / name).open() as file:
            lines = sum(1 for _ in file) - 1
        numbers = len(frame.select_dtypes("number").columns)
        yield (
            f"`read_csv` of {name}",
            f"{len(frame)} rows of {lines} lines, {numbers} of {len(frame.columns)} columns numbers",
        )


def datasets(chain: Chain) -> Rows:
    from datasets import load_dataset

    read = load_dataset(str(chain.corpus / "plays"), cache_dir=str(chain.folder / "datasets"))
    manifest = json.loads((chain.data / "manifest.json").read_text())
    own = dict.fromkeys(read, 0)
    for split in own:
        own[split] = sum(text in set(chain.texts(split)) for text in read[split]["text"])
    yield (
        "`load_dataset` of the corpus that prepare_data.py read",
        ", ".join(f"{split} {len(read[split])} documents, {own[split]} the same" for split in read),
    )
    counted = {entry["split"]: entry["documents"] for entry in manifest["splits"]}
    yield "the manifest's documents", ", ".join(f"{split} {count}" for split, count in counted.items())


def inference_client(chain: Chain) -> Rows:
    from huggingface_hub import InferenceClient, constants

    from tests.endpoint_server import load_endpoint, serving

    constants.HF_HUB_OFFLINE = False  # the server is on this machine

    with serving(load_endpoint(chain.hf)) as (address, _):
        client = InferenceClient(base_url=None, model=address)
        text = client.text_generation(PROMPT, max_new_tokens=32, do_sample=False, return_full_text=False)
        expected = chain.text
        yield "`text_generation`, greedy, 32 tokens, beside generate/base.py", equal_start(expected, PROMPT + text)
        same = {client.text_generation(PROMPT, max_new_tokens=16, do_sample=True, seed=7) for _ in range(3)}
        yield "`text_generation` with `seed=7`, three times", f"{len(same)} text{'s' * (len(same) > 1)}"
        stopped = client.text_generation(
            PROMPT, max_new_tokens=64, do_sample=False, stop=["\n"], return_full_text=False
        )
        yield (
            "`text_generation` with `stop`",
            f"{len(stopped)} characters, {stopped.rstrip().count(chr(10))} line breaks",
        )
        long = client.text_generation(PROMPT, max_new_tokens=100_000, do_sample=False, return_full_text=False)
        yield f"`max_new_tokens=100000` in a context of {WINDOW}", f"{len(long)} characters, no error"
        answer = client.chat_completion([{"role": "user", "content": "Bonjour !"}], max_tokens=16, temperature=0)
        yield (
            "`chat_completion`",
            f"{len(answer.choices[0].message.content)} characters, ended by {answer.choices[0].finish_reason}",
        )


def ollama(chain: Chain) -> Rows:
    """Its templates' language, Go's text/template; Ollama itself is not run."""
    from tests.export.go_templates import real_templates, tokenizer_folder
    from utils.export.hf_chat import HFChat
    from utils.export.modelfile import form_of
    from utils.export.ollama_go import Go
    from utils.export.template_battery import CHATS, OTHERS, conversations

    go = Go(chain.folder)
    chats = [chat for roles in (*CHATS, *(r for group in OTHERS for r in group)) for chat in conversations(roles)]
    forms = equal = refused = wrong = 0
    templates = real_templates()
    for name, path in templates.items():
        folder = tokenizer_folder(chain.folder / "templates" / name, path.read_text(encoding="utf-8"))
        form = form_of(folder)
        if form.template is None:
            continue
        forms += 1
        theirs = HFChat(folder)
        for messages, answer in zip(chats, go.answers(form.template, chats), strict=True):
            expected = theirs.render(messages)
            equal += "error" not in answer and answer["text"] == expected
            refused += "error" in answer
            wrong += "error" not in answer and expected is not None and answer["text"] != expected
    yield (
        f"{len(templates)} chat templates of trl {version('trl')}, on {len(chats)} conversations each",
        f"{forms} have a form, {len(templates) - forms} are left to Ollama; {equal:,} renderings equal, {refused:,} "
        f"refused with an error, {forms * len(chats) - equal - refused - wrong} without an answer at the beginning "
        f"that the model's template refuses, {wrong} other",
    )


CLIENTS: dict[str, tuple[str, Callable[[Chain], Rows]]] = {
    "transformers": ("transformers", transformers),
    "trainer": ("transformers' Trainer", trainer),
    "peft": ("peft", peft),
    "lm_eval": ("lm-evaluation-harness", lm_eval),
    "litgpt": ("litgpt", litgpt),
    "llama_cpp": ("llama.cpp", llama_cpp),
    "gguf": ("gguf's reader", gguf),
    "ollama": ("Go's text/template (Ollama)", ollama),
    "tensorboard": ("TensorBoard", tensorboard),
    "pandas": ("pandas", pandas),
    "datasets": ("datasets", datasets),
    "inference_client": ("huggingface_hub's InferenceClient", inference_client),
}
NOTES = """
lm-evaluation-harness begins each document with the begin token by itself. Where it is told to add one more
(`add_bos_token=True`, or nothing, and the tokenizer adds one), a document begins with two, which no training had: give
`add_bos_token=False` for what validate_pretrain.py measures. A document is measured with `</s>` at its end, as it was
trained.
"""


def version_of(name: str) -> str:
    if name == "llama_cpp":
        return json.loads((LLAMA_CPP / "installed.json").read_text())["commit"]
    if name == "ollama":
        return call(["go", "version"]).split()[2].removeprefix("go")
    if name == "gguf":
        text = (LLAMA_CPP / "gguf-py" / "pyproject.toml").read_text()
        return re.search(r'^version = "(.+)"', text, re.MULTILINE)[1]
    package = {"trainer": "transformers", "inference_client": "huggingface_hub"}.get(name, name)
    return version(package)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=ROOT / "out" / "compatibility")
    parser.add_argument("--only", action="append", choices=CLIENTS, help="this client; the table is not written")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    chain = Chain(arguments.work_dir.resolve())
    if not (chain.merged_gguf / "quantization.csv").is_file():
        shutil.rmtree(chain.folder, ignore_errors=True)
        chain.make()
    commit = call(["git", "rev-parse", "--short", "HEAD"]).strip()
    lines, failed = [], 0
    for name in arguments.only or CLIENTS:
        client, check = CLIENTS[name]
        try:
            for tried, result in check(chain):
                lines.append(f"| {client} | {version_of(name)} | {tried} | {result} |")
                print(lines[-1], flush=True)
        except Exception as e:  # a client's failure is a result of this table, whatever it raises
            failed += 1
            reason = (str(e).strip() or type(e).__name__).splitlines()[0].replace("|", "/")
            lines.append(f"| {client} | {version_of(name)} | the rest | failed: {reason[:200]} |")
            print(lines[-1], flush=True)
            if arguments.only:
                raise
        if not arguments.only:
            write_table(lines, commit)
    return 1 if failed else 0


def write_table(lines: list[str], commit: str) -> None:
    head = [
        "# With other programs",
        "",
        "What they make of our files, and we of theirs, on a model of 0.2 M parameters that the chain makes on the",
        f"spot. Each line was run, by `python benchmarks/compatibility.py`, at {commit}.",
        "",
        "| client | version | what was tried | result |",
        "|---|---|---|---|",
    ]
    TABLE.write_text("\n".join([*head, *lines]) + "\n" + NOTES, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
