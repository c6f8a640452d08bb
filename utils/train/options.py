"""The options of pretrain.py and validate_pretrain.py: what each is for, in which unit, and which values cannot be."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_gpt.errors import raise_problems

_NOT_NEGATIVE = ("neftune_alpha", "warmup_steps", "weight_decay", "grad_clip", "min_learning_rate", "seed")
_BELOW_ONE = ("beta1", "beta2", "lora_dropout")
TRAINED_WHOLE = ("embeddings", "head")


@dataclass(frozen=True)
class PretrainOptions:
    """Train a language model on prepared text: full or LoRA, from a foundation model or from scratch."""

    SECTION = "pretrain"

    data_dir: Path
    """Folder of shards that prepare_data.py made."""
    checkpoint_dir: Path
    """Foundation model: a litgpt checkpoint directory. With --model_config only its tokenizer is used."""
    out_dir: Path
    """Run folder. If it holds the same run, training goes on from its newest valid checkpoint."""
    model_config: Path | None = None
    """Train from scratch: YAML file with litgpt's model fields; the vocabulary is the tokenizer's unless given."""
    language: str | None = None
    """Use only the datasets of this language (`fr`)."""
    mixture: Path | None = None
    """YAML file of shares, penalties and languages. Default: by rows, each row once per epoch."""
    devices: int | None = None
    """Processes per node, one per GPU. Default: as Slurm's step has them, else all GPUs, else 1."""
    num_nodes: int | None = None
    """Nodes. Default: as Slurm's step has them, else 1."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "bf16-mixed"
    """Weights and arithmetic: all fp32; fp32 weights and bf16 arithmetic; all bf16 (least memory)."""
    tensor_parallel: int = 1
    """Neighbouring devices that share each matrix, for models that do not fit otherwise; divides --devices."""
    batch_size: int = 16
    """Samples per device per optimiser step; with --tensor_parallel, per group of devices that share a model."""
    micro_batch_size: int = 1
    """Samples per forward and backward pass; divides --batch_size."""
    num_epochs: float = 1
    """Passes over the data (as many samples as the datasets have rows)."""
    max_steps: int | None = None
    """Optimiser steps, instead of --num_epochs."""
    max_checkpoints: int | None = None
    """End the training after this many checkpoints."""
    save_interval: int = 1800
    """Seconds or steps between two checkpoints. The last step is always saved."""
    eval_interval: int = 1800
    """Seconds or steps between two validations. The start and the last step are always validated."""
    interval_unit: Literal["time", "steps"] = "time"
    """What --save_interval and --eval_interval count: seconds or optimiser steps."""
    enable_validation: bool | None = None
    """Validate on every dataset's test rows. Default: if there are any."""
    eval_samples: int | None = None
    """Validate on at most this many samples per dataset. Default: all."""
    sample_prompts: Path | None = None
    """Prompts to go on with at every validation: a text a line, or in *.jsonl objects with "prompt" or "messages"."""
    sample_tokens: int = 128
    """Longest continuation, in tokens. Each takes a forward pass of the prompts."""
    early_stopping: int | None = None
    """Stop after this many validations without improvement."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    min_learning_rate: float = 0.0
    """Learning rate at the end of every schedule but the constant one."""
    lr_schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate falls after the warm-up; wsd keeps the peak until the last --decay_steps."""
    warmup_steps: int = 100
    """Optimiser steps of linear warm-up."""
    decay_steps: int | None = None
    """With --lr_schedule wsd, optimiser steps of linear decay at the run's end. Default: a fifth of the steps."""
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    """adamw_8bit keeps AdamW's moments in 8 bits (2 bytes a weight, not 8; needs bitsandbytes). adafactor keeps sums of
    rows and columns and no momentum: its --learning_rate is relative to the size of a matrix's weights (0.01 is usual,
    where AdamW has 1e-4) and clipped by update; --beta1 and --beta2 are not used."""
    weight_decay: float = 0.01
    """Share of a weight that is taken away per step, times the learning rate; on matrices only."""
    beta1: float = 0.9
    """AdamW's first moment decay."""
    beta2: float = 0.95
    """AdamW's second moment decay."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 for no clipping."""
    use_lora: bool = False
    """Train LoRA adapters instead of all weights."""
    lora_r: int = 8
    """Rank of the adapters."""
    lora_alpha: int = 16
    """Scale of the adapters: alpha / rank."""
    lora_dropout: float = 0.05
    """Dropout on the adapters' input."""
    lora_query: bool = True
    """Adapt the attention's query matrices."""
    lora_key: bool = False
    """Adapt the attention's key matrices."""
    lora_value: bool = True
    """Adapt the attention's value matrices."""
    lora_projection: bool = False
    """Adapt the attention's output matrices."""
    lora_mlp: bool = False
    """Adapt the feed-forward matrices."""
    lora_head: bool = False
    """Adapt the output head."""
    lora_train: str | None = None
    """What to train whole beside the adapters: embeddings, head, or embeddings,head, as added tokens need it."""
    quantize: Literal["bnb.nf4", "bnb.int8"] | None = None
    """With --use_lora, keep the base's matrices in 4 or 8 bits (QLoRA); needs bitsandbytes."""
    mask_documents: bool = True
    """A token attends only to its own document, and positions restart with it."""
    neftune_alpha: float = 0.0
    """NEFTune: in training, uniform noise of up to this / √(length of the document · width of the model) on the
    embeddings; 5 is usual for chats. 0 for none."""
    compile: bool = False
    """Compile each block of the model: a minute or more at the start, faster steps on a GPU."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping it: nothing; all but products and attention; all."""
    master_weights: bool = True
    """With --precision bf16-true, update fp32 copies of the weights: bf16 alone rounds small updates away."""
    log_interval: int | None = None
    """Steps between two looks at the losses, for which a GPU is waited for; after 10 seconds in any case.
    Default: 10 on a GPU, 1 without one."""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """Where curves go besides metrics.csv."""
    peak_tflops: float | None = None
    """What one device can do at most, in 10^12 operations per second, for the MFU. Default: its data sheet's figure."""
    profile_steps: str | None = None
    """Steps A-B to record with torch's profiler, into OUT_DIR/profile."""
    max_nonfinite_steps: int = 5
    """Stop after this many steps in a row whose gradient is not finite; such steps are skipped and logged."""
    verify_data: bool = True
    """Compare every shard with the manifest's SHA-256 before training."""
    async_checkpoints: bool = True
    """Go on training while a checkpoint is written; takes host memory for a copy of what is saved."""
    hang_timeout: int = 600
    """Seconds that a step, a batch of validation or a checkpoint may take; then the run ends with exit code 75."""
    dry_run: bool = False
    """Print what the run would need (memory, time, disk) and end: on any machine, without the model's weights."""
    gpu_memory: float | None = None
    """With --dry_run, GiB of memory of the GPUs to run on. Default: as here."""
    mfu: float = 0.4
    """With --dry_run, the share of --peak_tflops that is expected to be reached."""
    resume: Literal["auto", "never"] = "auto"
    """What to do when --out_dir holds this run: go on from its newest valid checkpoint, or refuse."""
    resume_from: str | None = None
    """Go back to this checkpoint of the run in --out_dir (`step-00001000`); what came after it goes into set_aside/."""
    seed: int = 1337
    """Decides the sample order, the random weights and dropout."""
    try_small: bool = False
    """A quick check of the whole command: 10 steps, validation on 8 samples per dataset, in OUT_DIR-small."""
    debug: bool = False
    """Show tracebacks, and check every backward pass for the operation that made a NaN."""

    @property
    def keeps_master_weights(self) -> bool:
        """Whether the optimiser keeps fp32 copies of the weights, which only weights in bf16 need."""
        return self.master_weights and self.precision == "bf16-true"

    def as_small_try(self) -> PretrainOptions:
        """The same command over 10 steps, in a run folder of its own: a real run must not continue from it."""
        return dataclasses.replace(
            self,
            out_dir=self.out_dir.with_name(self.out_dir.name + "-small"),
            max_steps=10,
            warmup_steps=2,
            decay_steps=self.decay_steps and 2,
            interval_unit="steps",
            eval_interval=5,
            eval_samples=8,
            save_interval=10,
            resume_from=None,
        )

    @property
    def trained_whole(self) -> list[str]:
        """The names in --lora_train."""
        return [] if self.lora_train is None else [name.strip() for name in self.lora_train.split(",")]

    def _problems_of_lora_train(self) -> list[str]:
        names = self.trained_whole
        problems = []
        if len(set(names)) < len(names) or not {*names} <= {*TRAINED_WHOLE}:
            problems.append(f"--lora_train {self.lora_train}: give embeddings, head, or embeddings,head")
        if names and not self.use_lora:
            problems.append("--lora_train needs --use_lora true: without it all is trained")
        if "head" in names and self.lora_head:
            problems.append("--lora_train head trains the head itself: leave --lora_head out")
        return problems

    def __post_init__(self) -> None:
        values = vars(self)
        problems = []
        for name, value in values.items():
            is_number = type(value) in (int, float)
            if is_number and value <= 0 and name not in (*_NOT_NEGATIVE, *_BELOW_ONE):
                problems.append(f"--{name} must be above 0")
        for name in _NOT_NEGATIVE:
            if values[name] < 0:
                problems.append(f"--{name} must be at least 0")
        if self.mfu > 1:
            problems.append("--mfu is a share of the peak, at most 1")
        if self.min_learning_rate > self.learning_rate:
            problems.append("--min_learning_rate must not be above --learning_rate")
        if self.decay_steps and self.lr_schedule != "wsd":
            problems.append("--decay_steps needs --lr_schedule wsd")
        for name in _BELOW_ONE:
            if not 0 <= values[name] < 1:
                problems.append(f"--{name} must be at least 0 and below 1")
        adapted = ("query", "key", "value", "projection", "mlp", "head")
        if self.use_lora and not any(values[f"lora_{name}"] for name in adapted):
            problems.append("--use_lora true without any matrix to adapt (--lora_query, … --lora_head)")
        if self.early_stopping and self.enable_validation is False:
            problems.append("--early_stopping needs --enable_validation")
        problems += self._problems_of_lora_train()
        if self.quantize and not self.use_lora:
            problems.append("--quantize needs --use_lora true: what is trained cannot be quantised")
        if self.optimizer != "adamw" and self.tensor_parallel > 1:
            problems.append(f"--optimizer {self.optimizer} does not work with --tensor_parallel: take adamw, or 1")
        if self.neftune_alpha and self.tensor_parallel > 1:
            problems.append("--neftune_alpha does not work with --tensor_parallel: its noise is not shared out")
        if self.use_lora and self.tensor_parallel > 1:
            problems.append("--tensor_parallel trains all weights, not --use_lora's adapters")
        if self.use_lora and self.model_config:
            problems.append("--use_lora needs a foundation model: random weights (--model_config) are not kept")
        if self.resume_from and self.resume == "never":
            problems.append("--resume_from goes on with a run, which --resume never forbids")
        raise_problems(problems)


@dataclass(frozen=True)
class ValidateOptions:
    """Validate all checkpoints of a run on each dataset separately and on all together."""

    SECTION = "validate"

    out_dir: Path
    """Run folder that pretrain.py writes."""
    data_dir: Path | None = None
    """Folder of shards. Default: the run's."""
    checkpoint_dir: Path | None = None
    """Foundation model. Default: the run's."""
    language: str | None = None
    """Only the datasets of this language (`fr`)."""
    max_batches: int | None = None
    """Measure on at most this many batches per dataset. Default: all."""
    batch_size: int = 8
    """Samples per forward pass."""
    devices: int | None = None
    """Processes per node. Default: as Slurm's step has them, else all GPUs, else 1."""
    num_nodes: int | None = None
    """Nodes. Default: as Slurm's step has them, else 1."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] | None = None
    """Arithmetic. Default: the run's."""
    verify_data: bool = True
    """Compare every shard with the manifest's SHA-256 first."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        names = ("max_batches", "batch_size", "devices", "num_nodes")
        values = vars(self)
        raise_problems([f"--{name} must be above 0" for name in names if (values[name] or 1) <= 0])
