"""What would go wrong with a recipe: found in seconds, before any of its stages is begun.

1. The whole file is read: unknown sections and options, wrong values, paths that are not there.
2. The data's first rows go through converters, template and tokenizer (utils/prepare/check.py).
3. The model's configuration is compared with the data, its memory with a GPU's, and its architecture with what
   llama.cpp can read.
4. What a stage would refuse to replace is named.

What comes with a download that is not made yet cannot be looked at, and a line says so.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_files import WEIGHTS
from lit_gpt.repository import REPOSITORY
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.manifest import MANIFEST, TOKENIZER, Manifest
from utils.prepare.check import errors_of, look, say_found
from utils.prepare.options import PrepareOptions
from utils.recipe.sections import BOOK_STAGES, Recipe, read_all_sections
from utils.run.record import RUN
from utils.stages.digests import is_pattern, matching, result_digest
from utils.stages.options import named_paths, section_options
from utils.stages.prepared import Prepared
from utils.stages.records import expected_record, is_own_result, is_unfinished, lies_in, read_record
from utils.stages.run import why_run
from utils.stages.slurm import resource_problems

OF_THEIR_OWN = (*BOOK_STAGES, "prepare", "pretrain", "merge", "convert", "quantize")
"""Stages whose result is a folder or file of their own."""
TRAIN_ON = ("max_steps", "num_epochs", "resume_from")
"""Options by which a training that has ended goes on."""
TRAIN_NOTHING = ("data_dir", "checkpoint_dir", "out_dir", "devices", "num_nodes", "tensor_parallel", "batch_size")
TRAIN_NOTHING += ("micro_batch_size", "max_checkpoints", "save_interval", "eval_interval", "interval_unit")
TRAIN_NOTHING += ("enable_validation", "eval_samples", "sample_prompts", "sample_tokens", "early_stopping", "compile")
TRAIN_NOTHING += ("activation_checkpointing", "log_interval", "logger", "peak_tflops", "profile_steps", "verify_data")
TRAIN_NOTHING += ("max_nonfinite_steps", "async_checkpoints", "resume", "mixture", "language")
"""Options by whose change the same weights are trained, or whose change pretrain.py refuses itself."""
SERIOUS = ("converter_failed", "template_refuses", "tool_calls_missing", "reasoning_missing", "token_over_border")
"""Reasons for which rows are left out, that are a problem when half of a source's first rows are."""


def check_recipe(recipe: Recipe, names: Sequence[str], gpu_memory: float | None, show: bool) -> list[str]:
    """What is wrong with the stages `names` of a recipe whose sections are sound; with `show` tables are printed."""
    options = {name: section_options(recipe, name)[0] for name in names}
    problems = list(_refused(recipe, options))
    with tempfile.TemporaryDirectory() as scratch:
        prepared, found = _look_at_data(recipe, options.get("prepare"), Path(scratch), show)
        problems += found
        if prepared and "pretrain" in options:
            # torch takes seconds, which a mistake above does not need
            from utils.stages.model_check import model_problems

            memory = gpu_memory or options["pretrain"].gpu_memory
            problems += model_problems(options["pretrain"], prepared, memory, "quantize" in options, show)
    if "quantize" in options:
        problems += _missing_llama_cpp(options["quantize"].llama_cpp_dir)
    return problems


def check_sections(path: Path) -> tuple[Recipe, list[str]]:
    """The recipe in a file and what is wrong with its sections' options."""
    recipe, problems = read_all_sections(path)
    for name in recipe.sections:
        problems += section_options(recipe, name)[1]
        problems += resource_problems(recipe, name)
    return recipe, problems


