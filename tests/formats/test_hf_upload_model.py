"""utils/hf_upload_model.py: the Hub's own client in real processes, against a Hub on this machine (hub_server.py)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from lit_gpt.errors import DataError, Interrupted, UserError
from lit_gpt.formats.hub import files_to_send, hub_errors
from lit_gpt.formats.repo_id import check_repo_id
from tests.conftest import ROOT, assert_error, command_line, run_command
from tests.formats.hf_models import make_hf, make_tokenizer
from tests.formats.hub_server import TOKEN, Hub, sha256
from utils.export.options import UploadOptions
from utils.hf_upload_model import main

PART = 20_000
"""Bytes of an upload's part: the larger weights files go in several."""
NOT_SENT = (
    *("lit_model.pth", "model_config.yaml", ".env", ".cache/huggingface/x", "sub/.hidden", "export.log"),
    *("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "optimizer.bin", "adapter_model.bin"),
    *("checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt", "trainer_state.json", "credentials.json"),
    *("model.pkl", "weights.npz", "other.safetensors", "a\nb", "sub/config.json"),
)
CARD = "---\nlicense: apache-2.0\nlanguage: fr\n---\n# Café\n"


@pytest.fixture
def hub():
    server = Hub(PART)
    yield server
    server.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A real model in several files, with all that may lie beside it; do not change it."""
    folder = tmp_path_factory.mktemp("models") / "model"
    make_hf(folder, max_shard_size="40KB")
    make_tokenizer(folder)
    (folder / "README.md").write_text(CARD)
    for name in NOT_SENT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"not to be sent: {name}")
    (folder / "sub" / "note é.txt").write_text("to be sent")
    return folder


def upload(hub, folder, *arguments, repo="org/name", token=TOKEN, **settings):
    words = command_line("utils/hf_upload_model.py", repo, "--input_dir", folder, *arguments)
    environment = hub.environment(folder.parent / "home", token)
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600, **settings)


def hashes(files):
    return {name: sha256(content) for name, content in files.items()}


def hashes_here(folder, names):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_repository_is_created_and_gets_the_files(hub, model):
    done = upload(hub, model, "--message", "Première version")
    assert done.returncode == 0, done.stderr
    sent = files_to_send(model)
    assert "sub/note é.txt" in sent and "README.md" in sent and len([n for n in sent if "safetensors" in n]) > 3
    assert not any(
        name.endswith(("pth", "yaml", ".env", "log")) or "hidden" in name or "cache" in name for name in sent
    )
    assert not {*NOT_SENT} & {*sent} and not [name for name in sent if name.endswith((".bin", ".pt", ".pkl"))]
    on_hub = hashes(hub.files("org/name"))
    del on_hub[".gitattributes"]
    assert on_hub == hashes_here(model, sent)
    assert hub.repositories["org/name"]["private"] and hub.messages == ["Première version"]
    assert hub.repositories["org/name"]["commits"][-1][0] in done.stdout
    assert any(part > 1 for _, part in hub.parts), "no file was large enough to go in parts"
    assert f"on the Hub: {len(sent)} files" in done.stdout and not done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("not sent: ")]
    assert line.startswith(f"not sent: {len(NOT_SENT)} files: ")
    named = line.partition("files: ")[2].split(", ")
    assert {"training_args.bin", ".cache/ (1)", "checkpoint-500/ (2)", "sub/.hidden", "'a\\nb'"} < {*named}


def test_second_upload_sends_nothing(hub, model):
    assert upload(hub, model).returncode == 0
    received, commits = dict(hub.received), len(hub.repositories["org/name"]["commits"])
    done = upload(hub, model)
    assert done.returncode == 0, done.stderr
    assert hub.received == received and len(hub.repositories["org/name"]["commits"]) == commits


def test_killed_halfway_and_repeated(hub, model, tmp_path):
    """SIGKILL in the middle of a file: nobody sees a part of it, the next call sends the rest, and both ways agree."""
    large = [name for name in files_to_send(model) if name.endswith(".safetensors")]
    total = sum((model / name).stat().st_size for name in large)
    hub.stop_after = total // 2
    words = command_line("utils/hf_upload_model.py", "org/name", "--input_dir", model)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, stdout=output, stderr=output, cwd=ROOT, env=hub.environment(tmp_path / "home")
        )
        assert hub.halted.wait(60), log.read_text()
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    hub.released.set()
    whole = set(hub.objects)
    assert 0 < len(whole) < len(large) and list(hub.files("org/name")) == [".gitattributes"]
    hub.stop_after, before = None, dict(hub.received)

    done = upload(hub, model)
    assert done.returncode == 0, done.stderr
    assert all(hub.received[oid] == before[oid] for oid in whole), "what the Hub had whole was sent again"
    again = sum(hub.received.values()) - total
    assert 0 <= again <= max((model / name).stat().st_size for name in large), "more than the one file was sent again"
    sent = files_to_send(model)
    assert hashes_here(model, sent) == {name: hashes(hub.files("org/name"))[name] for name in sent}

    words = command_line("lit_gpt/scripts/download.py", "--repo_id", "org/name", "--checkpoint_dir", tmp_path / "back")
    back = subprocess.run(words, capture_output=True, text=True, env=hub.environment(tmp_path / "home"), timeout=600)
    assert back.returncode == 0, back.stderr
    folder = tmp_path / "back" / "org" / "name"
    came = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name in sent)
    assert set(large) < set(came) and hashes_here(folder, came) == hashes_here(model, came)


def test_interrupted_from_the_keyboard(hub, model, tmp_path):
    hub.stop_after = 1
    words = command_line("utils/hf_upload_model.py", "org/name", "--input_dir", model)
    process = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        env=hub.environment(tmp_path / "home"),
        # a program that was started in the background ignores Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert hub.halted.wait(60)
    process.send_signal(signal.SIGINT)
    hub.released.set()
    _, error = process.communicate(timeout=600)
    assert (process.returncode, error) == (75, "error: interrupted from the keyboard\n")


def test_options_from_a_file(hub, model, tmp_path):
    (tmp_path / "upload.yaml").write_text(f"input_dir: {model}\ndry_run: true\n")
    words = command_line("utils/hf_upload_model.py", "org/name", "--config", tmp_path / "upload.yaml")
    done = subprocess.run(words, capture_output=True, text=True, env=hub.environment(tmp_path / "home"), timeout=600)
    assert done.returncode == 0 and "would be sent to org/name: a model" in done.stdout, done.stderr


def test_model_in_other_files_takes_the_place_of_the_earlier_one(hub, model, tmp_path):
    assert upload(hub, model).returncode == 0
    assert "model.safetensors.index.json" in hub.files("org/name")
    done = upload(hub, small_model(tmp_path / "small"))
    assert done.returncode == 0, done.stderr
    files = hub.files("org/name")
    assert [name for name in files if "safetensors" in name] == ["model.safetensors"] and "README.md" in files
    assert "earlier model: model-00001-of-" in done.stdout


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00004.safetensors"])
def test_hub_that_lists_another_hash(hub, model, name):
    hub.spoilt = name
    assert_error(upload(hub, model), 65, f"{name} on the Hub is not the file in")


def test_failing_hub(hub, model):
    hub.faults["org/name"] = (501, b"{}")
    assert_error(upload(hub, model), 74, "the Hub failed on org/name")


def test_dry_run_says_what_would_go_and_asks_nobody(hub, model):
    done = upload(hub, model, "--dry_run", "true")
    assert done.returncode == 0, done.stderr
    would, _, would_not = done.stdout.partition("not sent: ")
    assert all(name in would for name in files_to_send(model)) and "lit_model.pth" not in would
    assert "lit_model.pth" in would_not
    assert "would be sent to org/name: a model" in done.stdout and not hub.requests


def test_card_alone_updates_a_model_that_is_there(hub, model, tmp_path):
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text(CARD + "new")
    assert_error(upload(hub, tmp_path / "card"), 2, "has no model", "neither has org/name")
    assert "org/name" not in hub.repositories
    assert upload(hub, model).returncode == 0
    done = upload(hub, tmp_path / "card", "--message", "Card")
    assert done.returncode == 0, done.stderr
    files = hub.files("org/name")
    assert files["README.md"].decode() == CARD + "new" and "config.json" in files and hub.messages[-1] == "Card"


def test_token_is_seen_nowhere(hub, model, tmp_path):
    """Not in the arguments, what is printed, the traceback, or any file that was written; the Hub alone gets it."""
    seen = tmp_path / "arguments"
    record = f"import json, sys; json.dump(sys.orig_argv, open({str(seen)!r}, 'w'))"
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(record)
    before = {path for path in ROOT.rglob("*") if path.is_file()}
    printed = ""
    for arguments, repo in (((), "org/name"), (("--debug", "true"), "others/name"), (("--debug", "true"), "org/x/y")):
        words = command_line("utils/hf_upload_model.py", repo, "--input_dir", model, *arguments)
        environment = {**hub.environment(tmp_path / "home"), "PYTHONPATH": str(site), "HF_DEBUG": "1"}
        done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600)
        printed += seen.read_text() + done.stdout + done.stderr
    assert "Traceback" in printed
    assert f"Bearer {TOKEN}" in hub.authorizations
    new = {path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts} - before
    written = [*tmp_path.rglob("*"), *model.parent.rglob("*"), *new]
    assert TOKEN not in printed
    assert not [path for path in written if path.is_file() and TOKEN.encode() in path.read_bytes()]
    on_hub = [content for _, files in hub.repositories["org/name"]["commits"] for content in files.values()]
    assert len(on_hub) > 5 and not any(TOKEN.encode() in content for content in on_hub)


@pytest.mark.parametrize(
    ("repo", "token", "code", "words"),
    [
        ("org/name", "hf_wrong", 2, ("refuses this for org/name", "hf auth login")),
        ("org/name", None, 2, ("refuses this for org/name", "hf auth login")),
        ("others/name", TOKEN, 2, ("refuses this for others/name",)),
        ("../name", TOKEN, 2, ("REPO must be ORG/NAME", "'../name'")),
    ],
)
def test_refusals_are_one_line(hub, model, repo, token, code, words):
    assert_error(upload(hub, model, repo=repo, token=token), code, *words)
    assert not hub.repositories


def test_unreachable_hub(model, tmp_path):
    hub = Hub()
    hub.close()
    assert_error(upload(hub, model), 74, "cannot be reached")
    environment = {**hub.environment(tmp_path), "HF_HUB_OFFLINE": "1"}
    words = command_line("utils/hf_upload_model.py", "org/name", "--input_dir", model)
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=600)
    assert_error(done, 74, "cannot be reached")


def run_here(capsys, *words):
    """The exit code and stderr of a call that must not get to the Hub."""
    code = run_command(UploadOptions, main, [str(word) for word in words])
    return code, capsys.readouterr().err


def small_model(folder):
    folder.mkdir()
    save_file({"w": np.zeros(10)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_index(folder, named, *there):
    """An index that names the file `named`, beside the model's weights in each of the files `there`."""
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    for name in there:
        (folder / name).write_bytes(content)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": named}}))


@pytest.mark.parametrize(
    ("spoil", "code", "word"),
    [
        (lambda folder: [path.unlink() for path in folder.iterdir()], 2, "no files to upload"),
        (lambda folder: [path.rename(path.with_name(f".{path.name}")) for path in folder.iterdir()], 2, "no files"),
        (lambda folder: (folder / "config.json").unlink(), 2, "no config.json"),
        (lambda folder: os.truncate(folder / "model.safetensors", 100), 65, "cannot be read"),
        (lambda folder: (folder / "link.md").symlink_to("nowhere"), 2, "link to nothing"),
        (lambda folder: (folder / "a\nb.txt").write_text("x"), 2, "for its name"),
        (lambda folder: (folder / "a\\b.md").write_text("x"), 2, "for its name"),
        (lambda folder: open(os.fsencode(folder) + b"/\xff.txt", "w").close(), 2, "for its name"),  # noqa: PTH123
        (lambda folder: write_index(folder, SHARDS[0], SHARDS[1]), 65, "files that are not there"),
        (lambda folder: write_index(folder, SHARDS[0], *SHARDS), 65, "holds two layouts"),
        (lambda folder: write_index(folder, SHARDS[0], SHARDS[0], "model.safetensors"), 65, "holds two layouts"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), 2, "an adapter needs both"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            2,
            "a pickle, which is not sent",
        ),
    ],
)
def test_folders_that_cannot_go(tmp_path, capsys, spoil, code, word):
    folder = small_model(tmp_path / "model")
    spoil(folder)
    found, error = run_here(capsys, "org/name", "--input_dir", folder, "--dry_run", "true")
    assert found == code and word in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["org/name", "--input_dir", "nowhere"], "nowhere is not there"),
        (["org/name", "--input_dir", __file__], "is not a folder"),
        (["--input_dir", "x"], "no repo is given"),
        (["org/name"], "--input_dir is required"),
        (["org/name", "--input_dir", "x", "--message", " "], "--message must not be empty"),
        (["org/name", "--input_dir", "x", "--token", "hf_x"], "unknown option --token"),
    ],
)
def test_wrong_lines(capsys, words, message):
    code, error = run_here(capsys, *words)
    assert code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (httpx.ReadError("cut"), Interrupted, "broke off"),
        (httpx.RemoteProtocolError("cut"), Interrupted, "run the same command again"),
        (httpx.ConnectError("no route"), OSError, "cannot be reached"),
        (httpx.UnsupportedProtocol("ftp"), OSError, "cannot be reached"),
        (RuntimeError("hf_xet: 1"), OSError, "the Hub failed on a/b"),
        (json.JSONDecodeError("no value", "<html>", 0), OSError, "does not speak its language"),
        (ValueError("bad"), UserError, "a/b: bad"),
        (UserError("mine"), UserError, "mine"),
        (DataError("mine"), DataError, "mine"),
    ],
)
def test_failures_of_the_client(error, kind, words):
    with pytest.raises(kind, match=words), hub_errors("a/b"):
        raise error


