"""What a run will do, settled and checked before any process is started."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from litgpt.config import Config
from torch import Tensor

from lit_gpt.checksums import file_sha256
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.litgpt_directory import config_values, read_config, read_weights
from lit_gpt.model.growing import grow, grown_config
from lit_gpt.model.lora import LoRASettings
from lit_gpt.model.qlora import import_bitsandbytes
from lit_gpt.model.tensor_parallel import sharing_problems
from lit_gpt.tokenizer.added_tokens import extends
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.tokenizer import CHAT_FILES, CHAT_TEMPLATE, TOKENIZER_FILES, Tokenizer
from utils.cluster.launch import resolve_processes
from utils.data.manifest import TEST, TOKENIZER, TRAIN, DatasetSplit, Manifest
from utils.data.mixture import Mixture
from utils.run.csv_log import METRICS, check_columns
from utils.run.foundation import base_record
from utils.run.going_back import named_checkpoint
from utils.run.record import RUN, RunIdentity, RunRecord
from utils.train.adamw_8bit import check_adamw_8bit
from utils.train.loggers import check_logger
from utils.train.metrics import METRIC_COLUMNS
from utils.train.options import TRAINED_WHOLE, PretrainOptions
from utils.train.profiler import parse_profile_steps
from utils.train.samples import SamplePlan, make_sample_plan
from utils.train.schedule import Schedule
from utils.train.validation import end_ids_of, template_of


@dataclass(frozen=True)
class TrainingPlan:
    """What a run will do; the same on every process."""

    manifest: Manifest
    mixture: Mixture
    validation: list[DatasetSplit]
    """The test rows to validate on; empty when there is no validation."""
    template: ChatTemplate | None
    """That of the data's chats; None for data without any."""
    samples: SamplePlan | None
    """The prompts to go on with at every validation."""
    config: Config
    lora: LoRASettings | None
    """None when all weights are trained."""
    weights: Mapping[str, Tensor] | None
    """The foundation model's, with rows for added tokens; None for random weights, and in a dry run."""
    tokenizer_dir: Path
    """The tokenizer: the foundation's, or where tokens were added to it, the data's."""
    processes: tuple[int, int]
    """Processes per node, and nodes."""
    schedule: Schedule
    identity: RunIdentity
    """What a resumed run must share with its beginning."""

    @property
    def end_ids(self) -> list[int]:
        return end_ids_of(self.template)

    @property
    def validates(self) -> bool:
        """Whether anything is done at a validation."""
        return bool(self.validation or self.samples)

    @property
    def samples_per_step(self) -> int:
        return self.identity.samples_per_step


def make_plan(options: PretrainOptions) -> TrainingPlan:
    """Reads and checks the data, the model and the run folder; raises for whatever would go wrong later."""
    check_logger(options.logger)
    if options.quantize and not options.dry_run:
        import_bitsandbytes()
    if options.optimizer == "adamw_8bit" and not options.dry_run:
        check_adamw_8bit()
    profiled = parse_profile_steps(options.profile_steps) if options.profile_steps else None
    manifest = Manifest.load(options.data_dir)
    config = read_config(options.model_config or options.checkpoint_dir, manifest.vocab_size)
    added_tokens = check_tokenizer(manifest, options)
    if added_tokens and not options.model_config:
        require_rows(manifest.vocab_size - len(added_tokens), config)
        config = grown_config(config, manifest.vocab_size)
    check_data_fits(manifest, config)
    check_template(manifest, options.data_dir)
    mixture = Mixture.of(manifest.select(TRAIN, options.language), options.mixture)
    if not any(entry.targets for entry in mixture.entries):
        raise DataError(f"{options.data_dir}: no document of the data to train on has a second token to predict")
    processes = (options.devices or 1, options.num_nodes or 1)
    if not options.dry_run:
        processes = resolve_processes(options.devices, options.num_nodes)
    check_tensor_parallel(options, processes, config, manifest.block_size)
    samples_per_step = check_batch(options, processes)
    weights = None
    if not options.model_config and not options.dry_run:
        weights = read_weights(options.checkpoint_dir)
        if added_tokens:
            weights = grow(weights, config, len(added_tokens))
    lora = lora_settings(options) if options.use_lora else None
    if lora and added_tokens:
        require_trained_rows(added_tokens, lora)
    shares = zip(mixture.entries, mixture.weights, strict=True)
    identity = RunIdentity(
        model=config_values(config),
        lora=lora and lora.recorded(),
        base=recorded_base(options) if weights else None,
        added_tokens=None if options.model_config else added_tokens or None,
        quantize=options.quantize,
        data=manifest.fingerprint(mixture.entries),
        template=manifest.template or None,
        mixture={entry.dataset: weight for entry, weight in shares},
        samples_per_step=samples_per_step,
        mask_documents=options.mask_documents,
        master_weights=options.keeps_master_weights,
        optimizer=options.optimizer,
        seed=options.seed,
    )
    if not options.dry_run:
        check_out_dir(options, identity)
    schedule = make_schedule(options, mixture, samples_per_step)
    if profiled and profiled[0] > schedule.max_steps:
        raise UserError(f"--profile_steps {options.profile_steps}: the run has {schedule.max_steps} steps")
    validation, template = choose_validation(options, manifest), template_of(options.data_dir, manifest)
    samples = plan_samples(options, manifest, template, config)
    tokenizer_dir = options.data_dir / TOKENIZER if added_tokens else options.checkpoint_dir
    return TrainingPlan(
        *(manifest, mixture, validation, template, samples, config, lora, weights),
        *(tokenizer_dir, processes, schedule, identity),
    )


