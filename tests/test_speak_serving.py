"""The web page that speaks."""

from __future__ import annotations

import http.client
import http.server
import io
import queue
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
import wave

import pytest

from dlas.inference.speech.pipeline import Speaker
from dlas.inference.speech.serving import make_server
from tiny_speech import QUICK, make_models

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    speaker = Speaker.load(make_models(tmp_path_factory.mktemp("speech") / "models"), device="cpu")
    server = make_server(speaker, speaker.voices.random(0), 0, "fast", QUICK)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def say(address, **asked):
    return f"{address}/say?{urllib.parse.urlencode(asked)}"


def test_the_page_offers_presets_and_the_voice(address):
    page = urllib.request.urlopen(address).read().decode()
    assert "random 0" in page and "<option selected>fast</option>" in page and "high_quality" in page


def test_sound_is_streamed_piece_by_piece(address):
    with urllib.request.urlopen(say(address, text="This is a first sentence. And this is the second one.", seed=1)) as answer:
        assert answer.headers["Content-Type"] == "audio/wav"
        assert answer.headers["Transfer-Encoding"] == "chunked"
        first = answer.read1(1 << 20)
        assert first.startswith(b"RIFF") and len(first) == 44
        data = answer.read()
    assert len(data) > 100 and len(data) % 2 == 0
    whole = first[:4] + (36 + len(data)).to_bytes(4, "little") + first[8:40] + len(data).to_bytes(4, "little") + data
    with wave.open(io.BytesIO(whole)) as file:
        assert (file.getframerate(), file.getnframes()) == (24000, len(data) // 2)
    assert (
        urllib.request.urlopen(say(address, text="This is a first sentence. And this is the second one.", seed=1)).read()[44:]
        == data
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"text": ""}, "nothing to say"),
        ({"text": "Hello.", "preset": "slow"}, "ultra_fast"),
        ({"text": "Hello.", "seed": "many"}, "seed: a number"),
        ({"text": "Hello.", "candidates": "0"}, "at least 1"),
        ({"text": "Hello.", "candidats": "3"}, "did you mean 'candidates'"),
    ],
)
def test_wrong_requests_are_told(address, asked, words):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(say(address, **asked))
    assert caught.value.code == 400
    assert words in caught.value.read().decode()


def test_pages_of_other_sites_get_nothing(address):
    host = address.removeprefix("http://")
    for path, name, status in (("/", "evil.example:80", 403), ("/other", host, 404), ("/", host, 200)):
        connection = http.client.HTTPConnection(host)
        connection.request("GET", path, headers={"Host": name})
        assert connection.getresponse().status == status
        connection.close()


@pytest.fixture
def listener():
    """A server, and the paths it is asked for."""
    heard: queue.Queue[str] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.put(urllib.parse.unquote(self.path))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", heard
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_plays_what_the_form_asks_for(address, listener, tmp_path):
    """The page itself, whose form a script sends, and which then tells how it ended."""
    there, heard = listener
    page = urllib.request.urlopen(address).read().decode().replace("<title>", f'<base href="{address}"><title>', 1)
    script = f"""<script>
    const tell = words => new Image().src = "{there}/" + encodeURIComponent(words);
    sound.muted = true;
    sound.onended = () => tell("played " + (sound.currentTime > 0) + ", " + state.textContent);
    sound.addEventListener("error", () => tell("failed " + sound.error.message));
    at("form").requestSubmit();
    </script>"""
    file = tmp_path / "page.html"
    file.write_text(page + script)
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--mute-audio"]
    arguments += ["--autoplay-policy=no-user-gesture-required", file.as_uri()]
    with subprocess.Popen([CHROMIUM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            told = heard.get(timeout=90)
        finally:
            browser.terminate()
    assert told.startswith("/played true, first sound after "), told
