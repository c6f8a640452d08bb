"""lit_gpt/scripts/download.py: the Hub's own client in real processes, against a Hub on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from lit_gpt.scripts import convert_hf_checkpoint
from lit_gpt.scripts.download import COMPANIONS, DownloadOptions, choose_weights, main, matching
from tests.conftest import ROOT, assert_error, command_line, run_command
from tests.formats.hf_models import make_hf, make_tokenizer
from tests.formats.hub_server import TOKEN, Hub

NOT_WANTED = {
    "pytorch_model.bin": b"not wanted",
    "consolidated.safetensors": b"not wanted",
    "original/model.safetensors": b"not wanted",
    "tokenizer_of_theirs.py": b"raise SystemExit('loaded')",
    "modeling_of_theirs.py": b"raise SystemExit('loaded')",
    "training_args.bin": b"not wanted",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model as it is published: weights in several files, and others that are not needed."""
    folder = tmp_path_factory.mktemp("published")
    make_hf(folder, max_shard_size="40KB")
    make_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "LICENSE").write_text("free")
    hf = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoModelForCausalLM": "modeling_of_theirs.Model"}}
    (folder / "config.json").write_text(json.dumps({**hf, **own}))
    return {**{path.name: path.read_bytes() for path in folder.iterdir()}, **NOT_WANTED}


@pytest.fixture
def hub(files):
    server = Hub()
    server.commit = server.add("org/model", files)
    yield server
    server.close()


def download(hub, folder, *arguments, token=None, **environment):
    words = command_line("lit_gpt/scripts/download.py", "--checkpoint_dir", folder, "--verify", "none", *arguments)
    environment = {**hub.environment(folder / "home", token), **environment}
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=600, cwd=ROOT)


def came(folder):
    """The names in a downloaded model's folder, but for what belongs to the client and the conversion."""
    return {path.name for path in folder.iterdir() if path.is_file()} - {
        "lit_model.pth",
        "model_config.yaml",
        "SHA256SUMS",
    }


def test_wanted_files_come_and_are_converted(hub, files, tmp_path):
    done = download(hub, tmp_path, "--repo_id", "org/model", "--verify", "logits", token=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "verified: largest difference of logits" in done.stdout
    folder = tmp_path / "org" / "model"
    assert came(folder) == files.keys() - NOT_WANTED.keys()
    assert all((folder / name).read_bytes() == files[name] for name in came(folder))
    weights = torch.load(folder / "lit_model.pth", weights_only=True)
    assert "transformer.wte.weight" in weights and (folder / "model_config.yaml").is_file()
    assert f"commit {hub.commit}" in done.stdout and f"wrote {folder / 'lit_model.pth'}" in done.stdout
    assert "never loaded: tokenizer_of_theirs.py, modeling_of_theirs.py" in done.stdout
    assert f"Bearer {TOKEN}" in hub.authorizations
    left = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not left and TOKEN not in done.stdout + done.stderr


def test_without_conversion(hub, tmp_path):
    done = download(hub, tmp_path, "--repo_id", "org/model", "--convert", "false")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "org" / "model" / "lit_model.pth").exists()
    assert "next: python lit_gpt/scripts/convert_hf_checkpoint.py --checkpoint_dir" in done.stdout


def test_a_bit_flipped_after_the_download_is_found_before_the_conversion(hub, tmp_path):
    done = download(hub, tmp_path, "--repo_id", "org/model", "--convert", "false")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "org" / "model"
    path = sorted(folder.glob("model-*.safetensors"))[-1]
    content = path.read_bytes()
    convert = ["--checkpoint_dir", str(folder), "--verify", "none"]
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    assert run_command(convert_hf_checkpoint.ConvertHFOptions, convert_hf_checkpoint.main, convert) == 65
    assert not (folder / "lit_model.pth").exists()
    path.write_bytes(content)
    assert run_command(convert_hf_checkpoint.ConvertHFOptions, convert_hf_checkpoint.main, convert) == 0


def test_type_of_the_converted_weights(hub, tmp_path):
    assert download(hub, tmp_path, "--repo_id", "org/model", "--dtype", "bfloat16").returncode == 0
    weights = torch.load(tmp_path / "org" / "model" / "lit_model.pth", weights_only=True)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_killed_halfway_and_repeated(hub, files, tmp_path):
    """The client writes 10 MB at a time: of a file of 48 MB, killed after 30, most is kept."""
    name, size = "model.safetensors", 48 * 10**6
    weights = save({"w": np.random.default_rng(0).integers(0, 255, size, np.uint8)})
    hub.add("org/large", {"config.json": files["config.json"], name: weights})
    hub.stop_after = 30 * 10**6
    once = ("--repo_id", "org/large", "--convert", "false")
    words = command_line("lit_gpt/scripts/download.py", "--checkpoint_dir", tmp_path, *once)
    process = subprocess.Popen(words, env=hub.environment(tmp_path / "home", None), stderr=subprocess.DEVNULL)
    assert hub.halted.wait(60)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    hub.released.set()
    folder = tmp_path / "org" / "large"
    assert came(folder) == {"config.json"}
    hub.stop_after = None

    done = download(hub, tmp_path, *once)
    assert done.returncode == 0, done.stderr
    assert (folder / name).read_bytes() == weights
    assert hub.starts[name][0] == 0 and hub.starts[name][1] >= 10 * 2**20, "what had come was sent again"
    hub.sent.clear()
    done = download(hub, tmp_path, *once)
    assert done.returncode == 0 and not hub.sent