def test_failure_in_a_thread_of_the_client():
    with pytest.raises(Interrupted, match="broke off"), hub_errors("a/b"):
        raise RuntimeError("Error while uploading") from httpx.WriteError("cut")


@pytest.mark.parametrize("name", ["a/b", "Org-1/na_me.v2", "o/" + "n" * 96])
def test_names_of_repositories(name):
    assert not check_repo_id(name, "REPO")


NO_NAMES = ["", "/", "a/", "/b", "b", "a/b/c", "a/../b", "a/..", "a/-b", "a/b.git", "a/b--c", "a/ü", "o/" + "n" * 97]


@pytest.mark.parametrize("name", [*NO_NAMES, "a/b c", "a/b\n", "a/$(rm)", "a/b?x", "a/b\0"])
def test_names_that_are_none(name):
    assert len(check_repo_id(name, "REPO")) == 1


def test_card_that_the_hub_does_not_take(hub, tmp_path):
    folder = small_model(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert_error(upload(hub, folder), 2, "README.md", "metadata is not valid YAML")
    assert not hub.received and not hub.repositories, "it was sent before its card was looked at"


def test_existing_public_repository_is_named(hub, model):
    hub.add("org/name", {"README.md": b"old"})
    done = upload(hub, model)
    assert done.returncode == 0 and "org/name existed and is public" in done.stdout
