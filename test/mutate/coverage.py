"""Which test runs which lines of src/, as gcov counts them.

What a test covers is kept below the folder of the cache, by the library and the test's own files: a second run on the
same tree records nothing, and after a change of one test that one alone. What tests share changes often, and hardly
ever which lines they run, so that does not count. A library that counts is slow, and a test may fail for that: it
is tried without before changes are made. A test that fails then, too, judges none.
"""

import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
import pathlib
import queue
import re
import shutil
import subprocess
import threading

from lanes import STOP, Lane, Stopped

PARTS = {"regress": ("sql", "expected"), "nopreload": ("sql", "expected"), "isolation": ("test/specs", "test/expected"),
         "fuzz": ("test/fuzz",), "torture": ("test/torture",)}
COMMON = ("src", "Makefile", "feishu_flow.control", "feishu_flow--*.sql", "test/mutate/flush.c")
KEPT = 10  # libraries that something is known of
COUNTING = "--coverage -O0 -U_FORTIFY_SOURCE -fprofile-update=atomic"
LIMIT = 900  # seconds of a test whose usual time is not known yet
LEAST_SECONDS = 10  # the usual time of a shorter test says little
ATTEMPTS = 2  # a test may fail for time alone


@dataclasses.dataclass
class Test:
    name: str
    seconds: float = 0
    wrong: str = None  # of a test that fails anyway
    lines: dict = dataclasses.field(default_factory=dict)  # path => the lines that it runs

    def limit(self, patience):
        """So often the usual time."""
        return patience * max(self.seconds, LEAST_SECONDS)

    def cost(self):
        """Small for a test that takes little time and runs little else: the first to be asked."""
        return self.seconds * sum(map(len, self.lines.values()))


