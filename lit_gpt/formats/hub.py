"""The Hugging Face Hub: its failures as one line each, which files are sent, their upload, and their hashes.

Only the Hub's client reads the token (`hf auth login` or HF_TOKEN); this program takes, prints and writes none.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import get_session, get_token
from safetensors import SafetensorError, safe_open

from lit_gpt.checksums import Check, expected, file_sha256
from lit_gpt.errors import NO_SOCKS, DataError, Interrupted, UserError
from lit_gpt.formats.hf_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    SAFETENSORS_LAYOUT,
    find_weights,
    is_of_model,
    matches,
)

# What is sent of a model's folder, by name. All else stays, and is named: other programs' pickles (training_args.bin,
# optimizer.pt), litgpt's form of the model, a training's checkpoints, hidden files (caches, .git, .env), logs.
SENT = (
    *(*SAFETENSORS_LAYOUT, ADAPTER_WEIGHTS, "config.json", "generation_config.json", ADAPTER_CONFIG, "SHA256SUMS"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "*.tiktoken", "tekken.json", "chat_template.json", "processor_config.json"),
    *("preprocessor_config.json", "training_provenance.json", "handler.py", "dialogue_text.py"),
    *("configuration_*.py", "modeling_*.py", "tokenization_*.py"),
)
SENT_OF_FOLDERS = (  # also of folders in the folder
    *("*.gguf", "Modelfile*", "*.md", "*.txt", "*.jinja", "LICENSE*", "NOTICE*", "*.png", "*.jpg", "*.jpeg", "*.svg"),
)
WEIGHTS = (*SAFETENSORS_LAYOUT, ADAPTER_WEIGHTS, "*.gguf")
PICKLES = ("pytorch_model*.bin", "adapter_model.bin")  # they run code when they are loaded


@contextmanager
def hub_errors(repo_id: str, revision: str = "") -> Iterator[None]:
    """Turns what goes wrong with the Hub into a UserError, Interrupted or OSError that says what to do."""
    broken_off = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadTimeout, httpx.WriteTimeout)
    unreachable = (httpx.TransportError, httpx.InvalidURL, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    _check_token()
    try:
        yield
    except ImportError as e:
        if "SOCKS" not in str(e):
            raise
        raise UserError(NO_SOCKS) from None
    except errors.GatedRepoError:
        page = f"https://huggingface.co/{repo_id}"
        raise UserError(
            f"{repo_id} is gated: ask for access on {page}, then run hf auth login or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo_id} has no such revision{f': {revision}' if revision else ''}") from None
    except errors.RepositoryNotFoundError:
        hint = "if it is private, run hf auth login or set HF_TOKEN"
        raise UserError(f"{repo_id} was not found on the Hugging Face Hub; check the name; {hint}") from None
    except broken_off as e:
        again = "run the same command again, what has been transferred is kept"
        raise Interrupted(f"the connection to the Hugging Face Hub broke off ({e}); {again}") from None
    except unreachable as e:
        raise OSError(f"the Hugging Face Hub cannot be reached ({e}); on a cluster, use a login node") from None
    except errors.HfHubHTTPError as e:
        if e.response is not None and e.response.status_code in (401, 403):
            raise UserError(
                f"the Hub refuses this for {repo_id}: run hf auth login with a token that may do it"
            ) from None
        raise OSError(f"the Hub failed on {repo_id}: {e}") from None
    except UserError:
        raise
    except json.JSONDecodeError as e:
        raise OSError(f"what answers in the Hugging Face Hub's place does not speak its language ({e})") from None
    except ValueError as e:  # names that cannot be, a card's metadata that the Hub does not take
        raise UserError(f"{repo_id}: {e}") from None
    except RuntimeError as e:  # how the client's threads and hf_xet report a file that did not go through
        if isinstance(e.__cause__, (httpx.HTTPError, errors.HfHubHTTPError)):
            with hub_errors(repo_id):
                raise e.__cause__ from None
        raise OSError(f"the Hub failed on {repo_id}: {e}") from None


def _check_token() -> None:
    """Raises a UserError for a token that no request can carry; it is not shown."""
    token = get_token() or ""
    if strange := re.search(r"[^\x21-\x7e]", token):
        raise UserError(
            f"the Hub's token (HF_TOKEN, or that of hf auth login) has a character that none can have, number "
            f"{strange.start() + 1} of {len(token)}: copy it again"
        )


def is_same(path: Path, listed: RepoSibling, sha256: str | None = None) -> bool:
    """Whether `path` is the file that the Hub lists: by SHA-256 where that is kept (large files), else by git's."""
    if not path.is_file():
        return False
    if listed.lfs:
        return (sha256 or file_sha256(path)) == listed.lfs.sha256
    content = path.read_bytes()  # small, or it would be kept by SHA-256
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return blob.hexdigest() == listed.blob_id


