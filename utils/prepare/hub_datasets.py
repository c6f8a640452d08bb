"""Datasets of the Hugging Face Hub: their data files of one commit, in the Hub's cache. No program of theirs is run."""

import glob
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import httpx
from huggingface_hub import HfApi, constants, errors, snapshot_download
from huggingface_hub.hf_api import DatasetInfo, RepoFile

from lit_gpt.errors import DataError, Interrupted, UserError
from lit_gpt.formats.hub import hub_errors
from utils.prepare.dataset_cards import CARD
from utils.prepare.dataset_entries import DatasetEntry
from utils.prepare.file_formats import Unread, describes_data, say_unread, why_unread

MOST_LISTED = 1000  # files that an answer about a dataset lists for sure
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(.*-)[0-9]{5}(-of-([0-9]{5}).*)", re.DOTALL)


class Snapshot(NamedTuple):
    entry: DatasetEntry  # with its commit
    folder: Path
    names: list[str]  # the files that were chosen, by their paths in the dataset


Choose = Callable[[DatasetEntry, list[str], Path | None], list[str]]
"""Of an entry, the names of all data files and the dataset card, if there is one: the names that are wanted."""


def fetch_dataset(
    entry: DatasetEntry, choose: Choose, log: Callable[[str], None], restrict: Choose | None = None
) -> Snapshot:
    """The files that `choose` takes of a dataset's data files and descriptions, downloaded if they are not here.

    `restrict` takes some of these, for a look at them before all are downloaded. Without the Hub, the commit that the
    cache has of the revision is taken. Raises what `hub_errors` does.
    """
    repo_id = f"datasets/{entry.hub}"
    try:
        with hub_errors(repo_id, entry.revision):
            info = _info(entry)
    except OSError as e:
        return _cached(entry, choose, log, e)
    assert info.sha is not None
    entry = replace(entry, commit=info.sha)
    with hub_errors(repo_id):
        names = _names(info)
        say_unread(_unread(names, entry), log)
        card = _download(entry, [CARD]) / CARD if CARD in names else None
        chosen = choose(entry, _data_files(names, entry), card)
        if restrict is not None:
            chosen = restrict(entry, chosen, card)
        folder = _download(entry, chosen)
    if missing := [name for name in chosen if not (folder / name).is_file()]:
        raise Interrupted(f"{repo_id}: {missing[0]} has not come; run the same command again, the others are kept")
    if not _COMMIT.fullmatch(entry.revision):
        revision = entry.revision or constants.DEFAULT_REVISION
        log(f"{entry.name}: {revision} of {entry.hub} is the commit {info.sha} (revision: {info.sha} keeps to it)")
    return Snapshot(entry, folder, _to_read(chosen))


def _info(entry: DatasetEntry) -> DatasetInfo:
    try:
        return HfApi().dataset_info(entry.hub, revision=entry.revision or None)
    except (httpx.TransportError, errors.OfflineModeIsEnabled) as e:
        raise OSError(f"the Hugging Face Hub cannot be reached ({e})") from None


def _names(info: DatasetInfo) -> list[str]:
    names = [file.rfilename for file in info.siblings or []]
    if len(names) >= MOST_LISTED:
        tree = HfApi().list_repo_tree(info.id, recursive=True, revision=info.sha, repo_type="dataset")
        names = [file.path for file in tree if isinstance(file, RepoFile)]
    return sorted(names)


def _data_files(names: list[str], entry: DatasetEntry) -> list[str]:
    """Files that are read and descriptions of them; a DataError if there is nothing to read."""
    if any(why_unread(name) is None for name in names):
        return [name for name in names if _is_wanted(name)]
    scripts = [name for name in names if name.endswith(".py")]
    what = f"{entry.hub} has no files that are read"
    if scripts:
        what = f"{entry.hub} is made by a script, {scripts[0]}, which is not run"
    raise DataError(f"{what}; where the Hub has its rows as Parquet files, take them by revision: refs/convert/parquet")


def _unread(names: list[str], entry: DatasetEntry) -> list[Unread]:
    """The files of a dataset that are of no format that is read."""
    unread = []
    for name in names:
        reason = why_unread(name)
        if reason and not _is_hidden(name) and not describes_data(name):
            unread.append(Unread(f"{entry.name}/{name}", reason))
    return unread


def _is_wanted(name: str) -> bool:
    return not _is_hidden(name) and (not why_unread(name) or describes_data(name))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))  # `..`, which would leave the folder, too


def _download(entry: DatasetEntry, names: list[str]) -> Path:
    """The folder of the commit in the cache, with these files in it."""
    patterns = [glob.escape(name) for name in names]
    revision = entry.revision or constants.DEFAULT_REVISION  # for the cache to know without the Hub what it is
    path = Path(snapshot_download(entry.hub, repo_type="dataset", revision=revision, allow_patterns=patterns))
    if path.name != entry.commit:
        raise Interrupted(f"datasets/{entry.hub} was changed meanwhile; run the same command again")
    return path


def _cached(entry: DatasetEntry, choose: Choose, log: Callable[[str], None], reason: OSError) -> Snapshot:
    """The files of an earlier download; whether there were more cannot be known but for numbered ones."""
    revision = entry.revision or constants.DEFAULT_REVISION
    try:
        folder = Path(snapshot_download(entry.hub, repo_type="dataset", revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        raise OSError(
            f"{reason}; the cache ({constants.HF_HUB_CACHE}) has no {revision} of datasets/{entry.hub}"
        ) from None
    entry = replace(entry, commit=folder.name)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    chosen = choose(entry, _data_files(names, entry), folder / CARD if CARD in names else None)
    _require_all_shards(entry, chosen)
    log(f"{entry.name}: without the Hub, {len(chosen)} files of {entry.hub} in the cache, commit {entry.commit}")
    return Snapshot(entry, folder, _to_read(chosen))


def _to_read(names: list[str]) -> list[str]:
    """The data files and what describes them: what `datasets` saved beside rows that are not wanted is left out."""
    data = [name for name in names if not describes_data(name)]
    folders = {"", *(name.rpartition("/")[0] for name in data)}
    return [name for name in names if name.rpartition("/")[0] in folders]


def _require_all_shards(entry: DatasetEntry, names: list[str]) -> None:
    counts: dict[tuple[str, str], int] = {}
    for name in names:
        if shard := _SHARD.fullmatch(name):
            key = (shard[1], shard[2])
            counts[key] = counts.get(key, 0) + 1
    for (begin, end), count in counts.items():
        if count != int(end[4:9]):
            raise UserError(
                f"{entry.hub}: the cache has {count} of the {int(end[4:9])} files {begin}*{end}; "
                "download it where the Hub can be reached"
            )
