"""Packing files from a web server."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from html import escape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from spurmix.cli.app import app
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack import remote
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.job import BrokenFiles
from spurmix.data.pack.layouts.folder import from_folder
from spurmix.data.pack.layouts.table import from_table

NAMES = ("plain.png", "a b.png", "ü.png", "50%41.png", "h#1.png", "q?x=1.png", "s;t&u=v+w.png")


class Server(SimpleHTTPRequestHandler):
    """A web server that counts requests and can fail."""

    pages = "python"
    asked: ClassVar[Counter[str]] = Counter()
    fails: ClassVar[dict[str, str]] = {}

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(self.path)
        Server.asked[path] += 1
        failure = next((how for name, how in Server.fails.items() if path.endswith(name)), None)
        if failure == "error":
            self.send_error(503)
        elif failure == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
        else:
            super().do_GET()

    def list_directory(self, path: Any) -> Any:
        if Server.pages == "python":
            return super().list_directory(path)
        if Server.pages == "none":
            return self.send_error(403)
        here = self.path.rstrip("/")
        up = here.rpartition("/")[0] + "/"
        names = sorted(p.name + "/" * p.is_dir() for p in Path(path).iterdir())
        links = ["?C=N;O=D", "?C=S;O=A", up, "https://example.invalid/else.png", *(f"{here}/{quote(n)}" for n in names)]
        body = "".join(f'<a href="{escape(link)}">x</a>\n' for link in links).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server of `tmp_path/www`, with a folder "my set" of two classes."""
    rng = np.random.default_rng(0)
    rows = []
    for label in ("cat x", "dog"):
        for name in NAMES:
            file = tmp_path / "www" / "my set" / label / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(file)
            rows.append({"path": f"{label}/{name}", "label": label})
    (tmp_path / "www" / "beside.png").write_bytes(b"")
    rows.sort(key=lambda row: row["path"])
    table = pyarrow.Table.from_pylist([{**row, "place": n % 2} for n, row in enumerate(rows)])
    pyarrow.csv.write_csv(table, tmp_path / "www" / "rows.csv")
    pyarrow.parquet.write_table(table, tmp_path / "www" / "rows.parquet")
    Server.pages, Server.fails, Server.asked = "python", {}, Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def same(target: Path, expected: Path) -> bool:
    found, other = PackedDataset(target), PackedDataset(expected)
    assert found.metadata.sources == other.metadata.sources and found.metadata.class_names == ("cat x", "dog")
    return np.array_equal(found.array, other.array) and np.array_equal(found.metadata.labels, other.metadata.labels)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
@pytest.mark.parametrize("table_here", [False, True])
def test_tables_on_a_web_server(name: str, table_here: bool, url: str, tmp_path: Path) -> None:
    Server.pages = "none"
    pack_images(from_folder(tmp_path / "www" / "my set"), tmp_path / "here", size=8)
    table = str(tmp_path / "www" / name) if table_here else f"{url}/{name}"
    target = tmp_path / "there"
    arguments = [
        table,
        str(target),
        "--layout",
        "table",
        "--root",
        f"{url}/my set",
        "--attribute",
        "place",
        "--size",
        "8",
    ]
    app(["pack", *arguments], standalone_mode=False)
    assert same(target, tmp_path / "here")
    assert PackedDataset(target).metadata.attributes["place"].tolist() == [0, 1] * 7
    assert PackedDataset(target).verify(progress=False) == []


def test_paths_relative_to_the_table(url: str, tmp_path: Path) -> None:
    rows = (tmp_path / "www" / "rows.csv").read_text()
    (tmp_path / "www" / "my set" / "rows.csv").write_text(rows)
    pack_images(from_table(f"{url}/my set/rows.csv", attributes=["place"]), tmp_path / "there", size=8)
    assert len(PackedDataset(tmp_path / "there")) == 14


def test_failed_requests_are_repeated_on_resume(url: str, tmp_path: Path) -> None:
    Server.fails = {"dog/plain.png": "error", "dog/a b.png": "cut", "dog/ü.png": "none"}
    missing = tmp_path / "www" / "my set" / "dog" / "ü.png"
    content = missing.read_bytes()
    missing.unlink()
    table = f"{url}/rows.csv"
    with pytest.raises(BrokenFiles) as caught:
        pack_images(from_table(table, f"{url}/my set"), tmp_path / "there", size=8)
    text = str(caught.value)
    assert "3 files" in text and "dog/ü.png: there is no such file" in text
    assert "dog/plain.png: cannot be read: 503" in text and "dog/a b.png: cannot be read: " in text
    Server.fails = {}
    missing.write_bytes(content)
    Server.asked.clear()
    pack_images(from_table(table, f"{url}/my set"), tmp_path / "there", size=8)
    asked = {path for path in Server.asked if path.endswith(".png")}
    assert asked == {f"/my set/dog/{name}" for name in ("plain.png", "a b.png", "ü.png")}


def test_bad_urls(url: str) -> None:
    Server.pages = "none"
    for bad, text in (
        (f"{url}/nothing", "a web server cannot list its files"),
        (f"{url}/my set", r"pack a table \(CSV or Parquet\)"),
        ("http://127.0.0.1:9/x", "a web server cannot list its files"),
    ):
        with pytest.raises(ValueError, match=text):
            from_folder(bad)
    for bad, text in (
        (f"{url}/nothing.csv", "there is no file .*404"),
        ("http://127.0.0.1:9/x.csv", "there is no file .*Cannot connect"),
    ):
        with pytest.raises(ValueError, match=text):
            from_table(bad)


def test_responses_have_a_size_limit(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_IMAGE_BYTES", 100)
    with pytest.raises(BrokenFiles, match="has more than 100 bytes, which is the maximum"):
        pack_images(from_table(f"{url}/rows.csv", f"{url}/my set"), tmp_path / "t", size=8)
