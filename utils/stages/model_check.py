"""The model of a recipe before anything is made: whether it takes the data, fits a GPU, and can be exported."""

import dataclasses

from litgpt.config import Config

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_config import config_from_hf, read_hf_config
from lit_gpt.formats.hf_files import CONFIG
from lit_gpt.formats.litgpt_directory import read_config
from lit_gpt.model.growing import grown_config
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.export.llama_cpp_support import export_problems
from utils.stages.prepared import Prepared
from utils.train.dry_run import advice, workload_without_data
from utils.train.estimate import GIB, RESERVE, estimate
from utils.train.options import PretrainOptions
from utils.train.plan import check_batch, check_tensor_parallel, lora_settings, require_rows, require_trained_rows
from utils.train.token_rows import template_warnings


def model_problems(
    options: PretrainOptions, prepared: Prepared, gpu_memory: float | None, for_gguf: bool, show: bool
) -> list[str]:
    """What is wrong with a training on such data; with `show`, what it needs is printed."""
    processes = (options.devices or 1, options.num_nodes or 1)
    try:
        check_batch(dataclasses.replace(options, dry_run=True), processes)
        config = _config(options, prepared)
        check_tensor_parallel(options, processes, config, prepared.positions)
        warnings = _rows_checked(options, prepared)
    except (UserError, DataError) as e:
        return [f"pretrain: {e}"]
    if config.block_size < prepared.positions:
        return [
            f"pretrain: the rows have {prepared.positions} positions, the model {config.block_size}; "
            f"prepare with max_length {config.block_size} or less"
        ]
    if show:
        print("\n".join(warnings), end="\n" if warnings else "")
    problems = []
    if for_gguf:
        foundation = None if options.model_config else options.checkpoint_dir
        found = export_problems(foundation, config, prepared.tokenizer)
        problems += [f"quantize: llama.cpp cannot read this model: {problem}" for problem in found]
    return problems + _memory_problems(options, config, prepared.positions, gpu_memory, show)


def _rows_checked(options: PretrainOptions, prepared: Prepared) -> list[str]:
    """Warnings of rows that look untrained; a UserError for a LoRA that leaves untrained what has to be learnt."""
    lora = lora_settings(options) if options.use_lora else None
    if lora and prepared.added:
        require_trained_rows(prepared.added, lora)
    if prepared.template is None:
        return []
    return template_warnings(options, prepared.template, len(prepared.added), lora)


def _config(options: PretrainOptions, prepared: Prepared) -> Config:
    """The model's configuration, of a foundation model that may not be converted yet."""
    entries = Tokenizer(prepared.tokenizer).vocab_size
    if options.model_config:
        config = read_config(options.model_config, entries)
    elif (options.checkpoint_dir / CONFIG).is_file():
        config = read_config(options.checkpoint_dir)
    else:
        config = config_from_hf(read_hf_config(options.checkpoint_dir))
    require_rows(entries if options.model_config else entries - len(prepared.added), config)
    grows = prepared.added and not options.model_config
    return grown_config(config, entries) if grows else config


def _memory_problems(
    options: PretrainOptions, config: Config, positions: int, gpu_memory: float | None, show: bool
) -> list[str]:
    if gpu_memory is None and not show:
        return []
    needs = estimate(workload_without_data(options, config, positions))
    needed = f"{needs.memory / GIB:.1f} GiB per process"
    if gpu_memory is None or needs.fits(gpu_memory):
        of = f", of {gpu_memory:g}" if gpu_memory else f"; a GPU needs {needs.memory / GIB / (1 - RESERVE):.1f}"
        if show:
            print(f"memory of the training: {needed}{of}")
        return []
    ways = " | ".join(advice(needs, gpu_memory)) or "none of the options alone; take a smaller model"
    return [f"pretrain: {needed} do not fit a GPU of {gpu_memory:g} GiB; it would with {ways}"]
