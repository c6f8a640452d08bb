"""lit_gpt/scripts/download.py against a local server that speaks the Hub's endpoints."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lit_gpt.scripts.download import choose_files

SCRIPT = Path(__file__).resolve().parents[1] / "lit_gpt" / "scripts" / "download.py"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "model-00001-of-00002.safetensors": b"one" * 1000,
    "model-00002-of-00002.safetensors": b"two" * 1000,
    "model.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"not wanted",
    "consolidated.safetensors": b"not wanted",
    "original/model.safetensors": b"not wanted",
}


class Hub(BaseHTTPRequestHandler):
    """org/model has FILES, org/gated asks for a token, org/broken fails, nothing else exists."""

    def do_HEAD(self):
        self.respond(body=False)

    def do_GET(self):
        self.respond(body=True)

    def respond(self, body):
        self.server.authorizations.add(self.headers.get("Authorization"))
        path = self.path.split("?")[0]
        if "org/gated" in path:
            return self.send(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        if "org/broken" in path:
            return self.send(500, b"{}", body)
        if path in (f"/api/models/org/model/revision/{COMMIT}", "/api/models/org/model"):
            files = [{"rfilename": name} for name in FILES]
            info = {"_id": "1", "id": "org/model", "sha": COMMIT, "siblings": files, "tags": []}
            return self.send(200, json.dumps(info).encode(), body)
        if path.startswith("/api/models/org/model/revision/"):
            return self.send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        prefix = f"/org/model/resolve/{COMMIT}/"
        content = FILES.get(path.removeprefix(prefix)) if path.startswith(prefix) else None
        if content is None:
            return self.send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.send(200, content, body, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def send(self, status, content, body, headers=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.authorizations = set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def download(folder, endpoint, *arguments, **environment):
    command = [sys.executable, str(SCRIPT), "--checkpoint_dir", str(folder), *arguments]
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    others = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(command, capture_output=True, text=True, env={**others, **own, **environment}, timeout=100)


def address(hub):
    return f"http://127.0.0.1:{hub.server_port}"


def test_wanted_files_come_to_org_name(hub, tmp_path):
    hub.authorizations.clear()
    done = download(tmp_path, address(hub), "--repo_id", "org/model", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "org" / "model"
    found = {path.name for path in folder.iterdir() if path.is_file()}
    assert found == {name for name, content in FILES.items() if content != b"not wanted"}
    assert all((folder / name).read_bytes() == FILES[name] for name in found)
    assert "convert_hf_checkpoint.py --checkpoint_dir" in done.stdout and COMMIT in done.stdout
    assert "Bearer hf_secret" in hub.authorizations
    left = [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert not left and "hf_secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--repo_id", "org/absent"], 2, "org/absent was not found"),
        (["--repo_id", "org/gated"], 2, "gated: ask for access"),
        (["--repo_id", "org/model", "--revision", "v9"], 2, "no such revision"),
        (["--repo_id", "org/broken"], 74, "the Hub failed"),
        (["--repo_id", "model"], 2, "must be ORG/NAME"),
    ],
)
def test_failures_are_one_line(hub, tmp_path, arguments, code, message):
    done = download(tmp_path, address(hub), *arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr


def test_no_network_is_an_io_error(tmp_path):
    done = download(tmp_path, "http://127.0.0.1:9", "--repo_id", "org/model")
    assert done.returncode == 74 and "cannot be reached" in done.stderr, done.stderr
    done = download(tmp_path, "http://127.0.0.1:9", "--repo_id", "org/model", HF_HUB_OFFLINE="1")
    assert done.returncode == 74 and "cannot be reached" in done.stderr, done.stderr


def test_bin_files_only_without_safetensors():
    names = ["config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "optimizer.bin"]
    assert choose_files(names) == sorted(names[:3])
    assert choose_files([*names, "model.safetensors"]) == ["config.json", "model.safetensors"]
