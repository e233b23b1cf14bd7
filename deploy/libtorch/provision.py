#!/usr/bin/env python3
"""Get libtorch 2.9.0 once into the user's cache and link it into the checkout.

Usage: provision.py [cpu|cuda] [--link PATH]        (`make libtorch`, `make libtorch-cuda`)

Sources, in this order:
  1. LIBTORCH, if exported: it is checked and used as it is; nothing is fetched or linked.
  2. The cache, ${XDG_CACHE_HOME:-~/.cache}/rondo/libtorch/2.9.0-{cpu,cuda}.
  3. RONDO_LIBTORCH_ZIP, if set: the official libtorch zip, as a file or as a URL together
     with RONDO_LIBTORCH_ZIP_SHA256. It takes the place of the wheels.
  4. The torch wheel and the NVIDIA wheels it needs, from the index pip is configured for.
     Wheels put into the cache's folder `downloads` are used first, without pip or network.

Each wheel is pinned by size and SHA-256. A download that was cut off goes on from there at the
next call. The kit is put together in a folder of its own and renamed when it is whole, and its
marker `complete` lists every library with its size, so that half a libtorch is never taken.
Without an argument the kit linked now is kept, else `cpu` is taken.
"""
from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import platform
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

VERSION = "2.9.0"
OLDEST_GLIBC = (2, 28)
MARKER = "complete"
CHUNK = 1 << 20
STALL_S = 60
TRIES_WITHOUT_PROGRESS = 5
# Beyond the downloads: what the unpacked kit takes, and air that is left to the user.
KIT_BYTES = {"cpu": 600 << 20, "cuda": 6 << 30}
SPARE_BYTES = 200 << 20
ZIP_BYTES = 8 << 30
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

