"""
The reckoning: what committed (the table marker, and the clients' journal), what the platform saw and started (its own
files), and what the extension says became of each flow (feishu_internal.outbox) must be one story.

A finding is a list of numbers that nobody wants to see; most of them end the campaign with an error:

  lost            committed, acknowledged or not, and yet: not in the queue, or given up without need, or recorded as
                  sent and never started; or acknowledged and not there at all
  started twice   started more often than retry_flow with a new key allows
  handled twice   the handler of a flow had its effect more often than the flow ended
  uncommitted     rolled back, and yet on the wire
  wrong record    recorded otherwise than it was: see the methods
  fifo            sent before one of its ordering key that was to go first had ended
  unbounded       more requests of queued flows at once than max_in_flight, more of a server than its max_rate, or more
                  memory of a dispatcher than there should be
  ghosts          sent after the statement that called had ended
  held up         by hostile clients: see siege.py
  stuck           not ended at the deadline

Others are what nobody can know better over a network, and are counted to see that they stay few: see NOTES.
"""
import collections
import re

import servers
from calls import check_ghosts
from platform_faults import APPS, lines_of

QUEUED = """
SELECT o.params->>'n', o.id, o.state, o.unanswered, o.attempts, o.server, o.ordering_key, o.idempotent_key,
  o.execution_id, o.sqlstate, o.error, pg_get_userbyid(o.roleid)
FROM feishu_internal.outbox o ORDER BY o.id
"""
# Flows with a handler: its state, and the effects that it had, in their order.
HANDLED = """
SELECT o.params->>'n', o.id, o.roleid, o.state, coalesce(o.handler_state, 'waiting'), o.end_number,
  array_to_string(array_agg(h.step ORDER BY h.step), ' ')
FROM feishu_internal.outbox o LEFT JOIN handled h ON h.flow = o.id
WHERE o.on_end IS NOT NULL AND o.state <> 'q' GROUP BY o.id ORDER BY o.roleid, o.end_number
"""
# Flows with attempts that went wrong, or that should have some: their rows, the first and the last, and the count.
ATTEMPTS = """
SELECT o.id, o.params->>'n', o.state, o.attempts, coalesce(o.failures, 0), count(a.flow), coalesce(min(a.attempt), 0),
  coalesce(max(a.attempt), 0)
FROM feishu_internal.outbox o LEFT JOIN feishu_internal.attempt a ON a.flow = o.id
WHERE o.state <> 'q' GROUP BY o.id
HAVING o.attempts <> (o.state = 's')::int OR o.failures IS NOT NULL OR count(a.flow) > 0
"""
ATTEMPTS_KEPT = 100
# Those that are nobody's.
ORPHANS = """
SELECT flow, count(*) FROM feishu_internal.attempt a
WHERE NOT EXISTS (SELECT FROM feishu_internal.outbox o WHERE o.id = a.flow) GROUP BY flow
"""
Flow = collections.namedtuple("Flow", "n id state unanswered attempts server lane key execution_id sqlstate error role")

ENDS = {"q": "unfinished", "s": "succeeded", "f": "failed", "u": "unconfirmed", "c": "cancelled"}
FATAL = ("lost", "started twice", "handled twice", "uncommitted", "wrong record", "fifo", "stuck", "unbounded",
         "ghosts", "held up", "dispatcher deaths", "went wrong by itself")
NOTES = ("given up after an attempt that was not answered, and had run",
         "cancelled or refused after such an attempt, and had not run", "refused in words that could not be read",
         "replaced after a crash, and had run")
GAVE_UP, NOT_RUN, GARBLED, REPLACED = NOTES
LIMITED = next(app for app, name in APPS.items() if name == "limited")
CALLS = ("callFlow", "slowCall")
NUMBER = re.compile(r'"n": ?(\d+)')  # params may have been cut
# Kinds of flows that may fail, and how.
NO_ANSWER = ("LK500", "LK502", "LK503", "LK504")
MAY_FAIL = {"refused": ("LK400",), "rejected": ("LK400",), "few": NO_ANSWER, "brief": NO_ANSWER,
            "number": ("LK400", *NO_ANSWER), "bomb": NO_ANSWER, "hang": NO_ANSWER}