class Coverage:
    """Of some tests on a tree."""

    def __init__(self, origin, cache):
        self.origin = origin
        self.root = origin.source
        self.common = digest(self.root, COMMON)
        self.cache = pathlib.Path(cache) / self.common
        self.cache.mkdir(parents=True, exist_ok=True)
        self.cache.touch()
        for old in sorted(self.cache.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        self.tests = []
        self.lines = {}  # path => the lines that could be run

    def record(self, patterns, jobs, say):
        """Fills in tests and lines: those whose names match, what is not in the cache by running them."""
        names = [name for name in self._names()
                 if not patterns or any(fnmatch.fnmatch(name, f"*{pattern}*") for pattern in patterns)]
        known = {name: self._read(name) for name in names}
        missing = [name for name in names if not known[name]]
        if missing or not (self.cache / "lines.json").exists():
            known.update(self._run(missing, jobs, say))
        self.lines = {path: set(lines) for path, lines in json.loads((self.cache / "lines.json").read_text()).items()}
        self.tests = [test for test in known.values() if test]

    def covering(self, path, first, last):
        """The tests that run one of these lines; None when none of them can be run."""
        lines = self.lines.get(path, set()).intersection(range(first, last + 1))
        if not lines:
            return None
        return [test for test in self.tests if lines.intersection(test.lines.get(path, ()))]

    def building(self, path):
        """The tests that build this file into a program of their own, which counts nothing."""
        return [test for test in self.tests if path in self._built(test.name)]

    @functools.lru_cache(maxsize=None)
    def _built(self, name):
        file = self.root / "test" / name
        calls = re.findall(r"run_unit\((.*?)\);", file.read_text(), re.DOTALL) if file.is_file() else []
        return {f"src/{word}.c" for call in calls for word in re.findall(r"\w+/\w+", call)}

    def _names(self):
        tests = sorted(f"t/{path.name}" for path in (self.root / "test/t").glob("*.pl"))
        return [*PARTS, *tests]

    # ---- the cache ----

    def _file(self, name):
        depends = PARTS.get(name, (f"test/{name}",))
        return self.cache / f"{pathlib.Path(name).name}-{digest(self.root, depends)}.json"

    def _read(self, name):
        try:
            kept = json.loads(self._file(name).read_text())
        except FileNotFoundError:
            return None
        return Test(name, kept["seconds"], None, {path: set(lines) for path, lines in kept["lines"].items()})

    def _write(self, test):
        write(self._file(test.name),
              {"seconds": test.seconds, "lines": {path: sorted(lines) for path, lines in test.lines.items()}})

    # ---- recording ----

    def _run(self, names, jobs, say):
        say(f"recording what {len(names)} tests run; kept in {self.cache}")
        flush = str(self.origin.folder / "flush.o")
        subprocess.run(["cc", "-O2", "-fPIC", "-c", "-o", flush, str(self.root / "test/mutate/flush.c")], check=True)
        self.origin.build(f"COPT={COUNTING}", f"PG_LDFLAGS={flush}")
        write(self.cache / "lines.json", {path: sorted(counts) for path, counts in self._possible().items()})
        todo = queue.SimpleQueue()
        for name in names:
            todo.put(name)
        done = {}
        lanes = [Lane(self.origin, self.origin.folder / str(i + 1), self._environment(i + 1)) for i in range(jobs)]
        threads = [threading.Thread(target=self._work, args=(lane, todo, done, say)) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if STOP.is_set():
            raise Stopped
        for lane in lanes:
            shutil.rmtree(lane.folder)
        return done

    def _environment(self, number):
        return {"GCOV_PREFIX": f"{self.origin.folder}/{number}/gcda", "COPT": COUNTING}

    def _work(self, lane, todo, done, say):
        while True:
            try:
                name = todo.get_nowait()
                done[name] = self._test(lane, name, say)
            except (queue.Empty, Stopped):
                return

    def _test(self, lane, name, say):
        counts = lane.folder / "gcda"
        for _ in range(ATTEMPTS):
            shutil.rmtree(counts, ignore_errors=True)
            counts.mkdir()
            seconds, wrong = lane.run(name, LIMIT)
            if not wrong:
                break
        test = Test(name, round(seconds, 1), wrong, {path: {line for line, count in lines.items() if count}
                                                    for path, lines in self._counted(counts).items()})
        if wrong:
            say(f"  {name} failed, {sum(map(len, test.lines.values()))} lines: {wrong}")
        else:
            say(f"  {name}: {test.seconds} s, {sum(map(len, test.lines.values()))} lines")
            self._write(test)
        return test

    def try_failed(self, lane, say):
        """Runs those that failed with a library that does not count."""
        for test in [test for test in self.tests if test.wrong]:
            seconds, test.wrong = lane.run(test.name, LIMIT)
            test.seconds = round(seconds, 1)
            if test.wrong:
                say(f"{test.name} fails as it is, and judges nothing: {test.wrong}")
            else:
                self._write(test)

    def _possible(self):
        return self._gcov([str(path) for path in sorted((self.root / "src").rglob("*.gcno"))])

    def _counted(self, counts):
        """The counts below a folder, to which the notes of the compiler are put."""
        files = []
        for path in counts.rglob("*.gcda"):
            notes = pathlib.Path("/") / path.relative_to(counts).with_suffix(".gcno")
            if notes.exists():
                path.with_suffix(".gcno").symlink_to(notes)
                files.append(str(path))
        return self._gcov(files)

    def _gcov(self, files):
        """path => line => how often it was run, of the files of src/."""
        result = {}
        if not files:
            return result
        run = subprocess.run(["gcov", "--json-format", "--stdout", *files], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, cwd=self.origin.folder, check=False)
        for document in run.stdout.splitlines():
            data = json.loads(document)
            for file in data["files"]:
                path = os.path.normpath(os.path.join(data["current_working_directory"], file["file"]))
                if "/src/src/" not in path:
                    continue
                counts = result.setdefault("src/" + path.rpartition("/src/src/")[2], {})
                for line in file["lines"]:
                    number = line["line_number"]
                    counts[number] = counts.get(number, 0) + line["count"]
        return result

    # ---- the report ----

    def report(self, say):
        """Of each file, and of all: how many of the lines are run, and which are not."""
        total = covered = 0
        for path in sorted(self.lines):
            lines = self.lines[path]
            run = lines & set().union(*(test.lines.get(path, ()) for test in self.tests))
            total += len(lines)
            covered += len(run)
            say(f"{percent(len(run), len(lines)):>6}  {len(run):5} of {len(lines):5}  {path}"
                + (f"  not run: {ranges(lines - run, lines)}" if lines - run else ""))
        say(f"{percent(covered, total):>6}  {covered:5} of {total:5}  src/, by {len(self.tests)} tests")


def percent(part, whole):
    return f"{100 * part / whole:.1f}%" if whole else "-"


def ranges(wanted, possible):
    """Lines as ranges; one goes on over lines that cannot be run."""
    found = []
    last = None
    for line in sorted(possible):
        if line not in wanted:
            last = None
        elif last is None:
            found.append([line, line])
            last = line
        else:
            found[-1][1] = line
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def digest(root, patterns):
    """Of the files that match, and of those below folders that do; but for what is built."""
    hashed = hashlib.sha256()
    for pattern in patterns:
        for top in sorted(root.glob(pattern)):
            for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                if path.is_file() and path.suffix not in (".o", ".so", ".gcno", ".gcda", ".mo", ".pot", ".pyc"):
                    hashed.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
                    hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


def write(path, data):
    new = path.with_suffix(f".{threading.get_ident()}")
    new.write_text(json.dumps(data))
    new.replace(path)
