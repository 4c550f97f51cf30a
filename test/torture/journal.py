"""
What the clients of a campaign know: which transactions they saw committed or rolled back, what functions told them.

Each flow has a number of its own, "n" in its params. A transaction's numbers are acknowledged when its COMMIT was
answered, undone when it was rolled back, and unknown when the connection was lost in between.
"""
import collections
import threading

PER_WORKER = 10_000_000


class Journal:
    def __init__(self):
        self.lock = threading.Lock()
        self.acknowledged, self.undone, self.unknown = set(), set(), set()
        self.succeeded = set()  # numbers of which wait_flow said so
        self.cancelled = {}     # number -> time at which a cancel's COMMIT was answered
        self.calls = {}         # key -> outcome of a synchronous call: "ok" or an SQLSTATE
        self.ended = {}         # key -> (time, context): when the statement of a call that was cancelled had ended
        self.counts = collections.Counter()
        self.errors = collections.Counter()  # SQLSTATE and message of what no client should see

    def count(self, what, number=1):
        with self.lock:
            self.counts[what] += number

    def unexpected(self, problem):
        with self.lock:
            self.errors[str(problem)[:200]] += 1


class Transaction:
    """The numbers of one transaction, with its savepoints."""

    def __init__(self, journal):
        self.journal, self.numbers = journal, []

    def mark(self):
        """For undo_to."""
        return len(self.numbers)

    def undo_to(self, mark):
        self.journal.undone.update(self.numbers[mark:])
        del self.numbers[mark:]

    def _end(self, numbers, what):
        with self.journal.lock:
            numbers.update(self.numbers)
            self.journal.counts[what] += 1

    def committed(self):
        self._end(self.journal.acknowledged, "committed")

    def rolled_back(self):
        self._end(self.journal.undone, "rolled back")

    def lost(self):
        self._end(self.journal.unknown, "unknown")
