"""The data folder as a whole: whether it may be written, and what completes it once every split is there."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.tokenizer.tokenizer import CHAT_TEMPLATE, TOKENIZER_FILES
from utils.data.manifest import MANIFEST, REPORTS, TOKENIZER, DatasetSplit, Manifest
from utils.data.shards import token_dtype
from utils.files.atomic import write_atomically
from utils.prepare.clean_reports import write_contamination
from utils.prepare.contamination import TEST_RUNS
from utils.prepare.entry_sources import where_of
from utils.prepare.grown_tokenizer import remove_grown
from utils.prepare.options import PrepareOptions
from utils.prepare.plan import PARTS_FOLDER, PreparePlan
from utils.prepare.progress import say
from utils.prepare.sources import Source
from utils.prepare.splits import PREPARATION_VERSION

UNREAD = "not_read.jsonl"
_SPLIT = r"\.?[^/]+-(train|test)"
OWN_FILE = re.compile(  # files of splits, relative to the data folder
    rf"({_SPLIT}-\d{{5}}-of-\d{{5}}\.safetensors|{PARTS_FOLDER}/{_SPLIT}(?:\.json|\.hits\.jsonl)|{REPORTS}/{_SPLIT}\.jsonl)(\.tmp)?"
)


def require_folder(options: PrepareOptions) -> Path:
    """The data folder to write; a UserError if it is a file, or the next call would read it as a corpus."""
    path = options.destination_path
    assert path is not None
    if path.exists() and not path.is_dir():
        raise UserError(f"--destination_path: {path} is not a directory")
    corpora = {"--source_path": options.source_path} if options.source_path else {}
    corpora |= {where_of(entry): Path(entry.path) for entry in options.entries if entry.path}
    for what, corpus in corpora.items():
        recursive, _, _ = str(corpus).partition("**")  # of a pattern, the folder whose every depth it looks into
        corpus = Path(recursive)
        if corpus.is_dir() and path.resolve().is_relative_to(corpus.resolve()):
            raise UserError(f"--destination_path: {path} lies in {what}, the next call would read what is written")
    return path


def publish(found: dict[Source, DatasetSplit], plan: PreparePlan) -> None:
    """Deletes what belongs to no split any more and writes the manifest, unless it already says the same."""
    data_dir, recipe = plan.data_dir, plan.recipe
    manifest = make_manifest(found, plan)
    copy_tokenizer(recipe.checkpoint_dir, data_dir / TOKENIZER, plan.chat_files)
    write_unread(plan)
    write_contamination(plan)
    stale = find_stale(found, plan)
    path = data_dir / MANIFEST
    if stale or not path.is_file() or path.read_bytes() != manifest.to_json().encode():
        path.unlink(missing_ok=True)
        for file in stale:
            file.unlink()
            say(f"deleted {file.relative_to(data_dir)}: of no dataset in {plan.options.corpus}")
        manifest.save(data_dir)
    for folder in (*plan.parts_dir.glob("*.signatures"), *plan.parts_dir.glob(TEST_RUNS)):
        shutil.rmtree(folder)
    remove_grown(plan.parts_dir)
    say(f"{path}: {sum(entry.rows for entry in manifest.splits):,} rows of {recipe.window:,} tokens")


def write_unread(plan: PreparePlan) -> None:
    """A JSON line for each file of the corpus that is not read; no file where there is none."""
    path = plan.data_dir / REPORTS / UNREAD
    if plan.unread:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, "".join(json.dumps(file._asdict()) + "\n" for file in plan.unread))
    else:
        path.unlink(missing_ok=True)


def make_manifest(found: dict[Source, DatasetSplit], plan: PreparePlan) -> Manifest:
    recipe, options = plan.recipe, plan.options
    dialogues = {source: dialogue for source, dialogue in plan.dialogues.items() if dialogue is not None}
    return Manifest(
        tokenizer=plan.tokenizer,
        vocab_size=recipe.vocab_size,
        bos=recipe.bos,
        eos=recipe.eos,
        dtype=str(token_dtype(recipe.vocab_size)),
        window=recipe.window,
        splits=[found[source] for source in plan.sources],
        made_by={
            "program": "prepare_data.py",
            "multiple_of": options.multiple_of,
            "padding": recipe.padding,
            "on_bad_input": options.on_bad_input,
            "deduplicate": options.deduplicate,
            "similarity": options.similarity if options.deduplicate == "near" else None,
            "deduplicate_by": options.deduplicate_by if options.deduplicate != "no" else None,
            "validation_share": options.validation_share,
            "contamination": list(map(str, options.contamination)),
            "contaminated": options.contaminated if options.contamination else None,
            "text_field": recipe.text_field,
            "datasets": described_entries(plan),
            "chats": described_chats(plan),
            "augmentation_level": options.augmentation_level,
            "min_characters": recipe.min_characters,
            "max_characters": recipe.max_characters,
            "special_tokens_in_text": recipe.special_tokens_in_text,
            "seed": recipe.seed,
            "normalised": {source.dataset: dialogue.language for source, dialogue in dialogues.items()},
            "version": PREPARATION_VERSION,
        },
        added_tokens=plan.added_tokens,
        template=hashlib.sha256(plan.chat_files[CHAT_TEMPLATE]).hexdigest() if plan.chat_files else "",
    )


def described_chats(plan: PreparePlan) -> dict[str, Any] | None:
    """How conversations became tokens, beside the template itself, which is a file of the data folder."""
    if plan.recipe.chat is None:
        return None
    how = asdict(plan.recipe.chat)
    del how["template"]
    converter = plan.options.own_converter
    return {"template": plan.options.template, **how, "converter": converter and asdict(converter)}


def described_entries(plan: PreparePlan) -> list[dict[str, Any]]:
    """What --datasets says of each dataset, and the commit of one of the Hub; what it does not say is left out."""
    entries = {source.dataset: source.entry for source in plan.sources if source.entry}
    described = []
    for entry in entries.values():
        converter = {key: value for key, value in asdict(entry.converter).items() if value}
        values = {key: value for key, value in asdict(entry).items() if value}
        described.append({**values, "converter": converter})
    return described


def copy_tokenizer(source: Path, target: Path, chats: Mapping[str, bytes]) -> None:
    """Copies the tokenizer's files, with those of `chats` in their place."""
    target.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if name not in chats and not (source / name).is_file():
            (target / name).unlink(missing_ok=True)
            continue
        content = chats.get(name) or (source / name).read_bytes()
        if not (target / name).is_file() or (target / name).read_bytes() != content:
            write_atomically(target / name, content)


def find_stale(found: dict[Source, DatasetSplit], plan: PreparePlan) -> list[Path]:
    """Shards, parts and reports of splits that are gone, or were made anew with other ones."""
    data_dir = plan.data_dir
    current = {data_dir / shard.file for entry in found.values() for shard in entry.shards}
    for source, entry in found.items():
        current |= {plan.part_path(source), plan.hits_path(source)}
        if entry.skipped:
            current.add(plan.report_path(source))
    stale = []
    for folder in (data_dir, plan.parts_dir, data_dir / REPORTS):
        files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
        own = [path for path in files if OWN_FILE.fullmatch(path.relative_to(data_dir).as_posix())]
        stale += [path for path in own if path not in current]
    return sorted(stale)