# (requirement, file, bytes, SHA-256). The Python version of the torch wheel does not matter,
# since only its C++ libraries and headers are taken.
TORCH = ("torch==2.9.0", "torch-2.9.0-cp311-cp311-manylinux_2_28_x86_64.whl", 899815990, "51de31219c97c51cf4bf2be94d622e3deb5dcc526c6dc00e97c17eaec0fc1d67")
CUDART = ("nvidia-cuda-runtime-cu12==12.8.90", "nvidia_cuda_runtime_cu12-12.8.90-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 954765, "adade8dcbd0edf427b7204d480d6066d33902cab2a4707dcfc48a2d0fd44ab90")
CUPTI = ("nvidia-cuda-cupti-cu12==12.8.90", "nvidia_cuda_cupti_cu12-12.8.90-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 10248621, "ea0cb07ebda26bb9b29ba82cda34849e73c166c18162d3913575b0c9db9a6182")
WHEELS = {
    "cpu": [TORCH, CUDART, CUPTI],
    "cuda": [
        TORCH,
        CUDART,
        CUPTI,
        ("nvidia-cublas-cu12==12.8.4.1", "nvidia_cublas_cu12-12.8.4.1-py3-none-manylinux_2_27_x86_64.whl", 594346921, "8ac4e771d5a348c551b2a426eda6193c19aa630236b418086020df5ba9667142"),
        ("nvidia-cuda-nvrtc-cu12==12.8.93", "nvidia_cuda_nvrtc_cu12-12.8.93-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl", 88040029, "a7756528852ef889772a84c6cd89d41dfa74667e24cca16bb31f8f061e3e9994"),
        ("nvidia-cudnn-cu12==9.10.2.21", "nvidia_cudnn_cu12-9.10.2.21-py3-none-manylinux_2_27_x86_64.whl", 706758467, "949452be657fa16687d0930933f032835951ef0892b37d2d53824d1a84dc97a8"),
        ("nvidia-cufft-cu12==11.3.3.83", "nvidia_cufft_cu12-11.3.3.83-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 193118695, "4d2dd21ec0b88cf61b62e6b43564355e5222e4a3fb394cac0db101f2dd0d4f74"),
        ("nvidia-cufile-cu12==1.13.1.3", "nvidia_cufile_cu12-1.13.1.3-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 1197834, "1d069003be650e131b21c932ec3d8969c1715379251f8d23a1860554b1cb24fc"),
        ("nvidia-curand-cu12==10.3.9.90", "nvidia_curand_cu12-10.3.9.90-py3-none-manylinux_2_27_x86_64.whl", 63619976, "b32331d4f4df5d6eefa0554c565b626c7216f87a06a4f56fab27c3b68a830ec9"),
        ("nvidia-cusolver-cu12==11.7.3.90", "nvidia_cusolver_cu12-11.7.3.90-py3-none-manylinux_2_27_x86_64.whl", 267506905, "4376c11ad263152bd50ea295c05370360776f8c3427b30991df774f9fb26c450"),
        ("nvidia-cusparse-cu12==12.5.8.93", "nvidia_cusparse_cu12-12.5.8.93-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 288216466, "1ec05d76bbbd8b61b06a80e1eaf8cf4959c3d4ce8e711b65ebd0443bb0ebb13b"),
        ("nvidia-cusparselt-cu12==0.7.1", "nvidia_cusparselt_cu12-0.7.1-py3-none-manylinux2014_x86_64.whl", 287193691, "f1bb701d6b930d5a7cea44c19ceb973311500847f81b634d802b7b539dc55623"),
        ("nvidia-nccl-cu12==2.27.5", "nvidia_nccl_cu12-2.27.5-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 322348229, "ad730cf15cb5d25fe849c6e6ca9eb5b76db16a80f13f425ac68d8e2e55624457"),
        ("nvidia-nvjitlink-cu12==12.8.93", "nvidia_nvjitlink_cu12-12.8.93-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl", 39254836, "81ff63371a7ebd6e6451970684f916be2eab07321b73c9d244dc2b4da7f73b88"),
        ("nvidia-nvshmem-cu12==3.3.20", "nvidia_nvshmem_cu12-3.3.20-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 124657145, "d00f26d3f9b2e3c3065be895e3059d6479ea5c638a3f38c9fec49b1b9dd7c1e5"),
        ("nvidia-nvtx-cu12==12.8.90", "nvidia_nvtx_cu12-12.8.90-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 89954, "5b17e2001cc0d751a5bc2c6ec6d26ad95913324a4adb86788c944f8ce9ba441f"),
    ],
}
PIP_TARGET = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11"] + [
    f"--platform={tag}_x86_64"
    for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux_2_12", "manylinux2010", "manylinux1")
]

# Members of the wheels that a kit keeps. libtorch_cuda.so must stay out of the CPU kit, or else
# programs link it; libtorch_cpu.so itself loads libcudart and libcupti.
KEEP = {
    "cpu": re.compile(r"torch/(include/.+|lib/(libtorch_cpu\.so|libc10\.so|libgomp\.so\.1))|nvidia/cuda_(runtime|cupti)/lib/(libcudart|libcupti)\.so\.12"),
    "cuda": re.compile(r"torch/(include/.+|lib/(?!libtorch_python)[^/]+\.so[.0-9]*)|nvidia/\w+/lib/[^/]+\.so[.0-9]*"),
}
LICENCE = re.compile(r"([^/]+)\.dist-info/(?:licenses/)?((?:LICEN[CS]E|NOTICE|License)[^/]*)")


class Refusal(Exception):
    """A failure said to the user: what was attempted, why it failed, what to do."""


def say(text: str) -> None:
    print(f"libtorch: {text}", flush=True)


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e7 else f"{size / 1e6:.0f} MB"


class Progress:
    """One line rewritten in place on a terminal; elsewhere a plain line now and then."""

    def __init__(self, label: str, total: int, done: int = 0):
        self.label, self.total, self.done, self.first = label, total, done, done
        self.start = time.monotonic()
        self.shown, self.shown_share = self.start, done / max(total, 1)
        self.tty = sys.stdout.isatty()

    def add(self, size: int) -> None:
        self.done += size
        now, share = time.monotonic(), self.done / max(self.total, 1)
        quiet = now - self.shown
        if quiet > 0.2 if self.tty else (share - self.shown_share >= 0.1 and quiet > 1 or quiet > 15):
            self.shown, self.shown_share = now, share
            self.line("\r" if self.tty else "", "" if self.tty else "\n")

    def line(self, head: str, tail: str) -> None:
        rate = (self.done - self.first) / max(time.monotonic() - self.start, 1e-3)
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 and self.done < self.total else ""
        text = f"libtorch: {self.label}: {100 * self.done / max(self.total, 1):3.0f} % of {megabytes(self.total)}, {rate / 1e6:.1f} MB/s{left}"
        print(f"{head}{text:<79}" if head else text, end=tail, flush=True)

    def end(self) -> None:
        self.line("\r" if self.tty else "", "\n")


# --- what is there already -------------------------------------------------------------------


def version_of(root: Path) -> str | None:
    with contextlib.suppress(OSError):
        return (root / "build-version").read_text().strip().split("+")[0]
    for header in ("csrc/api/include/torch/version.h", "headeronly/version.h"):
        with contextlib.suppress(OSError):
            numbers = re.findall(r"define TORCH_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", (root / "include/torch" / header).read_text())
            if len(numbers) == 3:
                return ".".join(numbers)
    return None


def fault_of(root: Path, kit: str = "cpu") -> str | None:
    """Why `root` cannot serve as libtorch, or None if it can."""
    needed = ["include/torch/csrc/api/include/torch/torch.h"] + [f"lib/{name}" for name in ("libtorch_cpu.so", "libtorch.so", "libc10.so")]
    if kit == "cuda":
        needed.append("lib/libtorch_cuda.so")
    for name in needed:
        if not (root / name).is_file():
            return f"{root / name} is missing"
    version = version_of(root)
    if version != VERSION and "LIBTORCH_BYPASS_VERSION_CHECK" not in os.environ:
        return f"it is version {version or 'unknown'} and {VERSION} is needed (export LIBTORCH_BYPASS_VERSION_CHECK=1 to try it anyway)"
    return None


def root_of(kit_dir: Path, kit: str) -> Path:
    # The CUDA libraries look for ../../nvidia/*/lib, so they keep the layout of the wheels.
    return kit_dir / "torch" if kit == "cuda" else kit_dir


def is_whole(kit_dir: Path, kit: str) -> bool:
    try:
        sizes = json.loads((kit_dir / MARKER).read_text())["libraries"]
        return all((kit_dir / name).stat().st_size == size for name, size in sizes.items()) and fault_of(root_of(kit_dir, kit), kit) is None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


# --- wheels ----------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(CHUNK), b""):
            digest.update(block)
    return digest.hexdigest()


def accept(path: Path, size: int, sha256: str) -> bool:
    """Whether a finished file is the pinned one; another file is told and deleted."""
    found_size, found = path.stat().st_size, sha256_of(path)
    if (found_size, found) == (size, sha256):
        return True
    say(f"{path.name} is not the pinned file (sha256 {found}, {found_size} bytes; expected {sha256}, {size} bytes): deleted")
    path.unlink()
    return False


class Pip:
    """The first pip that answers, and the parts of its configuration a download needs."""

    def __init__(self) -> None:
        self.env = dict(os.environ, PIP_REQUIRE_VIRTUALENV="0", PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
        for command in ([sys.executable, "-m", "pip"], ["pip3"], ["pip"]):
            with contextlib.suppress(OSError):
                if subprocess.run(command + ["--version"], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
                    self.command = command
                    return
        raise Refusal("no pip was found (tried `python3 -m pip`, `pip3`, `pip`): install it, for example the package python3-pip")

    def run(self, *arguments: str, show: bool = False) -> subprocess.CompletedProcess:
        done = subprocess.run([*self.command, *arguments], env=self.env, text=True, stdout=None if show else subprocess.PIPE, stderr=None if show else subprocess.PIPE)
        if done.returncode != 0:
            last = [] if show else [line.strip() for line in done.stderr.splitlines() if re.match("ERROR|WARNING", line) and "experimental" not in line][-2:]
            raise Refusal(f"`pip {arguments[0]}` failed" + (": " + " | ".join(last) if last else ""))
        return done

    def options(self) -> dict[str, str]:
        """Configured options; the environment wins over files, a command's section over global."""
        found: dict[str, tuple[int, str]] = {}
        for line in self.run("config", "list").stdout.splitlines():
            match = re.fullmatch(r"(global|install|:env:)\.([\w-]+)='(.*)'", line)
            if match:
                rank = ("global", "install", ":env:").index(match[1])
                if rank >= found.get(match[2], (-1,))[0]:
                    found[match[2]] = (rank, match[3])
        return {key: value for key, (_, value) in found.items()}

    def address(self, requirement: str, name: str) -> str | None:
        """Where pip's configured index keeps the file `name`; nothing is downloaded."""
        # Only the debug log of this command tells addresses without fetching whole wheels.
        try:
            log = self.run("index", "versions", "-vv", "--retries=2", *PIP_TARGET, requirement.split("==")[0]).stdout
        except Refusal as error:
            if "unknown command" in str(error):
                return None
            raise
        for url in re.findall(r"Found link (\S+)", log):
            if urllib.parse.unquote(urllib.parse.urlsplit(url).path.rsplit("/", 1)[1]) == name:
                return url.split("#")[0]
        return None

    def opener(self) -> urllib.request.OpenerDirector:
        options = self.options()
        context = ssl.create_default_context(cafile=options.get("cert"))
        if "client-cert" in options:
            context.load_cert_chain(options["client-cert"])
        handlers: list = [urllib.request.HTTPSHandler(context=context)]
        if "proxy" in options:
            handlers.append(urllib.request.ProxyHandler({scheme: options["proxy"] for scheme in ("http", "https")}))
        return urllib.request.build_opener(*handlers)


def fetch(opener: urllib.request.OpenerDirector, url: str, part: Path, size: int, label: str) -> None:
    """Download `url` to `part`, going on behind the bytes that are there, never past `size`."""
    failures = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        if have > size:
            part.unlink()
            continue
        if have == size:
            return
        if have:
            say(f"{label}: going on after {megabytes(have)}")
        try:
            request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
            with opener.open(request, timeout=STALL_S) as reply:
                start = re.match(r"bytes (\d+)-", reply.headers.get("Content-Range") or "")
                resumed = bool(have) and reply.status == 206 and start is not None and int(start[1]) == have
                progress = Progress(label, size, have if resumed else 0)
                with part.open("ab" if resumed else "wb") as file:
                    while progress.done <= size:
                        block = reply.read(CHUNK)
                        if not block:
                            break
                        file.write(block)
                        progress.add(len(block))
                progress.end()
            if part.stat().st_size > size:
                part.unlink()
                raise Refusal(f"the server sent more than the pinned {size} bytes")
            if part.stat().st_size == size:
                return
            why = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code not in (408, 416, 429) and error.code < 500:
                raise Refusal(f"the server answered {error.code} {error.reason}") from error
            if error.code == 416:
                part.unlink(missing_ok=True)
            why = f"the server answered {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in DISK_ERRORS:
                raise
            why = str(getattr(error, "reason", error)) or type(error).__name__
        now = part.stat().st_size if part.exists() else 0
        failures = 0 if now > have else failures + 1
        if failures >= TRIES_WITHOUT_PROGRESS:
            raise Refusal(f"{why} ({failures} tries without progress)")
        pause = 2**failures
        say(f"{label}: {why}; trying again in {pause} s")
        time.sleep(pause)


def get_wheel(pip: Pip, opener: urllib.request.OpenerDirector, wheel: tuple, downloads: Path) -> None:
    requirement, name, size, sha256 = wheel
    target, part = downloads / name, downloads / f"{name}.part"
    tried, url = [], pip.address(requirement, name)
    if url is None:
        tried.append(f"pip does not tell where {name} is")
    elif urllib.parse.urlsplit(url).scheme == "file":
        shutil.copyfile(urllib.request.url2pathname(urllib.parse.urlsplit(url).path), part)
        os.replace(part, target)
        if accept(target, size, sha256):
            return
        tried.append(f"{url} is not the pinned file")
    else:
        # A second round only where old bytes may have spoilt a resumed download.
        for resumed in (part.exists(), False):
            try:
                fetch(opener, url, part, size, requirement)
            except Refusal as error:
                tried.append(f"direct download: {error}")
                break
            os.replace(part, target)
            if accept(target, size, sha256):
                return
            if not resumed:
                tried.append("direct download: wrong digest")
                break
    say(f"{requirement}: {tried[-1]}; asking pip to download it (a download by pip cannot be resumed)")
    try:
        pip.run("download", "--no-deps", "--no-cache-dir", *PIP_TARGET, f"--dest={downloads}", requirement, show=True)
        if target.exists() and accept(target, size, sha256):
            return
        tried.append(f"`pip download` did not give {name} as it is pinned")
    except Refusal as error:
        tried.append(str(error))
    raise Refusal(f"{requirement}: " + "; ".join(tried))


def get_wheels(kit: str, downloads: Path) -> list[Path]:
    downloads.mkdir(parents=True, exist_ok=True)
    missing = [wheel for wheel in WHEELS[kit] if not ((downloads / wheel[1]).is_file() and accept(downloads / wheel[1], wheel[2], wheel[3]))]
    if missing:
        parts = (downloads / f"{name}.part" for _, name, _, _ in missing)
        check_space(downloads, sum(wheel[2] for wheel in missing) - sum(part.stat().st_size for part in parts if part.exists()) + KIT_BYTES[kit])
        try:
            pip = Pip()
            say(f"asking pip's index for {len(missing)} wheels of {VERSION} ({kit}), {megabytes(sum(wheel[2] for wheel in missing))}")
            opener = pip.opener()
            for wheel in missing:
                get_wheel(pip, opener, wheel, downloads)
        except Refusal as error:
            files = "\n".join(f"       {name}  (sha256 {sha256})" for _, name, _, sha256 in missing if not (downloads / name).exists())
            raise Refusal(
                f"could not get the wheels of libtorch {VERSION}: {error}\n"
                "  What to do, one of:\n"
                "   - let pip reach a package index (its settings: `pip config list`; `pip config set global.index-url …`), then run this again\n"
                "   - export LIBTORCH=DIR, a libtorch 2.9.0 with include/ and lib/ that is on this machine\n"
                "   - export RONDO_LIBTORCH_ZIP=FILE, the official libtorch 2.9.0 zip (C++11 ABI)\n"
                f"   - put these files into {downloads} and run this again:\n{files}"
            ) from error
    else:
        check_space(downloads, KIT_BYTES[kit])
    return [downloads / wheel[1] for wheel in WHEELS[kit]]


def check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise Refusal(f"{folder} has {megabytes(free)} free and {megabytes(needed + SPARE_BYTES)} are needed: make room, or set XDG_CACHE_HOME to a folder on a larger disk")


# --- the kit ---------------------------------------------------------------------------------


def unpack(archive: Path, into: Path, place) -> None:
    """Extract the members for which `place(name)` gives a path below `into`."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            chosen = [(member, place(member.filename)) for member in zipped.infolist() if not member.is_dir()]
            chosen = [(member, path) for member, path in chosen if path]
            progress = Progress(f"unpacking {archive.name.split('-')[0]}", sum(member.file_size for member, _ in chosen))
            for member, path in chosen:
                if path.startswith("/") or ".." in Path(path).parts:
                    raise Refusal(f"{archive} holds the unsafe name {member.filename!r}")
                target = into / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(member) as source, target.open("wb") as sink:
                    for block in iter(lambda: source.read(CHUNK), b""):
                        sink.write(block)
                        progress.add(len(block))
                if member.external_attr >> 16 & 0o111:
                    target.chmod(0o755)
            progress.end()
    except zipfile.BadZipFile as error:
        raise Refusal(f"unpacking {archive}: {error}") from error


def place_from_wheel(kit: str):
    def place(name: str) -> str | None:
        licence = LICENCE.fullmatch(name)
        if licence:
            return f"licences/{licence[1]}/{licence[2]}"
        if not KEEP[kit].fullmatch(name):
            return None
        if kit == "cuda":
            return name
        return name[len("torch/"):] if name.startswith("torch/") else f"lib/{name.rsplit('/', 1)[1]}"

    return place


def place_from_zip(kit: str):
    def place(name: str) -> str | None:
        match = re.fullmatch(r"libtorch/((?:include|lib)/.+|build-version|build-hash)", name)
        return str(root_of(Path(), kit) / match[1]) if match and not match[1].endswith(".a") else None

    return place


def get_zip(source: str, kit: str, downloads: Path) -> Path:
    expected = os.environ.get("RONDO_LIBTORCH_ZIP_SHA256")
    if "://" not in source:
        path = Path(source)
        if not path.is_file():
            raise Refusal(f"RONDO_LIBTORCH_ZIP={source} is not a file: correct or unset it")
    else:
        if not expected:
            raise Refusal("RONDO_LIBTORCH_ZIP is a URL: export RONDO_LIBTORCH_ZIP_SHA256 too, so that what comes can be verified")
        downloads.mkdir(parents=True, exist_ok=True)
        path = downloads / f"libtorch-{expected}.zip"
        if not path.is_file():
            part = downloads / f"{path.name}.part"
            opener = urllib.request.build_opener()
            try:
                with opener.open(urllib.request.Request(source, method="HEAD"), timeout=STALL_S) as reply:
                    size = int(reply.headers.get("Content-Length") or 0)
            except (OSError, ValueError) as error:
                raise Refusal(f"could not ask for RONDO_LIBTORCH_ZIP={source}: {error}") from error
            if not 0 < size <= ZIP_BYTES:
                raise Refusal(f"RONDO_LIBTORCH_ZIP={source}: the server tells a length of {size} bytes; download it by hand and give the file")
            check_space(downloads, size + KIT_BYTES[kit])
            fetch(opener, source, part, size, "libtorch zip")
            os.replace(part, path)
    if expected and sha256_of(path) != expected.lower():
        if path.parent == downloads:
            path.unlink()
        raise Refusal(f"the zip {source} has not the SHA-256 {expected}: get it again, or correct RONDO_LIBTORCH_ZIP_SHA256")
    return path


def assemble(kit: str, cache: Path) -> None:
    """Build the kit in a scratch folder and rename it into place when it is whole."""
    downloads, final, scratch = cache / "downloads", cache / f"{VERSION}-{kit}", cache / f".{VERSION}-{kit}.new"
    zip_source = os.environ.get("RONDO_LIBTORCH_ZIP")
    if not zip_source:
        machine, glibc = platform.machine(), platform.libc_ver()
        if (sys.platform, machine) != ("linux", "x86_64"):
            raise Refusal(f"the pinned wheels are for Linux on x86_64 and this is {sys.platform} on {machine}: export LIBTORCH=DIR with a libtorch {VERSION} for this machine")
        if glibc[0] == "glibc" and tuple(map(int, glibc[1].split(".")[:2])) < OLDEST_GLIBC:
            raise Refusal(f"libtorch {VERSION} needs glibc 2.28 or newer and this system has {glibc[1]}: build on a newer system")
    for left_over in (scratch, cache / f".{VERSION}-{kit}.old"):
        shutil.rmtree(left_over, ignore_errors=True)
    archives = [get_zip(zip_source, kit, downloads)] if zip_source else get_wheels(kit, downloads)
    scratch.mkdir(parents=True)
    for archive in archives:
        unpack(archive, scratch, place_from_zip(kit) if zip_source else place_from_wheel(kit))
    root = root_of(scratch, kit)
    if not zip_source:
        (root / "build-version").write_text(f"{VERSION}\n")
    if not zip_source and kit == "cpu":
        # The real libtorch.so is empty but loads libtorch_cuda.so.
        (root / "lib/libtorch.so").symlink_to("libtorch_cpu.so")
    fault = fault_of(root, kit)
    if fault:
        raise Refusal(f"the unpacked libtorch is not usable: {fault}")
    libraries = {str(path.relative_to(scratch)): path.stat().st_size for path in sorted(scratch.rglob("*.so*")) if path.is_file()}
    marker = {"version": VERSION, "kit": kit, "from": [archive.name for archive in archives], "libraries": libraries}
    (scratch / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
    os.sync()
    if final.exists():
        os.replace(final, cache / f".{VERSION}-{kit}.old")
    os.replace(scratch, final)
    shutil.rmtree(cache / f".{VERSION}-{kit}.old", ignore_errors=True)
    for archive in archives:
        if archive.parent == downloads:
            archive.unlink()


@contextlib.contextmanager
def only_one(cache: Path):
    """One run at a time per cache; a second waits and then finds the kit."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is getting libtorch now; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def set_link(link: Path, root: Path) -> None:
    if link.is_symlink() and os.readlink(link) == str(root):
        return
    if link.exists() and not link.is_symlink():
        raise Refusal(f"{link} is not a link: move it away, then run this again")
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.symlink_to(root)
    os.replace(fresh, link)


def provision(kit: str | None, link: Path | None) -> None:
    exported = os.environ.get("LIBTORCH")
    if exported and not (link and Path(exported).absolute() == link.absolute()):
        if not Path(exported).is_absolute():
            raise Refusal(f"LIBTORCH={exported} must be an absolute path, since builds run in many folders")
        fault = fault_of(Path(exported), kit or "cpu")
        if fault:
            raise Refusal(f"LIBTORCH={exported} cannot be used: {fault}. Correct it, or unset it to use the cache")
        say(f"{version_of(Path(exported))} at {exported} (exported LIBTORCH)")
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rondo" / "libtorch"
    if kit is None and link and link.is_symlink():
        linked = link.resolve()
        if linked == (cache / f"{VERSION}-cuda" / "torch").resolve():
            kit = "cuda"
        elif cache.resolve() not in linked.parents and fault_of(linked) is None:
            say(f"{version_of(linked)} at {linked} (linked by hand)")
            return
    kit = kit or "cpu"
    final = cache / f"{VERSION}-{kit}"
    if not is_whole(final, kit):
        with only_one(cache):
            if not is_whole(final, kit):
                assemble(kit, cache)
    if link:
        set_link(link, root_of(final, kit))
    say(f"{VERSION} ({kit}) at {root_of(final, kit)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", nargs="?", choices=sorted(WHEELS), help="default: the one linked now, else cpu")
    parser.add_argument("--link", type=Path, help="link to set to the libtorch folder")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        provision(arguments.kit, arguments.link)
    except Refusal as error:
        print(f"libtorch: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"libtorch: could not write or read {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nlibtorch: interrupted; run the same again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