def plan_samples(
    options: PretrainOptions, manifest: Manifest, template: ChatTemplate | None, config: Config
) -> SamplePlan | None:
    """Reads --sample_prompts; None without."""
    if options.sample_prompts is None:
        return None
    positions = options.micro_batch_size * manifest.block_size
    tokenizer = template.tokenizer if template else Tokenizer(options.data_dir / TOKENIZER)
    return make_sample_plan(
        options.sample_prompts, options.sample_tokens, positions, tokenizer, template, manifest.bos, config
    )


def recorded_base(options: PretrainOptions) -> str:
    """What run.yaml says, or will say, of the foundation model's weights."""
    begun = RunRecord.load(options.out_dir).identity.base if (options.out_dir / RUN).is_file() else None
    return base_record(options.checkpoint_dir, begun)


def lora_settings(options: PretrainOptions) -> LoRASettings:
    whole = {f"train_{name}": name in options.trained_whole for name in TRAINED_WHOLE}
    names = [field.name for field in dataclasses.fields(LoRASettings) if field.name not in whole]
    return LoRASettings(**{name: getattr(options, f"lora_{name}") for name in names}, **whole)


def check_tokenizer(manifest: Manifest, options: PretrainOptions) -> list[str]:
    """Raises unless the shards were made with the foundation's tokenizer; returns the tokens that were added to it."""
    tokenizer = Tokenizer(options.checkpoint_dir)
    if tokenizer.fingerprint == manifest.tokenizer:
        return []
    if manifest.added_tokens:
        grown = Tokenizer(options.data_dir / TOKENIZER)
        if grown.fingerprint == manifest.tokenizer and extends(grown, tokenizer, manifest.added_tokens):
            return manifest.added_tokens
    raise DataError(
        f"the shards in {options.data_dir} were made with another tokenizer than the one in "
        f"{options.checkpoint_dir}; prepare the data with --checkpoint_dir {options.checkpoint_dir}"
    )


def check_data_fits(manifest: Manifest, config: Config) -> None:
    """Raises unless the shards fit this model's window and vocabulary."""
    if manifest.block_size > config.block_size:
        raise UserError(
            f"the shards hold {manifest.block_size} positions a row, the model has {config.block_size}; "
            f"prepare the data with --max_length {config.block_size} or less"
        )
    require_rows(manifest.vocab_size, config)


def require_rows(entries: int, config: Config) -> None:
    if entries > config.padded_vocab_size:
        raise UserError(f"the tokenizer has {entries} entries, the model's vocabulary {config.padded_vocab_size}")


def require_trained_rows(added_tokens: list[str], lora: LoRASettings) -> None:
    """Raises if adapters alone would leave the rows of added tokens as they begin, all of them the same."""
    if not lora.train_embeddings or not (lora.train_head or lora.head):
        raise UserError(
            f"the data's tokenizer has tokens that the foundation's lacks ({', '.join(added_tokens)}); LoRA's adapters "
            "alone would never train their rows: give --lora_train embeddings,head"
        )


def check_template(manifest: Manifest, data_dir: Path) -> None:
    """Raises unless the chat template in the data folder is the one that its shards were made with."""
    path = data_dir / TOKENIZER / CHAT_TEMPLATE
    if not manifest.template:
        return
    if not path.is_file():
        raise DataError(
            f"{path}, the chat template of the shards, is missing; prepare the data again (prepare_data.py)"
        )
    if file_sha256(path) != manifest.template:
        raise DataError(f"{path} is not the template that the shards were made with; prepare the data again")


