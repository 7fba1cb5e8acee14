import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from atom.data import download as download_module
from atom.data.download import RemoteFile, download
from atom.errors import DataError

CONTENT = b"the official file" * 1000


@pytest.fixture(scope="module")
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.endswith("silent.bin"):
                release.wait(10)
                return
            known = self.path.endswith(("file.bin", "cut.bin"))
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(CONTENT) + self.path.endswith("cut.bin")))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    release = threading.Event()
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    release.set()
    http.shutdown()
    http.server_close()


def md5(content):
    return hashlib.md5(content).hexdigest()


def test_download_puts_the_whole_file_in_place(server, tmp_path):
    file = download(RemoteFile(f"{server}/file.bin", md5(CONTENT)), tmp_path / "new", spec="x")
    assert file.read_bytes() == CONTENT
    assert [path.name for path in file.parent.iterdir()] == ["file.bin"]


def test_download_of_another_file_is_refused_and_leaves_nothing(server, tmp_path):
    with pytest.raises(DataError, match=r"answered with another file \(MD5 .* put file\.bin into"):
        download(RemoteFile(f"{server}/file.bin", "0" * 32), tmp_path, spec="x")
    assert list(tmp_path.iterdir()) == []


def test_silent_server_is_given_up_within_the_limit(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "CONNECT_TIMEOUT_S", 0.2)
    with pytest.raises(DataError, match=r"silent\.bin could not be fetched to .* \(timed out\)"):
        download(RemoteFile(f"{server}/silent.bin", ""), tmp_path, spec="x")


def test_missing_page_and_closed_port_say_what_was_wanted_and_how_to_provide_it(server, tmp_path):
    for url in (f"{server}/gone.bin", "http://127.0.0.1:9/gone.bin"):
        with pytest.raises(
            DataError, match=r"gone\.bin could not be fetched to .*; connect .* or put gone\.bin"
        ):
            download(RemoteFile(url, ""), tmp_path / "new", spec="x")
    assert not (tmp_path / "new").exists()


def test_a_download_reports_how_far_it_is(server, tmp_path):
    seen = []
    download(
        RemoteFile(f"{server}/file.bin", md5(CONTENT)),
        tmp_path,
        spec="x",
        on_download=lambda *at: seen.append(at),
    )
    assert seen[0] == ("file.bin", 0, None)
    assert seen[-1] == ("file.bin", len(CONTENT), len(CONTENT))


def test_a_server_that_trickles_is_given_up(server, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 61))
    monkeypatch.setattr(download_module, "_now_s", lambda: float(next(clock)))
    with pytest.raises(DataError, match=r"could not be fetched .* \(only \d+ bytes came in 61 s\)"):
        download(RemoteFile(f"{server}/file.bin", md5(CONTENT)), tmp_path, spec="x")
    assert list(tmp_path.iterdir()) == []


def test_a_connection_that_ends_early_is_said(server, tmp_path):
    with pytest.raises(DataError, match=r"cut\.bin could not be fetched .*ended after 17000 of 17001 bytes"):
        download(RemoteFile(f"{server}/cut.bin", md5(CONTENT)), tmp_path, spec="x")
