"""Sandboxes in which one test at a time is run.

A lane is a copy of the sandbox that script/mutate made: sources with what was built of them, and a PostgreSQL of its
own. What a test leaves behind, processes and files, is gone before the next one begins.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time

FAILED = re.compile(rb"^\s*not ok (?!.*# TODO)|^test .*\.\.\. FAILED")
GRACE = 8  # seconds that a server has to stop at once; PostgreSQL kills what does not after 5
KEPT = {"src", "pg", "home", "gcda"}
OUTPUT_LIMIT = 200_000  # bytes kept of what a test says


STOP = threading.Event()  # nothing more is to be run


class Stopped(Exception):
    """It was."""


class Sandbox:
    """A folder with sources and a PostgreSQL."""

    def __init__(self, folder, bindir):
        self.folder = pathlib.Path(folder)
        self.bindir = bindir  # of the PostgreSQL, below the folder
        self.source = self.folder / "src"
        self.pg_config = f"{self.folder}/{bindir}/pg_config"

    def make(self, *arguments, jobs=1):
        """Runs make; what it said, when it failed."""
        command = ["make", "-s", "-j", str(jobs), "-C", str(self.source), f"PG_CONFIG={self.pg_config}", *arguments]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                             start_new_session=True)  # Ctrl-C is not for it
        return run.stdout.decode(errors="replace") if run.returncode else None

    def build(self, *arguments):
        for target in ("clean", "all", "install"):
            wrong = self.make(target, *arguments, jobs=os.cpu_count())
            if wrong:
                raise RuntimeError(f"make {target} failed:\n{wrong}")


class Lane(Sandbox):
    """A sandbox of its own, made from another."""

    def __init__(self, origin, folder, environment=()):
        super().__init__(folder, origin.bindir)
        self.environment = {
            **os.environ, "FEISHU_LANE": str(self.folder), "PG_CONFIG": self.pg_config,
            "TMPDIR": f"{self.folder}/tmp", "HOME": f"{self.folder}/home", **dict(environment),
        }
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        for part in ("src", "pg"):
            subprocess.run(["cp", "-a", str(origin.folder / part), str(self.folder / part)], check=True)
        self._empty()

    def run(self, test, limit):
        """Runs a test for so many seconds at most: its seconds, and what was wrong with it (None: nothing)."""
        began = time.monotonic()
        process = subprocess.Popen(
            ["bash", str(self.source / "test/mutate/lane.sh"), str(self.folder), test], cwd=self.source,
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True)
        said = Output(process.stdout)
        try:
            while True:
                ended = process.poll() is not None
                seconds = time.monotonic() - began
                if STOP.is_set():
                    raise Stopped
                if said.failure:
                    return seconds, said.failure
                if ended:
                    said.thread.join(1)
                    return seconds, said.failure or (said.last() if process.returncode else None)
                if seconds > limit:
                    return seconds, f"took longer than {limit:.0f} s"
                said.event.wait(0.1)
        finally:
            self.clean()
            process.wait()

    def clean(self):
        """Ends what runs in the lane and removes what it left."""
        for pid in self._processes():
            # a server, and each of its processes, stops at once; all else would only start more
            kill(pid, signal.SIGQUIT if executable(pid).startswith(f"{self.folder}/pg/") else signal.SIGKILL)
        deadline = time.monotonic() + GRACE
        while (left := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        while left:
            for pid in left:
                kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            left = self._processes()
        self._empty()

    def _empty(self):
        for entry in self.folder.iterdir():
            if entry.name not in KEPT:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()
        for name in ("tmp", "sock", "home"):
            (self.folder / name).mkdir(exist_ok=True)
        (self.folder / "sock").chmod(0o700)

    def _processes(self):
        """Those that run a program of the lane, or were started with a path in it, or by what was."""
        inside = f"{self.folder}/".encode()
        mark = f"FEISHU_LANE={self.folder}".encode()
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if int(pid) == os.getpid():
                continue
            if (executable(pid).startswith(f"{self.folder}/") or inside in read(pid, "cmdline")
                    or mark in read(pid, "environ").split(b"\0")):
                found.append(int(pid))
        return [pid for pid in found if alive(pid)]


class Output:
    """What a process says, read by a thread: the first line that tells of a failure, and the last lines."""

    def __init__(self, pipe):
        self.pipe = pipe
        self.failure = None
        self.lines = []
        self.event = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        size = 0
        with self.pipe:
            for line in self.pipe:
                size += len(line)
                if size < OUTPUT_LIMIT:
                    self.lines.append(line.decode(errors="replace").rstrip())
                if FAILED.search(line) and not self.failure:
                    self.failure = line.decode(errors="replace").strip()
                    self.event.set()

    def last(self):
        return next((line for line in reversed(self.lines) if line.strip()), "ended badly")


def executable(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def read(pid, name):
    try:
        return pathlib.Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def alive(pid):
    """Is the process there, and not only its remains?"""
    return read(pid, "stat").rpartition(b")")[2].lstrip()[:1] not in (b"", b"Z")


def kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
