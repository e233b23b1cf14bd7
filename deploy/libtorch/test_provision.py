"""Tests of provision.py against a package index on loopback with tiny wheels.

Run: python3 -m unittest discover -s deploy/libtorch        (`make check` does)
"""
import contextlib
import hashlib
import http.server
import io
import os
import tempfile
import threading
import unittest
import zipfile
from pathlib import Path
from unittest import mock

import provision

VERSION_H = "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 9\n#define TORCH_VERSION_PATCH 0\n"
TORCH_H = "include/torch/csrc/api/include/torch/torch.h"
LIBRARY = bytes(range(256)) * 4096


def wheel(requirement, members):
    """A wheel that pip takes, with its pin as provision.WHEELS holds it."""
    project, version = requirement.split("==")
    name = f"{project.replace('-', '_')}-{version}"
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as zipped:
        for path, content in members.items():
            zipped.writestr(path, content)
        zipped.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        zipped.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: py3-none-any\n")
        zipped.writestr(f"{name}.dist-info/LICENSE", "terms")
        zipped.writestr(f"{name}.dist-info/RECORD", "")
    data = body.getvalue()
    return (requirement, f"{name}-py3-none-any.whl", len(data), hashlib.sha256(data).hexdigest()), data


PACKAGES = [
    wheel("torch==2.9.0", {f"torch/{TORCH_H}": "", "torch/lib/libtorch_cpu.so": LIBRARY, "torch/lib/libtorch_cuda.so": b"no", "torch/lib/libc10.so": b"c10", "torch/lib/libgomp.so.1": b"gomp", "torch/nn.py": "no"}),
    wheel("nvidia-cuda-runtime-cu12==12.8.90", {"nvidia/cuda_runtime/lib/libcudart.so.12": b"cudart", "nvidia/cuda_runtime/include/a.h": "no"}),
    wheel("nvidia-cuda-cupti-cu12==12.8.90", {"nvidia/cuda_cupti/lib/libcupti.so.12": b"cupti"}),
]


