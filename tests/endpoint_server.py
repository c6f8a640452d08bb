"""The exported handler.py of a model behind a server, as an inference endpoint runs it."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def load_endpoint(folder: Path) -> Any:
    """The EndpointHandler of the handler.py in `folder`, for the model there."""
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    return handler.EndpointHandler(str(folder))


@contextmanager
def serving(endpoint: Any) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """The address of a server, and the paths and bodies of its requests, a list that grows.

    With a request and an error it does what huggingface-inference-toolkit does.
    """
    requests: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, body))
            try:
                status, answer = 200, endpoint(body)
            except Exception as e:  # whatever it is, the toolkit answers with it
                status, answer = 400, {"error": str(e)}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
