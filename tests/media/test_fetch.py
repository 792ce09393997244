"""Videos by URL, from a server of this test: cached, continued, limited, refused."""

from __future__ import annotations

import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

from videoxl.errors import VideoError
from videoxl.media.fetch import FetchLimits, fetch_video, is_url, shown
from videoxl.media.public_network import is_public

FILM = (ROOT / "assets" / "sample.mp4").read_bytes()
HERE = FetchLimits(allow_private=True, silence=5)


class Server(BaseHTTPRequestHandler):
    """Serves the sample; what goes wrong is in the path."""

    log: list = []
    break_after: int | None = None

    def do_GET(self):
        self.log.append((self.path, dict(self.headers)))
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd" if "file" in self.path else "/film.mp4")
            self.end_headers()
            return
        if self.path.startswith("/gone"):
            self.send_error(404, "Not Found")
            return
        if self.headers.get("If-None-Match") == '"1"':
            self.send_response(304)
            self.end_headers()
            return
        begin = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == '"1"':
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if begin else 200)
        self.send_header("Content-Type", "text/html" if "page" in self.path else "video/mp4")
        self.send_header("ETag", '"1"')
        if "chunked" not in self.path:
            self.send_header("Content-Length", str(len(FILM) - begin))
        self.end_headers()
        end = type(self).break_after or len(FILM)
        type(self).break_after = None
        if "drip" in self.path:
            with contextlib.suppress(OSError):
                for at in range(100):
                    self.wfile.write(FILM[at : at + 1])
                    time.sleep(0.1)
        self.wfile.write(FILM[begin:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEOXL_CACHE", str(tmp_path / "cache"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Server.log.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_video_is_fetched_once(url):
    seen = []
    path = fetch_video(f"{url}/film.mp4", lambda here, total: seen.append((here, total)), HERE)
    assert path.read_bytes() == FILM and path.suffix == ".mp4" and seen[-1] == (len(FILM), len(FILM))
    assert fetch_video(f"{url}/film.mp4", None, HERE) == path
    assert Server.log[-1][1]["If-None-Match"] == '"1"' and len(Server.log) == 2
    assert fetch_video(f"{url}/other.mp4", None, HERE) == path, "the same content is kept once"


def test_what_broke_off_goes_on(url):
    Server.break_after = 100_000
    with pytest.raises(VideoError, match="ask again to go on"):
        fetch_video(f"{url}/film.mp4", None, HERE)
    assert fetch_video(f"{url}/film.mp4", None, HERE).read_bytes() == FILM
    assert Server.log[-1][1]["Range"] == "bytes=100000-"


def test_several_at_once_do_not_mix_their_bytes(url):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch_video(f"{url}/chunked.mp4", None, HERE))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.read_bytes() for path in found} == {FILM} and len(found) == 4


def test_a_server_that_drips_meets_the_time_limit(url):
    limits = FetchLimits(allow_private=True, seconds=1, silence=5)
    started = time.monotonic()
    with pytest.raises(VideoError, match="not here after 1 s"):
        fetch_video(f"{url}/drip.mp4", None, limits)
    assert time.monotonic() - started < 5


def test_redirects_are_followed_but_only_to_http(url):
    assert fetch_video(f"{url}/away", None, HERE).read_bytes() == FILM
    with pytest.raises(VideoError, match=r"is not allowed|is not http"):
        fetch_video(f"{url}/away-file", None, HERE)


@pytest.mark.parametrize(
    ("path", "limits", "message"),
    [
        ("/film.mp4", FetchLimits(), "127.0.0.1, an address of a private network"),
        ("/gone.mp4", HERE, "the server says 404 Not Found"),
        ("/page", HERE, "is a web page, not a video file"),
        ("/film.mp4", FetchLimits(allow_private=True, most_bytes=1000), "at most 0.00 GiB are fetched"),
        ("/chunked.mp4", FetchLimits(allow_private=True, most_bytes=1000), "at most 0.00 GiB are fetched"),
        ("/film.mp4", FetchLimits(allow_private=True, seconds=-1), "not here after -1 s"),
    ],
)
def test_what_is_refused_says_why(url, path, limits, message):
    with pytest.raises(VideoError, match=message):
        fetch_video(url + path, None, limits)


def test_secrets_of_a_url_are_not_shown(url):
    with pytest.raises(VideoError) as caught:
        fetch_video(f"{url}/gone.mp4?token=SECRET", None, HERE)
    assert "SECRET" not in str(caught.value)
    assert shown("https://example.com:8443/a.mp4?x=1") == "https://example.com:8443/a.mp4?..."
    with pytest.raises(VideoError, match="no name or password"):
        fetch_video("https://user:password@example.com/a.mp4", None, HERE)


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "192.168.1.1", "0.0.0.0", "224.0.0.1", "::1",
        "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "2002:0a00:0001::", "64:ff9b::a00:1", "255.255.255.255",
    ],
)  # fmt: skip
def test_private_addresses_are_told(address):
    assert not is_public(address)


def test_public_addresses_and_urls_are_told():
    assert is_public("93.184.216.34") and is_public("2606:4700::1111") and is_public("64:ff9b::5db8:d822")
    assert is_url("https://a/b.mp4") and is_url("HTTP://a") and not is_url("a.mp4") and not is_url("file:///a")