# --------------------------------------------------------------------------------------------------------------- upload


@dataclass(frozen=True)
class Kind:
    """What a repository is for, and what of a folder goes there."""

    repo_type: Literal["model", "dataset"]
    sent: tuple[str, ...]
    """Names in the folder."""
    sent_of_folders: tuple[str, ...]
    """Names in the folder and in folders in it."""
    with_links: bool
    """Whether a link to a file is sent as that file; otherwise links stay."""
    needed: tuple[str, ...]
    """Names of which one must be there, or be sent: without them a card has nothing to describe."""
    needed_in_words: str
    is_whole: Callable[[Path, Sequence[str]], bool]
    """Whether all of it is among the files to send, not only a card; raises if it is damaged or contradicts itself."""
    is_replaced: Callable[[str], bool]
    """Whether a file on the Hub is of what is replaced as a whole: the commit removes those that are not sent anew."""


def holds_model(folder: Path, names: Sequence[str]) -> bool:
    """Whether a model or an adapter is among the files to send; an error says what of it is missing or twice, or is no
    longer as the folder's list of checksums has it."""
    with Check(file for file in expected(folder, lambda name: name in names or is_of_model(name)) if file.sha256):
        return _holds_model(folder, names)


def _holds_model(folder: Path, names: Sequence[str]) -> bool:
    if any(map(is_of_model, names)) and "config.json" not in names:
        raise UserError(f"{folder} has weights, but no config.json")
    if (ADAPTER_CONFIG in names) != (ADAPTER_WEIGHTS in names):
        raise UserError(f"{folder} has one of {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, an adapter needs both")
    if any(map(is_of_model, names)):
        find_weights(folder)  # raises for two layouts, of which others would read one or the other
    for name in names:
        try:
            if name.endswith(".safetensors"):
                safe_open(folder / name, framework="np")  # reads where the tensors lie, and compares the file's size
        except SafetensorError as e:
            raise DataError(f"{folder / name} cannot be read ({e}); convert the model again") from None
    if any(matches(name, WEIGHTS) for name in names):
        return True
    if pickles := sorted(path.name for path in folder.iterdir() if matches(path.name, PICKLES)):
        raise UserError(f"{folder} has {pickles[0]}, a pickle, which is not sent: load and save it as safetensors")
    return False


MODEL = Kind(
    repo_type="model",
    sent=SENT,
    sent_of_folders=SENT_OF_FOLDERS,
    with_links=True,
    needed=WEIGHTS,
    needed_in_words="(config.json, model.safetensors)",
    is_whole=holds_model,
    # transformers loads an adapter, where there is one, before a model
    is_replaced=lambda name: is_of_model(name) or name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS),
)


def files_to_send(folder: Path, ignore: Sequence[str] = (), kind: Kind = MODEL) -> list[str]:
    """The names in `folder` that belong on the Hub, those in folders with `/`, but those in `ignore`."""
    if not folder.is_dir():
        raise UserError(f"{folder} is {'not a folder' if folder.exists() else 'not there'}")
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_known = matches(path.name, kind.sent_of_folders) or ("/" not in name and matches(name, kind.sent))
        if not is_known or matches(name, (".*", "*/.*", *ignore)) or (path.is_symlink() and not kind.with_links):
            continue
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to nothing")
        if not path.is_file():
            continue
        if not name.isprintable() or "\\" in name:  # surrogates stand for bytes that are not UTF-8
            raise UserError(f"{folder} has a file that the Hub cannot take for its name, {name!a}; rename it")
        names.append(name)
    if not names:
        raise UserError(f"{folder} has no files to upload")
    return names


def describe_left_out(folder: Path, names: Sequence[str]) -> str:
    """How many files of `folder` are not among `names`, and which; a folder of such files alone is one name."""
    sent = {*names, *(name.split("/")[0] for name in names)}
    left_out: Counter[str] = Counter()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name not in sent and (path.is_symlink() or path.is_file()):
            top = name.split("/")[0]
            left_out[name if top == name or top in sent else f"{top}/"] += 1
    listed = []
    for name, count in sorted(left_out.items()):
        shown = name if name.isprintable() else ascii(name)
        if (folder / name).is_symlink():
            shown += ", a link"
        listed.append(f"{shown} ({count})" if name.endswith("/") else shown)
    return f"not sent: {left_out.total()} files{': ' if listed else ''}{', '.join(listed)}"


