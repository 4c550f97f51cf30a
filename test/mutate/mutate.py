"""Changes the C code in one place at a time and sees whether the tests notice. See script/mutate --help."""

import argparse
import collections
import difflib
import hashlib
import json
import os
import pathlib
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import operators
from coverage import Coverage, percent, write
from lanes import STOP, Lane, Sandbox, Stopped

# What decides about flows; its score is told by itself.
DECIDING = ("decide", "claim", "record", "outcome", "codes", "gate", "rate", "token", "sqlrun", "notify")
DEPTH = 4  # of tables that tables use
PRINT = threading.Lock()


def say(text):
    with PRINT:
        print(text, flush=True)


# ---- what can be changed ----

def find_mutants(origin, coverage):
    """All that there are; kept with what the tests cover."""
    root = origin.source
    tool = hashlib.sha256(b"".join((pathlib.Path(__file__).parent / f"{name}.py").read_bytes()
                                   for name in ("operators", "sql", "tokens"))).hexdigest()[:16]
    kept = coverage.cache / f"mutants-{tool}.json"
    if kept.exists():
        return [operators.Mutant(path, operator, tuple((a, b, new.encode("latin-1")) for a, b, new in edits), line,
                                 tuple(map(tuple, lines)), name)
                for path, operator, edits, line, lines, name in json.loads(kept.read_text())]
    # what make hands to the compiler, with folders that do not depend on where it is called
    flags = output("make", "-s", "-C", str(root), f"PG_CONFIG={origin.pg_config}", "--eval",
                   "flags: ; @: $(info $(CPPFLAGS))", "flags")
    arguments = [re.sub(r"^-I(?=[^/])", f"-I{root}/", flag) for flag in shlex.split(flags)]
    arguments += ["-I" + output(origin.pg_config, "--includedir-server"), *output("curl-config", "--cflags").split()]
    found = operators.Finder(root, arguments).find(sorted(str(path.relative_to(root))
                                                          for path in (root / "src").rglob("*.c")))
    write(kept, [(m.path, m.operator, [(a, b, new.decode("latin-1")) for a, b, new in m.edits], m.line, m.lines, m.name)
                 for m in found])
    return found


def output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def drawn(mutants, chance):
    """In an order that the seed says: each time an operator, then one of its mutants, so that none is rare."""
    left = collections.defaultdict(list)
    for mutant in mutants:
        left[mutant.operator].append(mutant)
    for group in left.values():
        chance.shuffle(group)
    while left:
        operator = chance.choice(sorted(left))
        yield left[operator].pop()
        if not left[operator]:
            del left[operator]


# ---- which tests are asked ----

class Judges:
    """Finds the tests that cover what a mutant changes."""

    def __init__(self, root, coverage, mutants):
        self.coverage = coverage
        self.functions = collections.defaultdict(set)  # path => (first line, last line)
        for mutant in mutants:
            if not mutant.name:
                self.functions[mutant.path].add(mutant.lines[-1])
        self.uses = collections.defaultdict(set)  # name => (path, line) where it stands
        self.definitions = []  # (path, first line, last line, name) outside of functions
        for path in sorted((root / "src").rglob("*.[ch]")):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                for name in re.findall(r"[A-Za-z_]\w*", line):
                    self.uses[name].add((str(path.relative_to(root)), number))

    def of(self, mutant, names):
        """Cheapest first; those of the nearest lines that can be run, else of the lines that use its name."""
        for first, last in mutant.lines:
            tests = self.coverage.covering(mutant.path, first, last)
            if tests is not None:
                break
        else:
            tests = self._users(mutant.name, names, {mutant.name}, DEPTH)
        return self._sorted({test.name: test for test in [*tests, *self.coverage.building(mutant.path)]}.values())

    def _users(self, name, names, seen, depth):
        found = {}
        for path, line in self.uses.get(name, ()):
            tests = self.coverage.covering(path, line, line)
            if tests is None:  # what a function keeps, as its statements of SQL
                function = next((lines for lines in self.functions[path] if lines[0] <= line <= lines[1]), None)
                tests = self.coverage.covering(path, *function) if function else None
            if tests is None and depth:
                outer = names.get((path, line), "")
                tests = self._users(outer, names, seen | {outer}, depth - 1) if outer and outer not in seen else []
            found.update((test.name, test) for test in tests or ())
        return list(found.values())

    @staticmethod
    def _sorted(tests):
        return sorted((test for test in tests if not test.wrong), key=lambda test: (test.cost(), test.name))


def names_of_lines(mutants):
    """(path, line) => what stands there outside of functions."""
    return {(m.path, line): m.name for m in mutants if m.name for line in range(m.lines[0][0], m.lines[0][1] + 1)}


# ---- one mutant ----