REFUSED = ("refused", "rejected", "number")
LARGE, TOO_LARGE = ("large", "huge", "number"), "HTTP status 413"  # what the front may refuse
RATE, WINDOW, BURST = 60, 10, 180  # of the server with a max_rate; requests of so many seconds, above the rate
TOO_LATE = "cancelled after it was sent"
EXHAUSTED = "; given up after"  # all attempts ended with their dispatchers, unanswered
# Seconds that the platform may take to see that a client has gone.
GONE = 0.5
GARBLED_REFUSAL = "not the platform's; HTTP status 400"


class Truth:
    """Everything that is known at the end."""

    def __init__(self, session, journal, platform):
        self.journal = journal
        self.flows = collections.defaultdict(list)
        for n, number, state, unanswered, attempts, *rest in session.ask(QUEUED):
            flow = Flow(int(n), int(number), state, unanswered == "t", int(attempts), *rest)
            self.flows[flow.n].append(flow)
        self.markers = {int(n): (flow and int(flow), kind)
                        for n, flow, kind in session.ask("SELECT n, flow, kind FROM marker")}
        # flow id -> numbers that were saved with it, in this order
        self.saved = collections.defaultdict(list)
        for n, flow in session.ask("SELECT n, flow FROM marker WHERE kind = 'saved' ORDER BY step"):
            self.saved[int(flow)].append(int(n))
        self.cancelled = {int(n) for n, in session.ask("SELECT n FROM cancelled")}
        self.retried = collections.defaultdict(list)
        for n, new_key in session.ask("SELECT n, new_key FROM retried"):
            self.retried[int(n)].append(new_key == "t")
        self.handled = session.ask(HANDLED)
        self.attempts, self.orphans = session.ask(ATTEMPTS), session.ask(ORPHANS)
        self.calls_ended = {key: (float(at), context) for key, at, context in
                            session.ask("SELECT key, extract(epoch FROM at), context FROM ended")}
        self.calls_ended.update(journal.ended)
        self.read_platform(platform)

    def read_platform(self, platform):
        """started: n -> execution ids; requests: n -> [(arrival, key)]; the same of synchronous calls, by key; spans:
        when a request of a queued flow arrived and ended."""
        self.started, self.requests = collections.defaultdict(list), collections.defaultdict(list)
        self.calls_started, self.calls_arrived = collections.Counter(), collections.defaultdict(list)
        self.calls_not_refused = set()  # keys of those that the platform has not answered with a refusal
        self.spans, self.most_at_once, self.limited = [], 0, []
        self.count_started = self.count_requests = 0
        for line in lines_of(platform.state):
            self.count_started += 1
            if line["flow_id"] in CALLS:
                self.calls_started[line["key"]] += 1
            else:
                self.started[line["params"]["n"]].append(line["execution_id"])
        for line in lines_of(platform.log):
            self.count_requests += 1
            if line["kind"] == "execute" and line["app_id"] == LIMITED:
                self.limited.append(line["time"])
            if line["kind"] == "execute" and line["flow_id"] in CALLS:
                self.calls_arrived[line["key"]].append(line["time"])
                if line["status"] != 400 or line["aborted"]:
                    self.calls_not_refused.add(line["key"])
            elif line["kind"] == "execute":
                n = int(NUMBER.search(line["json"]["params"])[1])
                self.requests[n].append((line["time"], line["key"]))
                self.spans.append((line["time"], ended_at(line)))

    def every(self):
        """All flows that are where one expects them: (n, kind, flow)."""
        for n, (_, kind) in self.markers.items():
            for flow in self.flows.get(n, ()):
                yield n, kind, flow


def ended_at(line):
    """When a request was over for its client. That a stream of HTTP/2 is reset may wait behind what is large, of
    others; its timeout is known."""
    if not line["aborted"]:
        return line["done"]
    at_last = line["time"] + servers.TIMEOUT if "x-front" in line["headers"] else line["done"]
    return max(line["time"], min(line["done"], at_last) - GONE)


def reconcile(truth):
    """-> {finding: [text]}"""
    found = collections.defaultdict(list)
    for check in (check_committed, check_uncommitted, check_ends, check_cancelled, check_keys, check_calls, check_order,
                  check_bound, check_ghosts, check_handlers, check_attempts):
        check(truth, lambda what, text: found[what].append(text))
    return found


