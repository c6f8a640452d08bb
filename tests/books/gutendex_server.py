"""A Gutendex server in a thread, in memory: its catalogue, and the files of its books.

`Gutendex` is the server. As gutendex.com does, it redirects /books to /books/, gives 32 books a page (here
`page_size`), the most downloaded first, and matches topics and words without regard to case. `faults` has what an
address answers instead, one fault a request; after `stop_after` bytes of books it halts, and its client can be killed.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.local_server import LocalServer

BLOCK = 2**12


class Gutendex(LocalServer):
    """`books[number]` is a book as the API has it, `files[path]` the bytes at an address."""

    def __init__(self, page_size=32):
        super().__init__(Handler)
        self.page_size = page_size
        self.books, self.files = {}, {}
        self.faults = {}  # path → faults, which are taken one by one; each is a function of the handler
        self.requests, self.times = [], []
        self.stop_after, self.sent = None, 0

    def add(self, number, title, text=b"It was a dark night.\r\n", **values):
        """A book with one file, in UTF-8 unless `formats` says otherwise; values are those of the API."""
        path = f"/cache/epub/{number}/pg{number}.txt"
        self.files[path] = text if isinstance(text, bytes) else text.encode()
        book = {
            "id": number,
            "title": title,
            "authors": [{"name": "Shelley, Mary", "birth_year": 1797, "death_year": 1851}],
            "translators": [],
            "subjects": ["Horror tales"],
            "bookshelves": [],
            "languages": ["en"],
            "copyright": False,
            "media_type": "Text",
            "formats": {
                "text/html": f"{self.address}/ebooks/{number}.html.images",
                "text/plain; charset=utf-8": self.address + path,
                "application/octet-stream": f"{self.address}/cache/epub/{number}/pg{number}-h.zip",
            },
            "download_count": 1000 - number,
        }
        self.books[number] = book | values
        return path

    def asked_for(self, path):
        return self.requests.count(path)

    def found(self, query):
        """The books of a query, as the API's views filter and order them."""
        books = list(self.books.values())
        if "ids" in query:
            numbers = [int(number) for number in query["ids"].split(",")]
            books = [book for book in books if book["id"] in numbers]
        if "languages" in query:
            codes = query["languages"].split(",")
            books = [book for book in books if set(codes) & set(book["languages"])]
        if "copyright" in query:
            wanted = [{"true": True, "false": False, "null": None}[word] for word in query["copyright"].split(",")]
            books = [book for book in books if book["copyright"] in wanted]
        if "mime_type" in query:
            books = [book for book in books if any(name.startswith(query["mime_type"]) for name in book["formats"])]
        if "topic" in query:
            topic = query["topic"].lower()
            books = [book for book in books if any(topic in s.lower() for s in book["subjects"] + book["bookshelves"])]
        for word in query.get("search", "").lower().split():
            books = [book for book in books if word in (str(book["title"]) + names(book)).lower()]
        return sorted(books, key=lambda book: -book["download_count"])


def names(book):
    return " ".join(author["name"] for author in book["authors"])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body that follows its head waited 40 ms

    def do_GET(self):
        parts = urlsplit(self.path)
        self.server.requests.append(parts.path)
        self.server.times.append(time.monotonic())
        faults = self.server.faults.get(parts.path)
        if faults:
            faults.pop(0)(self)
        elif parts.path == "/books":
            self.send(301, headers={"Location": f"/books/?{parts.query}"})
        elif parts.path == "/books/":
            self.send_page({name: values[0] for name, values in parse_qs(parts.query).items()})
        elif parts.path in self.server.files:
            self.send_file(self.server.files[parts.path])
        else:
            self.send(404, b"<html>no such page</html>", {"Content-Type": "text/html"})

    def log_message(self, *_):
        pass

    def send(self, status, content=b"", headers=None):
        self.send_response_only(status)  # send_response would add its own Date
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def send_json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_page(self, query):
        found = self.server.found(query)
        number, size = int(query.get("page", 1)), self.server.page_size
        if number > 1 and (number - 1) * size >= len(found):
            return self.send(404, b'{"detail": "Invalid page."}', {"Content-Type": "application/json"})

        def link(page):
            return f"{self.server.address}/books/?{urlencode({**query, 'page': page})}"

        page = {
            "count": len(found),
            "next": link(number + 1) if number * size < len(found) else None,
            "previous": link(number - 1) if number > 1 else None,
            "results": found[(number - 1) * size : number * size],
        }
        return self.send_json(page)

    def send_file(self, content):
        zipped = "gzip" in self.headers.get("Accept-Encoding", "")
        content = gzip.compress(content, mtime=0) if zipped and len(content) < BLOCK else content
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        if zipped and len(content) < BLOCK:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        for begin in range(0, len(content), BLOCK):
            block = content[begin : begin + BLOCK]
            self.wfile.write(block)
            self.server.sent += len(block)
            if self.server.stop_after is not None and self.server.sent >= self.server.stop_after:
                self.server.halted.set()
                self.server.released.wait(60)
                raise ConnectionAbortedError


# What may go wrong


def status(code, headers=None):
    return lambda handler: handler.send(code, b"<html>sorry</html>", {"Content-Type": "text/html", **(headers or {})})


def redirect(address):
    return lambda handler: handler.send(302, headers={"Location": address})


def body(content, media_type="text/plain", headers=None):
    return lambda handler: handler.send(200, content, {"Content-Type": media_type, **(headers or {})})


def silence(seconds):
    """No answer for so long, and then none."""

    def wait(handler):
        handler.server.released.wait(seconds)
        handler.close_connection = True

    return wait


def cut(content):
    """Fewer bytes than the answer says."""

    def send(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) + 100))
        handler.end_headers()
        handler.wfile.write(content)
        handler.close_connection = True

    return send


def drip(handler):
    """A byte now and then, which no limit for silence ends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b"x")
        if handler.server.released.wait(0.01):
            return


def hang_up(handler):
    """Breaks the connection off before any answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