class Bench:
    """A lane in which the extension is built again and again."""

    def __init__(self, origin, number, patience):
        self.patience = patience
        self.lane = Lane(origin, origin.folder / str(number))
        self.library = self.lane.source / "feishu_flow.so"
        self.original = self.code()

    def code(self):
        """A digest of the library's code and data."""
        bare = self.lane.folder / "home" / "bare.so"
        subprocess.run(["objcopy", "--strip-all", "--remove-section=.note.gnu.build-id", str(self.library), str(bare)],
                       check=True, start_new_session=True)
        return hashlib.sha256(bare.read_bytes()).hexdigest()

    def judge(self, mutant, tests, seen):
        """None when it does not count, else who caught it and how, or ("", "survived")."""
        path = self.lane.source / mutant.path
        text = path.read_bytes()
        path.write_bytes(mutant.apply(text))
        try:
            if self.lane.make("all") is not None:
                return None
            code = self.code()
            if code == self.original or not seen(code):
                return None
            if not tests:
                return "", "not covered"
            wrong = self.lane.make("install")
            if wrong:
                raise RuntimeError(f"make install failed:\n{wrong}")
            for test in tests:
                _, wrong = self.lane.run(test.name, test.limit(self.patience))
                if wrong:
                    return test.name, wrong
            return "", "survived"
        finally:
            path.write_bytes(text)


def difference(mutant, text):
    """As a diff of one place."""
    lines = difflib.unified_diff(
        text.decode(errors="replace").splitlines(), mutant.apply(text).decode(errors="replace").splitlines(),
        f"a/{mutant.path}", f"b/{mutant.path}", n=3, lineterm="")
    return "\n".join(lines)


# ---- a run ----

class Run:
    def __init__(self, origin, mutants, judges, count):
        self.origin = origin
        self.mutants = mutants
        self.judges = judges
        self.count = count
        self.lock = threading.Lock()
        self.codes = set()
        self.counted = self.caught = self.deciding = self.deciding_caught = self.skipped = 0
        self.begun = 0
        self.broken = None

    def next(self):
        with self.lock:
            if STOP.is_set() or self.begun >= self.count:
                return None
            mutant = next(self.mutants, None)
            self.begun += mutant is not None
            return mutant

    def seen(self, code):
        """Is this code new?"""
        with self.lock:
            new = code not in self.codes
            self.codes.add(code)
            return new

    def work(self, bench):
        try:
            while mutant := self.next():
                began = time.monotonic()
                result = bench.judge(mutant, self.judges(mutant), self.seen)
                self.note(mutant, result, time.monotonic() - began)
        except Stopped:
            pass
        except Exception as error:
            self.broken = error
            STOP.set()

    def note(self, mutant, result, seconds):
        with self.lock:
            if result is None:
                self.skipped += 1
                self.begun -= 1
                return
            deciding = re.sub(r"_.*", "", pathlib.Path(mutant.path).stem) in DECIDING
            self.counted += 1
            self.caught += bool(result[0])
            self.deciding += deciding
            self.deciding_caught += deciding and bool(result[0])
            number = self.counted
        test, how = result
        place = f"{mutant.path}:{mutant.line} ({mutant.operator}, {seconds:.0f} s)"
        if test:
            say(f"{number:4} caught    {place} by {test}: {how[:100]}")
        else:
            text = (self.origin.source / mutant.path).read_bytes()
            say(f"{number:4} SURVIVED  {place}{', not covered' if how == 'not covered' else ''}\n"
                + difference(mutant, text))

    def score(self, seed):
        say("")
        say(f"caught {self.caught} of {self.counted}, {percent(self.caught, self.counted)}; "
            f"in what decides about flows {self.deciding_caught} of {self.deciding}, "
            f"{percent(self.deciding_caught, self.deciding)}; "
            f"{self.skipped} did not count; seed {seed}")


def arguments_read():
    parser = argparse.ArgumentParser(prog="script/mutate", usage="see script/mutate --help", add_help=False)
    parser.add_argument("--work", required=True)
    parser.add_argument("--bindir", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--tests", action="append", default=[])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--patience", type=float, default=3)
    parser.add_argument("--coverage", action="store_true")
    return parser.parse_args()


def mutate(options, origin, coverage):
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    say(f"seed {seed}")
    every = find_mutants(origin, coverage)
    if STOP.is_set():
        raise Stopped
    only = [os.path.normpath(path) for path in options.only]
    wanted = [m for m in every if not only or any(m.path == path or m.path.startswith(path + "/") for path in only)]
    if not wanted:
        raise RuntimeError(f"nothing to change in {', '.join(only)}")
    names = names_of_lines(every)
    judges = Judges(origin.source, coverage, every)
    say(f"{len(wanted)} places to change; {len(coverage.tests)} tests")
    origin.build()
    run = Run(origin, drawn(wanted, random.Random(seed)), lambda mutant: judges.of(mutant, names), options.count)
    benches = [Bench(origin, i + 1, options.patience) for i in range(options.jobs)]
    coverage.try_failed(benches[0].lane, say)
    threads = [threading.Thread(target=run.work, args=(bench,)) for bench in benches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.score(seed)
    if run.broken:
        raise run.broken


def interrupted(number, _):
    """What runs is ended in order; asked once more, at once."""
    STOP.set()
    signal.signal(number, signal.SIG_DFL)


def main():
    options = arguments_read()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    origin = Sandbox(options.work, options.bindir)
    coverage = Coverage(origin, options.cache)
    try:
        coverage.record(options.tests, options.jobs, say)
        if options.coverage:
            coverage.report(say)
        else:
            mutate(options, origin, coverage)
    except Stopped:
        sys.exit(130)
    except RuntimeError as error:
        sys.exit(f"mutate: {error}")


if __name__ == "__main__":
    main()
