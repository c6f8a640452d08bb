"""Requests to servers that others pay for: one connection that is kept, pauses, tries that wait longer each time.

What an answer says is never trusted: addresses are of the web, contents have a limit, and so has the time they take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import httpx

from lit_gpt.errors import NO_SOCKS, UserError
from utils.books.file_names import on_one_line

BACK_OFF = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before the second try, the third, and so on."""
LONGEST_WAIT = 600.0
"""A server that asks for more (Retry-After) is left alone: the user runs the command again."""
TIMEOUT = 30.0
"""Seconds without a byte, after which a connection counts as dead."""
MOST_SECONDS = 900.0
"""Seconds that an answer may take in all: 64 MB at 70 kB/s."""
MOST_REDIRECTS = 10
PASSING = (408, 425, 429, *range(500, 600))
"""Status codes of a server that may answer a while later."""
GONE = (404, 410, 451)
"""Status codes of what is not to be had, now or later."""
HEADERS = {"User-Agent": "Fabricant (books for language models)", "Accept-Encoding": "gzip"}


class NotThere(Exception):
    """What was asked for is not to be had from this address, also later."""


class Unavailable(Exception):
    """The server did not answer, or refused; it may later."""


class AskedToWait(Unavailable):
    """The server asks to be left alone for longer than this command waits."""


class Answer(NamedTuple):
    address: str
    """Where the content came from, after redirects."""
    content: bytes
    media_type: str


class _Again(Exception):
    """A try that failed; the next may not."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def web_address(text: str) -> httpx.URL:
    """An address that a server gave, of the web and without a password; a `NotThere` for any other."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        raise NotThere("its address is none") from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise NotThere("its address is not of the web")
    return url


class PoliteClient:
    """GET requests, `delay` seconds or more from one to the next; `say` gets a line for each long wait."""

    def __init__(self, delay: float, say: Callable[[str], None]) -> None:
        self.reached = False
        """Whether any server has answered yet."""
        self._delay, self._say = delay, say
        self._last = -delay
        """When the last request ended."""
        try:
            self._client = httpx.Client(timeout=TIMEOUT, headers=HEADERS)
        except ImportError:
            raise UserError(NO_SOCKS) from None
        except (ValueError, httpx.InvalidURL):  # whose message may hold the proxy's password
            raise UserError("HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY cannot be read: mend or unset it") from None

    def close(self) -> None:
        self._client.close()

    def get(self, address: str, most_bytes: int) -> Answer:
        """What an address gives, after as many tries as `BACK_OFF` has pauses, and one.

        Raises:
            NotThere: for what no try can give: it is gone, too large, or no address.
            Unavailable: where every try failed, or the server refuses.
            AskedToWait: where the server asks to come back much later, or every try was one too many for it.
        """
        for pause in (*BACK_OFF, None):
            try:
                return self._follow(address, most_bytes)
            except _Again as e:
                wait = max(pause or 0.0, e.wait)
                if wait > LONGEST_WAIT:
                    raise AskedToWait(f"{e}, and asks for a pause of {wait:.0f} s") from None
                if pause is None:
                    kind = AskedToWait if e.wait else Unavailable
                    raise kind(f"{e}, {len(BACK_OFF) + 1} times") from None
                self._say(f"{on_one_line(address)}: {e}; again in {wait:.0f} s")
                time.sleep(wait)
        raise AssertionError

    def _follow(self, address: str, most_bytes: int) -> Answer:
        """One try, and a request for each redirect."""
        url = web_address(address)
        for _ in range(MOST_REDIRECTS + 1):
            time.sleep(max(0.0, self._last + self._delay - time.monotonic()))
            try:
                with _tries(), self._client.stream("GET", url) as response:
                    self.reached = True
                    if response.next_request is None:
                        _check_status(response)
                        return Answer(str(url), _content(response, most_bytes), _media_type(response.headers))
                    url = web_address(str(response.next_request.url))
            finally:
                self._last = time.monotonic()
        raise Unavailable(f"redirects {MOST_REDIRECTS + 1} times")


@contextmanager
def _tries() -> Iterator[None]:
    """Turns what goes wrong with a connection into an `_Again`."""
    try:
        yield
    except httpx.TimeoutException:
        raise _Again(f"no answer within {TIMEOUT:.0f} s") from None
    except httpx.ConnectError as e:
        raise _Again(f"cannot be reached ({on_one_line(str(e))})") from None
    except (httpx.TransportError, httpx.DecodingError) as e:
        raise _Again(f"the connection broke off ({on_one_line(str(e)) or type(e).__name__})") from None


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status in GONE:
        raise NotThere(f"the server answers {status}")
    if status in PASSING:
        raise _Again(f"the server answers {status}", _retry_after(response.headers))
    if status != 200:
        raise Unavailable(f"the server answers {status}")


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait, by its own clock where it gives a date; 0 where it does not ask."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        until = parsedate_to_datetime(text)
        now = parsedate_to_datetime(headers["Date"]) if "Date" in headers else datetime.now(timezone.utc)
        return max(0.0, until.timestamp() - now.timestamp())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _content(response: httpx.Response, most_bytes: int) -> bytes:
    """The answer's body, as it is after gzip. One that is shorter than it says is a broken connection to httpx."""
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("gzip", "identity", ""):  # several, one in the other, could unpack to anything
        raise Unavailable(f"the server answers in {on_one_line(coding)[:40]}, which was not asked for")
    started = time.monotonic()
    content = bytearray()
    for block in response.iter_bytes():
        content += block
        if len(content) > most_bytes:
            raise NotThere(f"it has more than {most_bytes / 2**20:.0f} MiB")
        if time.monotonic() - started > MOST_SECONDS:
            raise _Again(f"no complete answer within {MOST_SECONDS:.0f} s")
    return bytes(content)


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()
