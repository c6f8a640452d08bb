"""A Hugging Face Hub in a thread, in memory: the few endpoints that huggingface_hub's client uses.

`Hub` is the server; its client runs in other processes, with `Hub.environment`. Repositories have commits, large files
(`LARGE`) go through git-lfs in one piece or in parts, and downloads may begin in the middle. After `stop_after` bytes
of large files, in either direction, it halts: then the client can be killed halfway.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

import yaml

from tests.local_server import LocalServer

TOKEN = "hf_TheTokenThatNobodyMaySee"
LARGE = (".safetensors", ".bin", ".png", ".gguf", ".model", ".parquet", ".arrow")
BLOCK = 2**16


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(LocalServer):
    """`repositories[ORG/NAME]` is a dictionary: private, and commits, the newest last, as (id, name → content).

    A dataset's is `repositories["datasets/ORG/NAME"]`.
    """

    def __init__(self, part_size=None):
        super().__init__(Handler)
        self.part_size = part_size
        self.repositories, self.objects, self.parts = {}, {}, {}
        self.faults = {}  # repository → status and headers of every answer about it
        self.requests, self.authorizations, self.messages = [], set(), []
        self.spoilt = None  # the name of a file that a commit does not keep as it came
        self.stop_after = None
        self.received, self.sent = {}, {}  # bytes of each large file
        self.starts = {}  # name → where each of its downloads began

    def environment(self, home, token=TOKEN):
        """What a client's process needs; nothing of this machine's own Hub settings."""
        others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        own |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
        return {**others, **own, **({"HF_TOKEN": token} if token else {})}

    def add(self, repo_id, files, private=False):
        """A commit of these files and no others; returns its id."""
        repository = self.repositories.setdefault(repo_id, {"private": private, "commits": []})
        parent = repository["commits"][-1][0] if repository["commits"] else ""
        names = json.dumps([parent, {name: sha256(content) for name, content in files.items()}], sort_keys=True)
        commit = hashlib.sha1(names.encode()).hexdigest()
        repository["commits"].append((commit, dict(files)))
        return commit

    def files(self, repo_id):
        return self.repositories[repo_id]["commits"][-1][1]

    def pass_on(self, counts, name, size):
        """Counts bytes of a large file, and halts where it was told to."""
        counts[name] = counts.get(name, 0) + size
        if self.stop_after is not None and sum(counts.values()) >= self.stop_after:
            self.halted.set()
            self.released.wait(60)
            raise ConnectionAbortedError


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", "info"),
        ("GET", r"/api/(datasets/[^/]+/[^/]+)(?:/revision/([^/]+))?", "info"),
        ("POST", r"/api/(?:models/|(?=datasets/))((?:datasets/)?[^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/(?:models/|(?=datasets/))((?:datasets/)?[^/]+/[^/]+)/commit/([^/]+)", "commit"),
        ("POST", r"/((?:datasets/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/([0-9a-f]{64})(?:/(\d+))?", "put"),
        ("POST", r"/lfs/([0-9a-f]{64})", "complete"),
        ("GET", r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
        ("HEAD", r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    )

    def answer(self):
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        self.server.authorizations.add(self.headers.get("Authorization"))
        for method, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                fault = self.server.faults.get(match[1] if match.re.groups else None)
                groups = [group and unquote(group) for group in match.groups()]
                return self.send(*fault) if fault else getattr(self, name)(*groups)
        return self.send(404)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *_):
        pass

    def send(self, status, content=b"{}", headers=None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.read()  # what was not read would be the next request
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def blocks(self):
        """The request's body, the first time; then nothing."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            block = self.rfile.read(min(left, BLOCK))
            if not block:
                raise ConnectionAbortedError
            left -= len(block)
            yield block
        del self.headers["Content-Length"], self.headers["Transfer-Encoding"]

    def read(self):
        return b"".join(self.blocks())

    def may_write(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # Repositories

    def create(self):
        values = json.loads(self.read())
        folder = "datasets/" if values.get("type") == "dataset" else ""
        repo_id = f"{folder}{values['organization']}/{values['name']}"
        url = {"url": f"{self.server.address}/{repo_id}"}
        if not self.may_write():
            return self.send(401, {"error": "Invalid username or password."})
        if values["organization"] == "others":
            return self.send(403, {"error": "You don't have the rights"})
        if repo_id in self.server.repositories:
            return self.send(409, {"error": "You already created this model repo", **url})
        self.server.repositories[repo_id] = {"private": values.get("private", False), "commits": []}
        self.server.add(repo_id, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return self.send(200, url)

    def find(self, repo_id, revision):
        """A commit and its files, or None after an answer that says so."""
        repository = self.server.repositories.get(repo_id)
        if repository is None or (repository["private"] and not self.may_write()):
            return self.send(404, headers={"X-Error-Code": "RepoNotFound"})
        for commit, files in reversed(repository["commits"]):
            if revision in (None, "main", commit):
                return commit, files
        return self.send(404, headers={"X-Error-Code": "RevisionNotFound"})

    def info(self, repo_id, revision):
        if found := self.find(repo_id, revision):
            commit, files = found
            siblings = [describe(name, content) for name, content in files.items()]
            private = self.server.repositories[repo_id]["private"]
            self.send(200, {"id": repo_id, "sha": commit, "private": private, "siblings": siblings, "tags": []})

    # Uploads

    def validate_yaml(self):
        card = json.loads(self.read())["content"]
        match = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
        try:
            valid = match is None or isinstance(yaml.safe_load(match[1]), dict)
        except yaml.YAMLError:
            valid = False
        if valid:
            return self.send(200, {"errors": [], "warnings": []})
        return self.send(400, {"errors": [{"message": "metadata is not valid YAML"}], "warnings": []})

    def preupload(self, repo_id, revision):
        wanted = json.loads(self.read())["files"]
        if not self.may_write():
            return self.send(401)
        if found := self.find(repo_id, revision):
            files = []
            for file in wanted:
                large = file["path"].endswith(LARGE)
                here = found[1].get(file["path"])
                oid = None if here is None else (sha256 if large else git_hash)(here)
                mode = "lfs" if large else "regular"
                files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.send(200, {"files": files})

    def batch(self, repo_id):
        request = json.loads(self.read())
        if not self.may_write():
            return self.send(401)
        return self.send(200, {"transfer": "basic", "objects": [self.object(one) for one in request["objects"]]})

    def object(self, wanted):
        oid, size = wanted["oid"], wanted["size"]
        if oid in self.server.objects:
            return {"oid": oid, "size": size}
        url, header = f"{self.server.address}/lfs/{oid}", {}
        if self.server.part_size and size > self.server.part_size:
            count = -(-size // self.server.part_size)
            header = {str(part): f"{url}/{part}" for part in range(1, count + 1)}
            header["chunk_size"] = str(self.server.part_size)
        return {"oid": oid, "size": size, "actions": {"upload": {"href": url, "header": header}}}

    def put(self, oid, part):
        content = bytearray()
        for block in self.blocks():
            self.server.pass_on(self.server.received, oid, len(block))
            content += block
        if part:
            self.server.parts[oid, int(part)] = bytes(content)
        elif sha256(content) == oid:
            self.server.objects[oid] = bytes(content)
        else:
            return self.send(400)
        return self.send(200, b"", {"ETag": hashlib.md5(content).hexdigest()})

    def complete(self, oid):
        parts = [self.server.parts[oid, part["partNumber"]] for part in json.loads(self.read())["parts"]]
        if sha256(b"".join(parts)) != oid:
            return self.send(400)
        self.server.objects[oid] = b"".join(parts)
        return self.send(200)

    def commit(self, repo_id, revision):
        lines = [json.loads(line) for line in self.read().splitlines()]
        if not self.may_write():
            return self.send(401)
        files = dict(self.server.files(repo_id))
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return self.send(400, {"error": "LFS pointer pointed to a file that does not exist"})
                files[value["path"]] = self.server.objects[value["oid"]]
        if self.server.spoilt in files:
            files[self.server.spoilt] += b" "
        commit = self.server.add(repo_id, files)
        return self.send(200, {"commitOid": commit, "commitUrl": f"{self.server.address}/{repo_id}/commit/{commit}"})

    # Downloads

    def resolve(self, repo_id, revision, name):
        found = self.find(repo_id, revision)
        if not found:
            return
        commit, files = found
        if name not in files:
            return self.send(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = files[name]
        etag = sha256(content) if name.endswith(LARGE) else git_hash(content)
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(match[1]) if match else 0
        self.send_response(206 if match else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content) - start))
        if match:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.starts.setdefault(name, []).append(start)
        for begin in range(start, len(content), BLOCK):
            block = content[begin : begin + BLOCK]
            self.wfile.write(block)
            if name.endswith(LARGE):
                self.server.pass_on(self.server.sent, name, len(block))


def describe(name, content):
    """A file as the Hub lists it."""
    lfs = {"sha256": sha256(content), "size": len(content), "pointerSize": 130} if name.endswith(LARGE) else None
    blob = git_hash(sha256(content).encode() if lfs else content)  # a large file's is that of its pointer
    return {"rfilename": name, "size": len(content), "blobId": blob, "lfs": lfs}
