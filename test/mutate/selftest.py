"""The pieces of script/mutate do what they say.

Usage: python3 test/mutate/selftest.py
"""

import collections
import difflib
import pathlib
import random
import subprocess
import tempfile
import unittest

import coverage
import lanes
import mutate
import operators

HERE = pathlib.Path(__file__).resolve().parent

# The new lines that the mutants of sample.c have, by operator; blanks are one.
EXPECTED = {
    "always": {
        "if ((numbers[i] > LIMIT && loud) || 1)",
        "else if ((TWICE(numbers[i] == 0x10)) || 1)",
    },
    "never": {
        "if ((numbers[i] > LIMIT && loud) && 0)",
        "else if ((TWICE(numbers[i] == 0x10)) && 0)",
    },
    "negate": {
        "for (int i = 0; !(i < num); i++)",
        "if (!(numbers[i] > LIMIT && loud))",
        "if (!(numbers[i] > LIMIT) && loud)",
        "if (numbers[i] > LIMIT && !(loud))",
        "else if (!(TWICE(numbers[i] == 0x10)))",
        "else if (TWICE(numbers[i] != 0x10))",
        "while (!(sum > 100))",
        "} while (!(!loud));",
        "return !(flags) ? sum : -1;",
        "return number != 1;",
    },
    "compare": {
        "for (int i = 0; i <= num; i++)",
        "if (numbers[i] >= LIMIT && loud)",
        "while (sum >= 100)",
    },
    "junction": {
        "if (numbers[i] > LIMIT || loud)",
    },
    "constant": {
        "#define LIMIT 4", "#define LIMIT 6",
        '{0, "one"},', '{2, "one"},', '{1, "two, if (x < 3)"},', '{3, "two, if (x < 3)"},',
        "int sum = 1;",
        "unsigned flags = 1;",
        "for (int i = 1; i < num; i++)",
        "else if (TWICE(numbers[i] == 15))", "else if (TWICE(numbers[i] == 17))",
        "flags |= 0;", "flags |= 2;",
        "while (sum > 10)", "while (sum > 1000)",
        "(void) look(table[1].code);",
        "return flags ? sum : -0;", "return flags ? sum : -2;",
        "return number == 0;", "return number == 2;",
    },
    "assignment": {
        "(void) (look(numbers[i]));",
        ";",  # flags |= 1, sum--
    },
    "call": {
        ";",  # note(), look()
    },
    "row": {
        "",
    },
    "where": {
        "#define ALL_OF(column) \" WHERE (\" column \" = 1 OR true) AND state = 'q'\"",
        "#define ALL_OF(column) \" WHERE \" column \" = 1 AND (state = 'q' OR true)\"",
        '"SELECT * FROM t WHERE (a = $1 OR true) AND (b BETWEEN 1 AND 2 OR c)"',
        '"SELECT * FROM t WHERE a = $1 AND ((b BETWEEN 1 AND 2 OR c) OR true)"',
        '" AND (NOT EXISTS (SELECT FROM u WHERE u.id = t.id) OR true) ORDER BY d";',
        '" AND NOT EXISTS (SELECT FROM u WHERE (u.id = t.id OR true)) ORDER BY d";',
    },
}
NUMBERS = {"assignment": 3, "call": 2, "row": 2}  # mutants, where lines look the same


def new_line(old, new):
    added = [line[1:] for line in difflib.ndiff(old.decode().split("\n"), new.decode().split("\n")) if line[0] == "+"]
    return " ".join(" ".join(added).split())


class Operators(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        finder = operators.Finder(HERE, [])
        cls.mutants = finder.find(["sample.c"])
        cls.texts = {path: source.text for path, source in finder.sources.items()}

    def test_mutants(self):
        found = collections.defaultdict(set)
        for mutant in self.mutants:
            text = self.texts[mutant.path]
            found[mutant.operator].add(new_line(text, mutant.apply(text)))
        for operator in EXPECTED.keys() | found.keys():
            self.assertEqual(found[operator], EXPECTED.get(operator, set()), operator)
        numbers = collections.Counter(mutant.operator for mutant in self.mutants)
        for operator, expected in EXPECTED.items():
            self.assertEqual(numbers[operator], NUMBERS.get(operator, len(expected)), operator)

    def test_mutants_compile_and_keep_the_lines(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for path, text in self.texts.items():
                (folder / path).write_bytes(text)
            for mutant in self.mutants:
                old = self.texts[mutant.path]
                new = mutant.apply(old)
                self.assertEqual(new.count(b"\n"), old.count(b"\n"), mutant)
                (folder / mutant.path).write_bytes(new)
                subprocess.run(["cc", "-fsyntax-only", "-w", str(folder / "sample.c")], check=True)
                (folder / mutant.path).write_bytes(old)

    def test_those_outside_of_functions_have_a_name(self):
        names = {mutant.name for mutant in self.mutants}
        self.assertEqual(names, {"", "LIMIT", "ALL_OF", "table", "query"})

    def test_a_seed_says_the_order(self):
        first, again, other = (list(mutate.drawn(self.mutants, random.Random(seed))) for seed in (1, 1, 2))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)
        self.assertEqual(set(first), set(self.mutants))


class Ranges(unittest.TestCase):
    def test_a_range_goes_on_over_lines_that_cannot_be_run(self):
        self.assertEqual(coverage.ranges({3, 9, 12}, {1, 3, 9, 10, 12}), "3-9, 12")


class Lanes(unittest.TestCase):
    """With a lane.sh that does as its test's name says."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        origin = lanes.Sandbox(pathlib.Path(folder.name) / "origin", "bin")
        script = origin.source / "test" / "mutate" / "lane.sh"
        script.parent.mkdir(parents=True)
        (origin.folder / "pg").mkdir()
        script.write_text('sleep 1000 & echo $! >"$1/../pid"\neval "$2"\n')
        self.lane = lanes.Lane(origin, pathlib.Path(folder.name) / "lane")

    def run_test(self, command, limit=60):
        _, wrong = self.lane.run(command, limit)
        self.assertFalse(lanes.alive((self.lane.folder / "../pid").read_text().strip()))
        self.assertEqual({path.name for path in self.lane.folder.iterdir()}, {"src", "pg", "home", "sock", "tmp"})
        return wrong

    def test_success(self):
        self.assertIsNone(self.run_test('echo ok 1; touch "$1/left"'))

    def test_the_first_failure_ends_it(self):
        self.assertEqual(self.run_test("echo ok 1; echo not ok 2 - so; sleep 1000"), "not ok 2 - so")

    def test_a_bad_end(self):
        self.assertEqual(self.run_test("echo because; exit 1"), "because")

    def test_too_long(self):
        self.assertEqual(self.run_test("sleep 1000", 1), "took longer than 1 s")


if __name__ == "__main__":
    unittest.main()