class Index(http.server.ThreadingHTTPServer):
    """A simple package index that can cut a download off after `cut` bytes and lie about bytes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {pin[1]: data for pin, data in PACKAGES}
        self.cut, self.ranges, self.asked = None, True, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/simple"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = self.path.rstrip("/").rsplit("/", 1)[1]
        if self.path.startswith("/simple/"):
            links = "".join(f'<a href="/files/{file}">{file}</a>' for file in self.server.files if file.startswith(name.replace("-", "_") + "-"))
            return self.answer(200, links.encode(), {"Content-Type": "text/html"})
        data = self.server.files.get(name)
        if data is None:
            return self.answer(404, b"")
        asked = self.headers.get("Range")
        if asked:
            self.server.asked.append((name, asked))
        if asked and self.server.ranges:
            start, end = asked[len("bytes="):].split("-")
            start, end = int(start), int(end or len(data) - 1)
            return self.answer(206, data[start:end + 1], {"Content-Range": f"bytes {start}-{end}/{len(data)}"})
        self.answer(200, data, {"Accept-Ranges": "bytes" if self.server.ranges else "none"})

    def answer(self, code, body, headers=()):
        self.send_response(code)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut, self.server.cut = (self.server.cut, None) if len(body) > 100_000 else (None, self.server.cut)
        with contextlib.suppress(OSError):
            self.wfile.write(body[:cut])


class Provisioning(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.cache, self.link = self.folder / "cache/rondo/libtorch", self.folder / ".libtorch"
        self.kit = self.cache / "2.9.0-cpu"
        self.index = Index()
        self.addCleanup(self.index.server_close)
        self.addCleanup(self.index.shutdown)
        kept = {key: value for key, value in os.environ.items() if key not in ("LIBTORCH", "LIBTORCH_BYPASS_VERSION_CHECK") and not key.startswith(("PIP_", "RONDO_")) and not key.lower().endswith("_proxy")}
        self.enterContext(mock.patch.dict(os.environ, {**kept, "XDG_CACHE_HOME": str(self.folder / "cache"), "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": self.index.url}, clear=True))
        self.enterContext(mock.patch.dict(provision.WHEELS, cpu=[pin for pin, _ in PACKAGES]))
        self.enterContext(mock.patch.dict(provision.KIT_BYTES, cpu=4 << 20))
        self.enterContext(mock.patch.object(provision, "SPARE_BYTES", 0))
        self.enterContext(mock.patch.object(provision.time, "sleep"))
        try:
            provision.Pip()
        except provision.Refusal as error:
            self.skipTest(str(error))
        self.real_address = provision.Pip.address
        files = f"http://127.0.0.1:{self.index.server_port}/files/"
        self.enterContext(mock.patch.object(provision.Pip, "address", lambda _pip, _requirement, name: files + name))
        self.torch = PACKAGES[0][0][1]

    def enterContext(self, manager):  # the standard one needs Python 3.11
        value = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return value

    def run_it(self, kit=None):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            provision.provision(kit, self.link)
        return output.getvalue()

    def refusal(self, kit=None):
        with self.assertRaises(provision.Refusal) as caught:
            self.run_it(kit)
        return str(caught.exception)

    def assert_kit(self):
        self.assertEqual(self.link.resolve(), self.kit.resolve())
        self.assertEqual(sorted(path.name for path in (self.kit / "lib").iterdir()), ["libc10.so", "libcudart.so.12", "libcupti.so.12", "libgomp.so.1", "libtorch.so", "libtorch_cpu.so"])
        self.assertEqual((self.kit / "lib/libtorch.so").read_bytes(), LIBRARY)
        self.assertEqual((self.kit / "build-version").read_text(), "2.9.0\n")
        self.assertEqual(len(list((self.kit / "licences").iterdir())), 3)
        self.assertEqual(list((self.cache / "downloads").iterdir()), [])

    def test_kit_from_wheels_is_made_once(self):
        with mock.patch.object(provision.Pip, "address", self.real_address):
            self.assertNotIn("asking pip to download", self.run_it())
        self.assert_kit()
        self.index.shutdown()
        self.assertEqual(self.run_it().count("\n"), 1)

    def test_cut_download_resumes(self):
        self.index.cut = 300_000
        self.assertIn("going on after", self.run_it())
        self.assertIn((self.torch, "bytes=300000-"), self.index.asked)
        self.assert_kit()

    def test_part_of_an_earlier_run_resumes_and_spoilt_part_starts_afresh(self):
        for first in (PACKAGES[0][1][:200_000], b"spoilt" * 1000):
            with self.subTest(first=first[:6]):
                (self.cache / "downloads").mkdir(parents=True)
                (self.cache / f"downloads/{self.torch}.part").write_bytes(first)
                self.run_it()
                self.assertIn((self.torch, f"bytes={len(first)}-"), self.index.asked)
                self.assert_kit()
                provision.shutil.rmtree(self.cache)

    def test_server_without_ranges_starts_afresh(self):
        (self.cache / "downloads").mkdir(parents=True)
        (self.cache / f"downloads/{self.torch}.part").write_bytes(b"x" * 1000)
        self.index.ranges = False
        self.run_it()
        self.assert_kit()

    def test_corrupted_wheel_is_refused(self):
        spoilt = bytearray(self.index.files[self.torch])
        spoilt[500_000] ^= 1
        self.index.files[self.torch] = bytes(spoilt)
        text = self.refusal()
        self.assertIn("wrong digest", text)
        self.assertIn("export LIBTORCH=DIR", text)
        self.assertFalse(self.kit.exists() or self.link.is_symlink())
        self.assertFalse((self.cache / f"downloads/{self.torch}").exists())

    def test_placed_wheels_need_neither_pip_nor_network(self):
        downloads = self.cache / "downloads"
        downloads.mkdir(parents=True)
        for pin, data in PACKAGES:
            (downloads / pin[1]).write_bytes(data)
        with mock.patch.object(provision, "Pip", side_effect=AssertionError("pip was asked")):
            self.run_it()
        self.assert_kit()

    def test_no_network_and_no_pip_say_what_to_do(self):
        os.environ["PIP_INDEX_URL"] = "http://127.0.0.1:9/simple"
        with mock.patch.object(provision.Pip, "address", self.real_address):
            self.assertRegex(self.refusal(), r"(?s)pip index` failed.*onnection.*export LIBTORCH=DIR.*RONDO_LIBTORCH_ZIP.*put these files into .*torch-2.9.0")
        with mock.patch.object(provision.sys, "executable", "/nonexistent"), mock.patch.dict(os.environ, PATH="/nonexistent"):
            self.assertRegex(self.refusal(), r"(?s)no pip was found.*export LIBTORCH=DIR")

    def test_full_disk_is_said_before_the_download(self):
        with mock.patch.object(provision.shutil, "disk_usage", return_value=mock.Mock(free=1000)):
            self.assertIn("are needed: make room", self.refusal())
        self.assertEqual(self.index.asked, [])

    def test_damaged_kit_is_made_anew(self):
        self.run_it()
        for harm in (lambda: os.truncate(self.kit / "lib/libtorch_cpu.so", 10), (self.kit / "complete").unlink, lambda: (self.kit / "complete").write_text("[]")):
            harm()
            self.run_it()
            self.assert_kit()

    def test_exported_libtorch_is_checked_and_used(self):
        own = self.folder / "own"
        for name in (TORCH_H, "lib/libtorch_cpu.so", "lib/libtorch.so", "lib/libc10.so"):
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            (own / name).write_text("")
        os.environ["LIBTORCH"] = str(own)
        self.assertIn("version unknown", self.refusal())
        (own / "include/torch/csrc/api/include/torch/version.h").write_text(VERSION_H)
        self.assertIn("exported LIBTORCH", self.run_it())
        self.assertIn("libtorch_cuda.so is missing", self.refusal("cuda"))
        self.assertFalse(self.cache.exists())
        (own / "build-version").write_text("2.11.0+cpu\n")
        self.assertIn("version 2.11.0", self.refusal())
        os.environ["LIBTORCH_BYPASS_VERSION_CHECK"] = "1"
        self.run_it()
        os.environ["LIBTORCH"] = "own"
        self.assertIn("absolute", self.refusal())

    def test_official_zip_takes_the_place_of_the_wheels(self):
        path = self.folder / "libtorch.zip"
        with zipfile.ZipFile(path, "w") as zipped:
            for name in (TORCH_H, "lib/libtorch_cpu.so", "lib/libtorch.so", "lib/libc10.so"):
                zipped.writestr(f"libtorch/{name}", b"z")
            zipped.writestr("libtorch/build-version", "2.9.0+cpu")
        os.environ["RONDO_LIBTORCH_ZIP"] = f"http://127.0.0.1:{self.index.server_port}/files/libtorch.zip"
        self.assertIn("RONDO_LIBTORCH_ZIP_SHA256", self.refusal())
        os.environ.update(RONDO_LIBTORCH_ZIP=str(path), RONDO_LIBTORCH_ZIP_SHA256="0" * 64)
        self.assertIn("has not the SHA-256", self.refusal())
        os.environ["RONDO_LIBTORCH_ZIP_SHA256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        self.run_it()
        self.assertEqual((self.kit / "lib/libtorch.so").read_bytes(), b"z")
        self.assertTrue(path.exists())

    def test_unsafe_names_in_an_archive_are_refused(self):
        path = self.folder / "evil.zip"
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr("libtorch/lib/../../../../evil", b"")
        os.environ["RONDO_LIBTORCH_ZIP"] = str(path)
        self.assertIn("unsafe name", self.refusal())

    def test_link_by_hand_is_kept_and_a_folder_in_its_place_is_not_touched(self):
        self.run_it()
        own = self.folder / "own"
        provision.shutil.copytree(self.kit, own)
        self.link.unlink()
        self.link.symlink_to(own)
        self.assertIn("linked by hand", self.run_it())
        self.link.unlink()
        self.link.mkdir()
        self.assertIn("is not a link", self.refusal())

    def test_two_runs_at_once_make_one_kit(self):
        done, threads = [], [threading.Thread(target=lambda: done.append(provision.provision(None, None))) for _ in range(2)]
        with contextlib.redirect_stdout(io.StringIO()) as output:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(len(done), 2)
        self.assertIn("another run is getting libtorch", output.getvalue())
        self.assertEqual(output.getvalue().count("asking pip's index"), 1)


if __name__ == "__main__":
    unittest.main()
