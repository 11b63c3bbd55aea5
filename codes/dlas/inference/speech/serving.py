"""A small web page that speaks, for one's own machine."""

from __future__ import annotations

import html
import struct
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dlas.errors import UserError
from dlas.inference.speech.codes import SOUND_RATE
from dlas.inference.speech.pipeline import Speaker
from dlas.inference.speech.presets import PRESETS, Settings
from dlas.inference.speech.voices import Voice
from dlas.observe.sounds import pcm16

HOSTS = ("127.0.0.1", "localhost", "[::1]")

_PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>dlas speak</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 42em; margin: 3em auto; padding: 0 1em }}
textarea {{ width: 100%; font: inherit }} audio {{ width: 100% }} #state {{ color: #555 }}
</style>
<h1>dlas speak</h1><p>Voice: {voice}</p>
<form id="form"><textarea id="text" rows="6" required>{text}</textarea>
<p><label>preset <select id="preset">{presets}</select></label>
<label>candidates <input id="candidates" type="number" min="1" style="width: 5em" placeholder="preset"></label>
<label>seed <input id="seed" type="number" value="0" style="width: 6em"></label> <button>Say it</button></p></form>
<audio id="sound" controls></audio><p id="state" role="status"></p>
<script>
const at = name => document.getElementById(name), sound = at("sound"), state = at("state");
at("form").addEventListener("submit", event => {{
  event.preventDefault();
  const asked = new URLSearchParams({{text: at("text").value, preset: at("preset").value, seed: at("seed").value}});
  if (at("candidates").value) asked.set("candidates", at("candidates").value);
  const begun = performance.now();
  state.textContent = "thinking ...";
  sound.onplaying = () => state.textContent = `first sound after ${{((performance.now() - begun) / 1000).toFixed(1)}} s`;
  sound.onerror = async () => {{
    const answer = await fetch("/say?" + asked);
    state.textContent = answer.ok ? "the browser cannot play this sound" : await answer.text();
  }};
  sound.src = "/say?" + asked;
  sound.play().catch(() => {{}});
}});
</script></html>
"""


def wav_header(rate: int) -> bytes:
    """Of a stream of 16 bits, one channel, whose length is not known yet."""
    unknown = 0xFFFFFFFF
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", unknown, b"WAVE") + form + struct.pack("<4sI", b"data", unknown)


def make_server(speaker: Speaker, voice: Voice, port: int, preset: str, settings: dict[str, Any]) -> ThreadingHTTPServer:
    """A server for this machine only; `serve_forever` runs it.

    Args:
        speaker: speaks, one request at a time.
        voice: with it.
        port: 0 takes any that is free.
        preset: that the page offers first.
        settings: of all requests, unless they say otherwise.
    """
    options = "".join(f"<option{' selected' if name == preset else ''}>{name}</option>" for name in PRESETS)
    example = "This is the first sentence, which is heard while the second is made. And this is the second."
    page = _PAGE.format(voice=html.escape(voice.name), text=example, presets=options).encode()
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if (self.headers.get("Host") or "").rpartition(":")[0] not in HOSTS:  # a page of another site, by a name of its own
                self._answer(HTTPStatus.FORBIDDEN, b"this page is for the machine it runs on", "text/plain")
                return
            address = urlsplit(self.path)
            if address.path == "/":
                self._answer(HTTPStatus.OK, page, "text/html")
            elif address.path == "/say":
                self._say(dict(parse_qsl(address.query)))
            else:
                self._answer(HTTPStatus.NOT_FOUND, b"there is / and /say", "text/plain")

        def _say(self, asked: dict[str, str]) -> None:
            try:
                given = settings | {
                    name: _number(name, value) for name, value in asked.items() if name not in ("text", "preset")
                }
                seed = int(given.pop("seed", 0))
                pieces = speaker.say(asked.get("text", ""), voice, preset=asked.get("preset", preset), seed=seed, **given)
            except (UserError, ValueError) as error:
                self._answer(HTTPStatus.BAD_REQUEST, str(error).encode(), "text/plain")
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "audio/wav")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                self._chunk(wav_header(SOUND_RATE))
                for sound in _in_turn(pieces, one_at_a_time):
                    self._chunk(pcm16(sound))
                self._chunk(b"")
            except (BrokenPipeError, ConnectionResetError):  # the listener has gone
                self.close_connection = True

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Texts are nobody's business: nothing is logged."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def _in_turn(pieces: Iterator[Any], lock: threading.Lock) -> Iterator[Any]:
    """Sounds of pieces; only one is made at a time."""
    while True:
        with lock:
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece.sound


def _number(name: str, text: str) -> Any:
    """A setting from an address.

    Raises:
        ValueError: it is no number where one is expected.
    """
    default = getattr(Settings(), name, 0)
    try:
        return type(default)(text)
    except ValueError:
        raise ValueError(f"{name}: a number is expected, got '{text}'") from None