def check_committed(truth, report):
    """What committed is in the queue, once, under the id that enqueue_flow gave."""
    for n in truth.journal.acknowledged - truth.markers.keys():
        report("lost", f"{n}: its commit was acknowledged, and is not there")
    for n in truth.journal.undone & truth.markers.keys():
        report("wrong record", f"{n}: was rolled back, and is there")
    for n, (number, kind) in truth.markers.items():
        flows = truth.flows.get(n, ())
        if kind == "twin":
            # its key was queued by the one before it
            if flows or truth.started.get(n) or number not in (None, truth.markers[n - 1][0]):
                report("wrong record", f"{n}: its key was queued again, as {number}")
        elif kind == "saved" and truth.saved[number][-1] != n:
            # a claim that a crash has lost may have sent it
            if flows:
                report("lost", f"{n}: was replaced in flow {number}, by {truth.saved[number]}, and is there")
            elif truth.started.get(n):
                report(REPLACED, f"{n}: was replaced in flow {number}, by {truth.saved[number]}, and started")
        elif not flows:
            report("lost", f"{n} ({kind}): committed, and not in the queue")
        elif len(flows) > 1 or number not in (None, flows[0].id):
            report("wrong record", f"{n} ({kind}): queued as {number}, and there are {[f.id for f in flows]}")


def check_handlers(truth, report):
    """Each flow that ended has one effect of its handler, in the order of the ends; one that was retried may have one
    for each of its ends."""
    last = {}
    for n, number, role, state, handler, end, steps in truth.handled:
        retries, steps = len(truth.retried.get(int(n), ())), [int(step) for step in (steps or "").split()]
        what = f"{n}: handler {handler} of flow {number}, end {end} ({ENDS[state]}), effects {steps}, retried {retries}"
        if handler == "waiting" or end is None:
            report("stuck", what)
        elif handler != "s" or not steps:
            report("lost", what)
        elif len(steps) > 1 + retries:
            report("handled twice", what)
        # a cancel may commit after later ends were handled
        if steps and not retries and state in "sf":
            if last.get(role, (0, ""))[0] > steps[0]:
                report("fifo", f"{what}, before {last[role][1]}")
            last[role] = (steps[0], what)


def check_attempts(truth, report):
    """Each attempt that went wrong has a row, of the last ones of a flow, and nothing else has; but for a flow that was
    repaired and had none."""
    for number, n, state, *counts in truth.attempts:
        attempts, failures, rows, first, last = map(int, counts)
        wrong = attempts - (state == "s")
        retried = n is not None and truth.retried.get(int(n))
        if failures != last or rows != min(last, ATTEMPTS_KEPT) or rows and first != last - rows + 1 or \
                (last < wrong if retried else last != wrong):
            report("wrong record", f"flow {number} ({n}): {ENDS[state]} after {attempts} attempts, "
                   f"{failures} went wrong, and there are {rows} rows of these, {first} to {last}; retried {retried}")
    for number, rows in truth.orphans:
        report("wrong record", f"flow {number} is gone, and {rows} of its attempts are not")


def check_uncommitted(truth, report):
    for n in truth.flows.keys() - truth.markers.keys():
        report("wrong record", f"{n}: in the queue, and not committed")
    for n in (truth.started.keys() | truth.requests.keys()) - truth.markers.keys():
        report("uncommitted", f"{n}: not committed, started {len(truth.started.get(n, ()))} times, "
               f"{len(truth.requests.get(n, ()))} requests")


def check_ends(truth, report):
    """Each flow has the end that the platform's records bear out."""
    for n, kind, flow in truth.every():
        what = (f"{n} ({kind}): {ENDS[flow.state]} after {flow.attempts} attempts, unanswered {flow.unanswered}, "
                f"{flow.sqlstate} {flow.error}; flow {flow.id}, started {truth.started.get(n)}, "
                f"retried {truth.retried.get(n)}")
        started, retries = truth.started.get(n, []), truth.retried.get(n, [])
        if len(started) > 1 + sum(retries):
            report("started twice", what)
        if flow.state == "q":
            report("stuck", what)
        elif flow.state == "s" and not started:
            report("lost", what)
        elif flow.state == "s" and flow.execution_id not in started and kind != "bomb":
            report("wrong record", what + f": execution {flow.execution_id}")
        elif flow.state == "u" and not started:
            # a refusal that may have been for the key, or nobody asked again
            report(NOT_RUN if flow.unanswered and (kind in REFUSED or refused_large(kind, flow)
                                                   or TOO_LATE in flow.error or EXHAUSTED in flow.error)
                   else "lost", what)
        elif flow.state == "f" and not retries and flow.sqlstate not in MAY_FAIL.get(kind, ()) and \
                not refused_large(kind, flow):
            # a refusal of which only the HTTP status could be read
            report(GARBLED if GARBLED_REFUSAL in flow.error else "lost", what)
        elif flow.state in "fc" and started and not retries:
            report(GAVE_UP if flow.state == "f" and flow.unanswered else "wrong record", what)
        if flow.state != "s" and not retries and n in truth.journal.succeeded:
            report("wrong record", what + ": wait_flow had said that it succeeded")