def tokenizer_files(plan: TrainingPlan, options: PretrainOptions) -> list[Path]:
    """The files by which the trained model reads and writes text: the tokenizer's, or where the data have chats, their
    chat template and, with the tokens that end an answer, their generation_config.json."""
    folders = dict.fromkeys(TOKENIZER_FILES, plan.tokenizer_dir)
    if plan.manifest.template:
        folders |= dict.fromkeys(CHAT_FILES, options.data_dir / TOKENIZER)
    files = [folder / name for name, folder in folders.items()]
    return [path for path in files if path.is_file()]


def check_batch(options: PretrainOptions, processes: tuple[int, int]) -> int:
    """Samples per optimiser step, over all processes; raises if micro-batches or a begun run want another number."""
    batch, micro = options.batch_size, options.micro_batch_size
    if batch % micro:
        divisors = [size for size in range(1, micro) if batch % size == 0]
        raise UserError(
            f"--batch_size {batch} is not a multiple of --micro_batch_size {micro}; "
            f"take --micro_batch_size {max(divisors)}, or --batch_size {-(-batch // micro) * micro}"
        )
    devices, nodes = processes
    parts = devices * nodes // options.tensor_parallel
    if options.dry_run or not (options.out_dir / RUN).is_file():
        return batch * parts
    begun = RunRecord.load(options.out_dir).identity.samples_per_step
    if begun != batch * parts:
        advice = f"take --batch_size {begun // parts}" if begun % parts == 0 else "take as many as it divides by"
        groups = f" in groups of {options.tensor_parallel}" if options.tensor_parallel > 1 else ""
        raise UserError(
            f"{options.out_dir} was begun with {begun} samples per step, --batch_size {batch} on "
            f"{devices * nodes} processes{groups} makes {batch * parts}; {advice}, or "
            "another --out_dir if this is another run"
        )
    return batch * parts


def check_tensor_parallel(options: PretrainOptions, processes: tuple[int, int], config: Config, positions: int) -> None:
    """Raises unless --tensor_parallel divides the processes of a node, and the model and its micro-batches."""
    share = options.tensor_parallel
    if share == 1:
        return
    if processes[0] % share:
        raise UserError(f"--tensor_parallel {share} does not divide the {processes[0]} process(es) of a node")
    if found := sharing_problems(config, share, options.micro_batch_size * positions):
        raise UserError(f"--tensor_parallel {share} does not divide the model '{config.name}': {', '.join(found)}")


def check_out_dir(options: PretrainOptions, identity: RunIdentity) -> None:
    """Raises unless --out_dir is new, or holds this very run and may be continued."""
    if options.out_dir.exists() and not options.out_dir.is_dir():
        raise UserError(f"--out_dir {options.out_dir} is a file")
    if (options.out_dir / RUN).is_file():
        if options.resume == "never":
            raise UserError(f"{options.out_dir} holds a run and --resume is never; give another --out_dir")
        RunRecord.load(options.out_dir).check_same_run(identity, options.out_dir)
        check_columns(options.out_dir / METRICS, METRIC_COLUMNS)
    if options.resume_from:
        named_checkpoint(options.out_dir, options.resume_from)


def make_schedule(options: PretrainOptions, mixture: Mixture, samples_per_step: int) -> Schedule:
    steps = options.max_steps or max(1, round(options.num_epochs * mixture.rows / samples_per_step))
    decay_steps = 0
    if options.lr_schedule == "wsd":
        decay_steps = options.decay_steps or max(1, round(steps / 5))
        if options.warmup_steps + decay_steps > steps:
            raise UserError(
                f"--lr_schedule wsd: --warmup_steps {options.warmup_steps} and --decay_steps {decay_steps} "
                f"are more than the run's {steps} steps"
            )
    peak, minimum = options.learning_rate, options.min_learning_rate
    return Schedule(options.lr_schedule, peak, minimum, options.warmup_steps, steps, decay_steps)


def choose_validation(options: PretrainOptions, manifest: Manifest) -> list[DatasetSplit]:
    """The test rows to validate on; none when validation is off, or not asked for and there are none."""
    if options.enable_validation is False:
        return []
    try:
        return manifest.select(TEST, options.language)
    except UserError:
        if options.enable_validation or options.early_stopping:
            raise
        return []