def check_paths(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """The paths that the stages `names` read, that are not there and that no earlier stage makes."""
    made: list[Path] = []
    missing: list[tuple[str, str, Path]] = []
    for name in recipe.sections:
        options = section_options(recipe, name)[0]
        if options is not None and name in names:
            missing += [
                (name, option, wanted)
                for option, wanted in named_paths(options, name)
                if not is_there(wanted) and not any(lies_in(wanted, result) for result in made)
            ]
        if (result := recipe.result(name)) is not None:
            made.append(result)
    if Path.cwd() != REPOSITORY and not all(path.is_absolute() for _, _, path in missing):
        print(f"paths that do not begin with / are looked for in {Path.cwd()}")
    return [f"{name}: {option} {path} is not there, and no earlier stage makes it" for name, option, path in missing]


def is_there(path: Path) -> bool:
    """Whether a path, or one that fits it as a pattern, exists."""
    return any(matching(path)) if is_pattern(path) else path.exists()


def _look_at_data(
    recipe: Recipe, options: PrepareOptions | None, scratch: Path, show: bool
) -> tuple[Prepared | None, list[str]]:
    """What the data are, or will be, and what is wrong with them; None where nothing can be known yet."""
    if options is None:
        return _made_data(recipe)
    assert options.checkpoint_dir is not None
    if not options.checkpoint_dir.exists() or ("download" in recipe.sections and is_unfinished(recipe, "download")):
        print(f"{options.checkpoint_dir} is not there yet: data, template and memory are not looked at before it is")
        return None, []
    if (unmade := _unmade_books(recipe, options)) is not None:
        print(f"{unmade} is not there yet: the data are not looked at before it is")
        positions = options.max_length
        return (Prepared(options.checkpoint_dir, positions, [], None) if positions else None), []
    # they take 0.3 s, which a preparation that is done does not need
    from utils.prepare.template_check import template_problems

    try:
        plan, found = look(options, scratch)
        problems = [str(error) for error in errors_of(found)] + template_problems(plan)
    except (UserError, DataError) as e:
        return None, [f"prepare: {e}"]
    for source, of_source in found.items():
        for reason in SERIOUS:
            count = of_source.left_out[reason]
            if of_source.error is None and 0 < of_source.rows <= 2 * count and of_source.samples:
                problems.append(
                    f"{source.dataset} {source.split}: {count} of the first {of_source.rows} rows would be left out "
                    f"({reason}), such as: {of_source.examples[reason]}"
                )
    if show:
        say_found(plan, found)
    folder, chat = plan.recipe.checkpoint_dir, plan.recipe.chat
    template = ChatTemplate(Tokenizer(folder), chat.template) if chat else None
    prepared = Prepared(folder, plan.recipe.window - 1, plan.added_tokens, template)
    return prepared, [f"prepare: {problem}" for problem in problems]


def _unmade_books(recipe: Recipe, options: PrepareOptions) -> Path | None:
    """What a preparation reads of books that are still to be acquired, cleaned or cut."""
    for name in BOOK_STAGES:
        made = recipe.result(name)
        if made is None or not is_unfinished(recipe, name):
            continue
        for _, path in named_paths(options, "prepare"):
            if lies_in(path, made):
                return path
    return None


def _made_data(recipe: Recipe) -> tuple[Prepared | None, list[str]]:
    data_dir = Path(str(recipe.values("pretrain").get("data_dir", "")))
    if not (data_dir / MANIFEST).is_file():
        return None, []
    try:
        manifest = Manifest.load(data_dir)
    except (UserError, DataError) as e:
        return None, [f"pretrain: {e}"]
    folder = data_dir / TOKENIZER
    template = ChatTemplate(Tokenizer(folder)) if manifest.template else None
    return Prepared(folder, manifest.block_size, manifest.added_tokens, template), []


def _refused(recipe: Recipe, options: dict[str, Any]) -> Iterator[str]:
    """Folders that a stage would refuse to write, which it says only when its turn has come."""
    makers: dict[Path, str] = {}
    for name in OF_THEIR_OWN:
        result = recipe.result(name) if name in options else None
        if result is None:
            continue
        above = next(folder for folder in result.absolute().parents if folder.exists())
        if not os.access(above, os.W_OK | os.X_OK) or not above.is_dir():
            yield f"{name}: {result} cannot be made: {above} is no folder that you may write to"
        if (before := makers.setdefault(result.resolve(), name)) != name:
            yield f"{name}: {result} is the result of {before}, too; give each another"
    if "pretrain" in options and options["pretrain"].out_dir.is_file():
        yield f"pretrain: out_dir {options['pretrain'].out_dir} is a file"
    elif "pretrain" in options and (changed := _after_the_end(recipe)):
        yield (
            f"pretrain: {changed}, but the training in {options['pretrain'].out_dir} is complete; take "
            "another out_dir, or more max_steps to go on from there"
        )
    elif "pretrain" in options and (changed := _other_run(recipe, options["pretrain"].out_dir / RUN)):
        print(f"pretrain: out_dir has a run already, and {changed}: if that is another run, it needs another out_dir")
    if "merge" in options and result_digest(recipe, "merge") and not is_own_result(recipe, "merge"):
        yield f"merge: {recipe.result('merge')} holds a {WEIGHTS} already; give another save_path"
    if "convert" in options:
        # torch takes seconds, which a recipe without the stage does not need
        from utils.export.hf_folder import check_output_dir

        try:
            check_output_dir(options["convert"].output_dir)
        except UserError as e:
            yield f"convert: {e}"


def _after_the_end(recipe: Recipe) -> str | None:
    """What was changed since a training ended, that would have made another one; None where it would go on."""
    before = read_record(recipe, "pretrain")
    if before is None or before.result is None:
        return None
    now = expected_record(recipe, "pretrain").options
    names = [name for name in {**now, **before.options} if now.get(name) != before.options.get(name)]
    others = [name for name in names if name not in TRAIN_NOTHING]
    if not others or any(name in TRAIN_ON for name in names):
        return None
    values = [before.options.get(others[0], "the default"), now.get(others[0], "the default")]
    return f"{others[0]} was {values[0]}, now {values[1]}"


def _other_run(recipe: Recipe, run: Path) -> str | None:
    """Why the run that is there may not be this recipe's, which its command knows once the data are made."""
    if not run.is_file():
        return None
    before = read_record(recipe, "pretrain")
    if before is None:
        return "no recipe began it"
    if difference := expected_record(recipe, "pretrain").difference(before):
        return difference
    reason = why_run(recipe, "prepare", expected_record(recipe, "prepare")) if "prepare" in recipe.sections else None
    return f"its data will be made again ({reason})" if reason else None


def _missing_llama_cpp(folder: Path | None) -> list[str]:
    # with torch by its room's other parts
    from utils.export.llama_cpp import LlamaCpp

    try:
        LlamaCpp.find(folder)
    except UserError as e:
        return [f"quantize: {e}"]
    return []