def test_pinned_revision_stays_when_the_branch_moves_on(hub, files, tmp_path):
    later = hub.add("org/model", {**files, "README.md": b"later"})
    done = download(hub, tmp_path, "--repo_id", "org/model", "--revision", hub.commit, "--convert", "false")
    assert done.returncode == 0 and hub.commit in done.stdout, done.stderr
    readme = tmp_path / "org" / "model" / "README.md"
    assert readme.read_bytes() == files["README.md"]
    done = download(hub, tmp_path, "--repo_id", "org/model", "--revision", "main", "--convert", "false")
    assert done.returncode == 0 and later in done.stdout and readme.read_bytes() == b"later"


def test_weights_of_another_revision_do_not_stay(hub, files, tmp_path):
    """An index that stayed would be read instead of the one file that came."""
    others = {name: content for name, content in files.items() if not name.startswith("model")}
    hub.add("org/model", {**others, "model.safetensors": save({"w": np.zeros(3)})})
    arguments = ("--repo_id", "org/model", "--convert", "false")
    assert download(hub, tmp_path, *arguments, "--revision", hub.commit).returncode == 0
    done = download(hub, tmp_path, *arguments)
    assert done.returncode == 0 and "of another revision: model-00001-of-" in done.stdout, done.stderr
    assert [name for name in came(tmp_path / "org" / "model") if "safetensors" in name] == ["model.safetensors"]


def test_file_that_was_changed_here_is_not_taken_for_the_hubs(hub, files, tmp_path):
    name = next(name for name in files if name.startswith("model-00002"))
    assert download(hub, tmp_path, "--repo_id", "org/model", "--convert", "false").returncode == 0
    path = tmp_path / "org" / "model" / name
    downloaded = path.stat()
    path.write_bytes(bytes(len(files[name])))
    # the Hub's client fetches again what is over 1 s newer than its note: a slow computer would hide the change
    os.utime(path, ns=(downloaded.st_atime_ns, downloaded.st_mtime_ns))
    done = download(hub, tmp_path, "--repo_id", "org/model", "--convert", "false")
    assert_error(done, 65, name, "not what the Hub lists", "download again")
    done = download(hub, tmp_path, "--repo_id", "org/model", "--convert", "false")
    assert done.returncode == 0 and path.read_bytes() == files[name]


def test_unsupported_model_is_refused_before_its_weights_come(hub, files, tmp_path):
    hub.add("org/other", {**files, "config.json": b'{"architectures": ["SomethingElse"]}'})
    done = download(hub, tmp_path, "--repo_id", "org/other")
    assert_error(done, 2, "architecture SomethingElse is not supported")
    assert not any(name.endswith(".safetensors") for name in hub.sent)
    assert download(hub, tmp_path, "--repo_id", "org/other", "--convert", "false").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--repo_id", "org/absent"], 2, "org/absent was not found"),
        (["--repo_id", "org/private"], 2, "org/private was not found"),
        (["--repo_id", "org/gated"], 2, "gated: ask for access"),
        (["--repo_id", "org/model", "--revision", "v9"], 2, "no such revision"),
        (["--repo_id", "org/broken"], 74, "the Hub failed"),
        (["--repo_id", "org/none"], 2, "no weights in Hugging Face's layout"),
    ],
)
def test_failures_are_one_line(hub, tmp_path, arguments, code, message):
    hub.faults["org/gated"] = (403, b"{}", {"X-Error-Code": "GatedRepo"})
    hub.faults["org/broken"] = (500, b"{}")
    hub.add("org/private", {"config.json": b"{}"}, private=True)
    hub.add("org/none", {"config.json": b"{}", "model.safetensors.index.json": b"{}"})
    assert_error(download(hub, tmp_path, *arguments), code, message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repo_id", "model"], "must be ORG/NAME"),
        (["--repo_id", "../model"], "must be ORG/NAME"),
        (["--repo_id", "a/b/c"], "must be ORG/NAME"),
        (["--repo_id", "org/model", "--revision", "a b"], "--revision must be"),
        (["--repo_id", "org/model", "--revision", ""], "--revision must be"),
    ],
)
def test_wrong_lines(capsys, words, message):
    assert run_command(DownloadOptions, main, words) == 2
    assert message in capsys.readouterr().err


def test_no_network_is_an_io_error(hub, tmp_path):
    hub.close()
    done = download(hub, tmp_path, "--repo_id", "org/model")
    assert_error(done, 74, "cannot be reached")
    done = download(hub, tmp_path, "--repo_id", "org/model", HF_HUB_OFFLINE="1")
    assert_error(done, 74, "cannot be reached")


def test_bin_files_only_without_safetensors():
    names = ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "optimizer.bin"]
    assert choose_weights(names) == sorted(names[:2])
    assert choose_weights([*names, "model.safetensors"]) == ["model.safetensors"]
    assert not choose_weights(["model.safetensors.index.json"])


def test_names_that_are_patterns_or_paths_are_not_chosen():
    hostile = ["tokenizer[a-z].json", "tokenizer*.json", "tokenizer/../../x.json", "tokenizer\n.json", "LICENSE.py"]
    assert matching([*hostile, "tokenizer.json", "LICENSE-2.txt"], COMPANIONS) == ["LICENSE-2.txt", "tokenizer.json"]


def test_a_model_from_scratch_needs_no_weights(hub, files, tmp_path):
    done = download(hub, tmp_path, "--repo_id", "org/model", "--weights", "false", token=TOKEN)
    assert done.returncode == 0 and "no weights" in done.stdout, done.stderr
    wanted = {name for name in files.keys() - NOT_WANTED.keys() if not name.startswith("model")}
    assert came(tmp_path / "org" / "model") == wanted