def refused_large(kind, flow):
    return kind in LARGE and flow.server == "http2" and TOO_LARGE in (flow.error or "")


def check_cancelled(truth, report):
    """What cancel_flow cancelled stays so, and nothing is sent from then on."""
    for n, kind, flow in truth.every():
        if truth.retried.get(n):
            continue
        if (flow.state == "c") != (n in truth.cancelled):
            report("wrong record", f"{n} ({kind}): {ENDS[flow.state]}, cancel_flow was "
                   f"{'true' if n in truth.cancelled else 'never true'}")
        late = [at for at, _ in truth.requests.get(n, ()) if at > truth.journal.cancelled.get(n, at)]
        if late:
            report("wrong record", f"{n} ({kind}): sent {len(late)} times after it was cancelled")
        if n in truth.cancelled and truth.started.get(n):
            report("wrong record", f"{n} ({kind}): cancelled, and started {truth.started[n]}")


def check_keys(truth, report):
    """All attempts of a flow carry one key."""
    for n, kind, flow in truth.every():
        keys = {key for _, key in truth.requests.get(n, ())}
        if len(keys) > 1 + sum(truth.retried.get(n, ())):
            report("wrong record", f"{n} ({kind}): sent with keys {sorted(keys)}")
        if truth.requests.get(n) and flow.key not in keys and flow.state != "c" and not truth.retried.get(n):
            report("wrong record", f"{n} ({kind}): sent with keys {sorted(keys)}, has {flow.key}")


def check_calls(truth, report):
    for key, outcome in truth.journal.calls.items():
        started = truth.calls_started[key]
        if started > 1:
            report("started twice", f"{key}: a call, {started} times")
        if outcome in ("ok", "LK409") and not started:
            report("lost", f"{key}: a call, {outcome}, and not started")


def check_order(truth, report):
    """Of an ordering key, a flow goes when all before it have ended: their last request came before its first. Those
    that were retried have left the line."""
    lanes = collections.defaultdict(list)
    for n, kind, flow in truth.every():
        # a client queues an ordering key's flows one after the other, but not in the order of their ends with PREPARE
        if flow.lane and not truth.retried.get(n) and truth.requests.get(n):
            lanes[flow.server, flow.role, flow.lane].append((flow.id, n, kind))
    for lane, flows in lanes.items():
        before, whose = 0, None
        for _, n, kind in sorted(flows):
            times = [at for at, _ in truth.requests[n]]
            if min(times) < before:
                report("fifo", f"{n} ({kind}) of {lane}: sent {before - min(times):.3f} s before the last request of "
                       f"{whose}")
            if max(times) > before:
                before, whose = max(times), n


def check_bound(truth, report):
    """No more requests of queued flows at once than max_in_flight. That a client has gone, the platform sees a moment
    later."""
    changes = []
    for arrived, ended in truth.spans:
        changes += [(arrived, 1), (ended, -1)]
    now, over = 0, False
    for at, change in sorted(changes):
        now += change
        truth.most_at_once = max(truth.most_at_once, now)
        if now > servers.IN_FLIGHT and not over:
            report("unbounded", f"{now} at once at {at:.3f}")
        over = now > servers.IN_FLIGHT
    check_rate(truth.limited, report)


def check_rate(times, report):
    """What a server that starts anew has forgotten, and what the platform, busy, sees late, comes on top."""
    times = sorted(times)
    for first, last in zip(times, times[RATE * WINDOW + BURST:]):
        if last - first < WINDOW:
            report("unbounded", f"{RATE * WINDOW + BURST} requests of the limited server in {last - first:.1f} s")
            break