def describe_files(folder: Path, names: Sequence[str]) -> str:
    """A line per file, with its size, and their sum."""
    sizes = [(folder / name).stat().st_size for name in names]
    lines = [f"{size / 1e6:12,.3f} MB  {name}" for name, size in zip(names, sizes, strict=True)]
    return "\n".join([*lines, f"{sum(sizes) / 1e6:12,.3f} MB  in {len(names)} files"])


def publish(folder: Path, repo_id: str, private: bool, message: str, dry_run: bool, kind: Kind = MODEL) -> None:
    """Says what of a folder is sent and what is not, and uploads it unless that is all that is asked for."""
    say = partial(print, flush=True)
    names = files_to_send(folder, kind=kind)
    say(describe_files(folder, names))
    say(describe_left_out(folder, names))
    if dry_run:
        what = f"a {kind.repo_type}"
        if not kind.is_whole(folder, names):
            what = f"no {kind.repo_type}, which only updates one that is there"
        say(f"would be sent to {repo_id}: {what}")
        return
    address = upload(folder, names, repo_id, private, message, say, kind)
    say(f"on the Hub: {len(names)} files with the hashes of those here, {address}")


def upload(
    folder: Path,
    names: Sequence[str],
    repo_id: str,
    private: bool,
    message: str,
    say: Callable[[str], None],
    kind: Kind = MODEL,
) -> str:
    """Sends files to a repository, which is made if there is none, in one commit; returns the commit's address.

    1. The large files go first, one by one. The Hub keeps whole ones: the same call again sends only what is missing.
    2. The commit comes last: nobody sees a part of the upload. It removes what an earlier upload has left: weights of
       another model, rows of another version of a dataset.
    3. The hashes that the Hub then lists are compared with those here: a DataError if they differ.

    `names` are those of `files_to_send`; `say` gets each line about the progress. Raises what `hub_errors` does, too.
    """
    is_whole = kind.is_whole(folder, names)
    api, repo_type = HfApi(), kind.repo_type
    with hub_errors(repo_id if repo_type == "model" else f"datasets/{repo_id}"):
        if "README.md" in names:
            _check_card(folder / "README.md", api.endpoint, kind)
        if is_whole:
            api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        there = _listed(api, repo_id, kind)
        if not is_whole and not any(matches(name, kind.needed) for name in there):
            what = f"{repo_type} {kind.needed_in_words}"
            raise UserError(f"{folder} has no {what}, and neither has {repo_id}")
        additions = []
        for number, name in enumerate(names, start=1):
            operation = CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name)
            api.preupload_lfs_files(repo_id, [operation], repo_type=repo_type, free_memory=False)
            say(f"{number} of {len(names)} ready: {name}, {operation.upload_info.size / 1e6:,.3f} MB")
            additions.append(operation)
        is_new = any(map(kind.is_replaced, names))
        replaced = [name for name in there if is_new and kind.is_replaced(name) and name not in names]
        if replaced:
            say(f"the commit removes what is of an earlier {repo_type}: {', '.join(replaced)}")
        deletions = [CommitOperationDelete(name) for name in replaced]
        commit = api.create_commit(repo_id, [*additions, *deletions], commit_message=message, repo_type=repo_type)
        info = api.repo_info(repo_id, repo_type=repo_type, revision=commit.oid, files_metadata=True)
    _check_hashes(folder, additions, info.siblings or [])
    if private and not info.private:
        say(f"warning: {repo_id} existed and is public")
    return commit.commit_url


def _check_card(path: Path, endpoint: str, kind: Kind) -> None:
    """Raises a UserError if the Hub does not take the card's metadata, which it would else say after the weights."""
    card = {"content": path.read_text(encoding="utf-8"), "repoType": kind.repo_type}
    answer = get_session().post(f"{endpoint}/api/validate-yaml", json=card)
    if answer.status_code == 400:
        reasons = [error.get("message", "") for error in answer.json().get("errors", [])]
        raise UserError(f"the Hub does not take the metadata of {path}: {'; '.join(reasons)}")


def _listed(api: HfApi, repo_id: str, kind: Kind) -> list[str]:
    try:
        return [file.rfilename for file in api.repo_info(repo_id, repo_type=kind.repo_type).siblings or []]
    except errors.RepositoryNotFoundError:
        return []


def _check_hashes(folder: Path, operations: Sequence[CommitOperationAdd], files: Sequence[RepoSibling]) -> None:
    listed = {file.rfilename: file for file in files}
    for operation in operations:
        name = operation.path_in_repo
        if name not in listed or not is_same(folder / name, listed[name], operation.upload_info.sha256.hex()):
            raise DataError(f"{name} on the Hub is not the file in {folder}; was it changed meanwhile? Upload it again")
