"""
The load of a campaign: sessions that queue flows in every way there is, cancel and retry them, call flows, and
reconnect when their server is gone.

Every flow is queued by the statement that writes its number into the table marker, so what the table has in the end
is what committed, whatever the client got to know of it.
"""
import collections
import random
import threading
import time

import wire
from journal import PER_WORKER, Transaction

HANDLED = 0.3  # of the flows have a handler
PRIORITIZED = 0.5  # have a priority of their own
LANES = 200  # roles that queue a few flows each
SERVERS = ("feishu", "feishu", "oauth", "limited", "http2", "moves")
ROLES = ("app1", "app2")
OPERATOR = "'{\"_id\": 1111}'"

SCHEMA = """
CREATE EXTENSION feishu_flow;
CREATE ROLE app1 LOGIN;
CREATE ROLE app2 LOGIN;
CREATE TABLE marker (n bigint PRIMARY KEY, flow bigint, kind text NOT NULL, step bigserial);
CREATE TABLE cancelled (n bigint NOT NULL);
CREATE TABLE retried (n bigint NOT NULL, new_key boolean NOT NULL);
CREATE TABLE orders (n bigint PRIMARY KEY, lane text NOT NULL);
CREATE TABLE batch (n bigint NOT NULL, line int NOT NULL);
CREATE TRIGGER row_flow AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION
  feishu.flow_trigger('app', 'rowFlow', '{"_id": 1111}', '{"n": "$.new.n"}', '{"ordering_key": "$.new.lane"}');
CREATE TRIGGER batch_flow AFTER INSERT ON batch REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION
  feishu.flow_trigger('app', 'batchFlow', '{"_id": 1111}', '{"n": "$.new_rows[0].n", "lines": "$.new_rows.size()"}',
  '{"server": "oauth"}');
GRANT SELECT, INSERT ON marker, cancelled, retried, orders, batch TO app1, app2;
GRANT INSERT ON marker TO PUBLIC;
GRANT USAGE ON SEQUENCE marker_step_seq TO PUBLIC;
CREATE TABLE handled (step bigserial, flow bigint NOT NULL);
GRANT ALL ON handled, handled_step_seq TO app1, app2;
-- a handler that fails, and ends its session, at random
CREATE FUNCTION handle(f feishu.flows) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.handled (flow) VALUES (f.id);
  IF random() < 0.03 THEN RAISE EXCEPTION 'at random'; END IF;
  IF random() < 0.002 THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); END IF;
END $$;
DO $$ BEGIN FOR i IN 1..{lanes} LOOP EXECUTE format('CREATE ROLE lane%s ROLE app1, app2', i); END LOOP; END $$;
-- text that no compression makes small
CREATE FUNCTION noise(size int) RETURNS text LANGUAGE sql AS
$$ SELECT string_agg(md5(random()::text), '') FROM generate_series(1, size / 32) $$;
"""
DISK_FULL = "53100"

SERVER = """
CREATE SERVER {name} FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url '{url}' {options});
CREATE USER MAPPING FOR PUBLIC SERVER {name} OPTIONS (app_id '{app}', app_secret '{secret}');
GRANT USAGE ON FOREIGN SERVER {name} TO PUBLIC;
"""
SERVER_OPTIONS = {"feishu": "", "oauth": ", token_url '{url}/oauth/v3/token', max_concurrency '5'",
                  "limited": ", max_rate '60'", "narrow": ", max_concurrency '1'", "http2": ", ca_file '{certificate}'",
                  "moves": ""}


def create_schema(session, platform, apps, peers):
    usual = f"http://127.0.0.1:{platform.port}"
    urls = {"http2": peers.front.url, "moves": f"http://{peers.name.host()}:{platform.port}"}
    session.ask(SCHEMA.replace("{lanes}", str(LANES)))
    for app, name in apps.items():
        options = SERVER_OPTIONS[name].format(url=usual, certificate=peers.front.certificate)
        session.ask(SERVER.format(name=name, url=urls.get(name, usual), app=app, secret=platform.secrets[app],
                                  options=options))


class Worker(threading.Thread):
    """One client, with one session at a time."""

    # How often each is done, of all.
    STEPS = {"queue": 30, "nested": 10, "rows": 8, "batch": 4, "prepared": 3, "linger": 2, "vanish": 2, "cancel": 12,
             "far": 5, "retry": 5, "call": 8, "impatient_call": 2, "wait": 4, "pause": 1, "save": 8, "spread": 0.5,
             "bulk": 0.1}
    # And of the flows queued which way.
    KINDS = {"plain": 10, "own": 3, "ordered": 8, "later": 4, "few": 3, "brief": 2, "refused": 2, "rejected": 1,
             "large": 1, "huge": 0.15, "pair": 1}

    def __init__(self, number, pair, journal, seed, pace):
        super().__init__(daemon=True)
        self.pair, self.journal, self.random, self.pace = pair, journal, random.Random(seed), pace
        self.number, self.role = number, ROLES[number % len(ROLES)]
        self.next_number = number * PER_WORKER
        self.session, self.problem, self.stopping = None, None, threading.Event()
        self.recent = collections.deque(maxlen=40)  # (n, flow id) of ours that may be cancelled or retried

    def run(self):
        steps, weights = [getattr(self, name) for name in self.STEPS], list(self.STEPS.values())
        try:
            while not self.stopping.is_set():
                try:
                    if self.session is None:
                        self.session = self.pair.session(self.role)
                        if self.random.random() < 0.3:
                            self.cancel_all()
                    self.random.choices(steps, weights)[0]()
                except wire.Lost:
                    self.session = None
                    time.sleep(0.05)
                except wire.SqlError as problem:
                    if problem.sqlstate == DISK_FULL:
                        self.journal.count("refused by a full disk")
                    else:
                        self.journal.unexpected(problem)
                    self.session.drop()
                    self.session = None
                time.sleep(self.random.expovariate(1 / self.pace))
            if self.session:
                self.session.close()
        except Exception as problem:  # pylint: disable=broad-except # (for the campaign to raise)
            self.problem = problem

    # -- queueing

    def number_one(self):
        self.next_number += 1
        return self.next_number

    def enqueue(self, transaction, kind=None, replace_key=None):
        """Queues a flow of some kind; one statement."""
        kind = kind or self.random.choices(list(self.KINDS), self.KINDS.values())[0]
        n, key = self.number_one(), None
        arguments = {"server": f"'{self.random.choice(SERVERS)}'"}
        flow_id, seconds = "plainFlow", self.random.uniform(0, 3)
        if kind in ("own", "pair"):
            flow_id, key = "ownFlow", f"{kind}-{n}"
        elif kind == "ordered":
            # another role has the same keys, and they are others
            arguments["ordering_key"] = f"'lane-{self.number // 2}-{self.random.randint(0, 2)}'"
        elif kind == "later":
            arguments["run_at"] = f"now() + '{seconds:.6f} s'"
        elif kind == "far":
            arguments["run_at"] = "now() + '1 hour'"
        elif kind == "few":
            arguments["max_attempts"] = str(self.random.randint(1, 3))
        elif kind == "brief":
            arguments["expires_at"] = f"clock_timestamp() + '{seconds + 0.5:.6f} s'"
        elif kind in ("refused", "rejected"):
            flow_id = kind + "Flow"
        if self.random.random() < PRIORITIZED:
            arguments["priority"] = str(self.random.choice((-100, -1, -1, 0, 1, 7, 100)))
        if self.random.random() < HANDLED:
            arguments["on_end"] = "'public.handle'"
        operator, params = OPERATOR, None
        padding = ", \"padding\": \"" + "x" * self.random.randint(1000, 200000) + "\"" if kind == "large" else ""
        if replace_key:
            arguments["replace_key"] = f"'{replace_key}'"
            arguments["server"] = "'feishu'"
            arguments["run_at"] = f"now() + '{self.random.uniform(-1, 2):.6f} s'"
        if key:
            arguments["idempotent_key"] = f"'{key}'"
        if kind == "huge":
            text = self.random.choice(("noise(%d)", "repeat('x', %d)"))
            operator = f"jsonb_build_object('_id', 1111, 'x', {text % self.random.randint(1, 2000000)})"
            params = f"jsonb_build_object('n', {{}}, 'padding', {text % self.random.randint(1, 2000000)})"
            arguments["loop_masks"] = f"jsonb_build_array({text % self.random.randint(1, 1000000)})"
        rest = "".join(f", {name} => {value}" for name, value in arguments.items())
        for number, kind in [(n, kind)] + ([(self.number_one(), "twin")] if kind == "pair" else []):
            transaction.numbers.append(number)
            value = params.format(number) if params else f"'{{\"n\": {number}{padding}}}'"
            self.session.ask(f"INSERT INTO marker SELECT {number}, feishu.enqueue_flow('app', '{flow_id}', {operator}, "
                             f"{value}{rest}), '{kind}'")
        return n

    def transact(self, work, commit=0.9):
        """BEGIN, work(transaction), COMMIT or ROLLBACK; true if it is known to have committed."""
        transaction = Transaction(self.journal)
        try:
            self.session.ask("BEGIN")
            work(transaction)
            if self.random.random() >= commit:
                self.session.ask("ROLLBACK")
                transaction.rolled_back()
                return False
            self.session.ask("COMMIT")
            transaction.committed()
            return True
        except wire.Lost:
            transaction.lost()
            raise
        except wire.SqlError:
            transaction.rolled_back()
            raise

    def remember(self, numbers):
        if numbers:
            rows = self.session.ask(f"SELECT n, flow FROM marker WHERE n = ANY ('{{{','.join(map(str, numbers))}}}')")
            self.recent.extend((int(n), int(flow)) for n, flow in rows if flow)

    def queue(self):
        numbers = []
        if self.transact(lambda t: numbers.extend(self.enqueue(t) for _ in range(self.random.choice((1, 1, 1, 2, 5))))):
            self.remember(numbers)

    def save(self):
        """Of what others save, too, the last values count. One key a transaction: two could deadlock."""
        key = f"saved-{self.random.randint(0, 9)}"

        def work(transaction):
            self.enqueue(transaction, "saved", key)
            if self.random.random() < 0.3:
                self.session.ask("SAVEPOINT s")
                mark = transaction.mark()
                self.enqueue(transaction, "saved", key)
                if self.random.random() < 0.5:
                    self.session.ask("ROLLBACK TO s")
                    transaction.undo_to(mark)
            if self.random.random() < 0.1:
                time.sleep(self.random.uniform(0, 0.5))
        self.transact(work)

    def spread(self):
        """A flow or two of each of many roles."""
        def work(transaction):
            lanes = self.random.sample(range(1, LANES + 1), self.random.randint(20, LANES))
            lanes += lanes[:len(lanes) // 4]
            first = self.next_number + 1
            transaction.numbers += [self.number_one() for _ in lanes]
            self.session.ask(f"""
DO $$ DECLARE n bigint := {first}; lane text; BEGIN
  FOREACH lane IN ARRAY '{{{",".join(map(str, lanes))}}}'::text[] LOOP
    PERFORM set_config('role', 'lane' || lane, true);
    INSERT INTO public.marker SELECT n, feishu.enqueue_flow('app', 'laneFlow', {OPERATOR}, jsonb_build_object('n', n),
      server => (ARRAY['oauth', 'limited', 'feishu', 'feishu', 'feishu', 'feishu', 'feishu'])[1 + n % 7],
      priority => (n % 3 - 1)::integer), 'lane';
    n := n + 1;
  END LOOP;
END $$; RESET ROLE""")
        self.transact(work)

    def bulk(self):
        """Some large flows at once."""
        self.transact(lambda t: [self.enqueue(t, "huge") for _ in range(self.random.randint(3, 10))])

    def nested(self):
        """Savepoints, of which some are rolled back."""
        def work(transaction):
            depth = 0
            marks = []
            for _ in range(self.random.randint(2, 8)):
                what = self.random.random()
                if what < 0.35:
                    depth += 1
                    marks.append(transaction.mark())
                    self.session.ask(f"SAVEPOINT s{depth}")
                elif what < 0.55 and depth:
                    self.session.ask(f"ROLLBACK TO s{depth}")
                    transaction.undo_to(marks[-1])
                elif what < 0.65 and depth:
                    self.session.ask(f"RELEASE s{depth}")
                    depth -= 1
                    marks.pop()
                else:
                    self.enqueue(transaction)
        self.transact(work)

    def rows(self):
        """Row triggers."""
        def work(transaction):
            first = self.next_number + 1
            count = self.random.randint(1, 5)
            transaction.numbers += [self.number_one() for _ in range(count)]
            self.session.ask(f"INSERT INTO orders SELECT n, 'rows-{self.number}-' || n % 3 "
                             f"FROM generate_series({first}, {first + count - 1}) n")
            self.session.ask(f"INSERT INTO marker SELECT n, NULL, 'row' "
                             f"FROM generate_series({first}, {first + count - 1}) n")
        self.transact(work)

    def batch(self):
        """Statement triggers."""
        def work(transaction):
            n = self.number_one()
            transaction.numbers.append(n)
            self.session.ask(f"INSERT INTO batch SELECT {n}, g FROM generate_series(1, {self.random.randint(1, 50)}) g")
            self.session.ask(f"INSERT INTO marker VALUES ({n}, NULL, 'batch')")
        self.transact(work)

    def prepared(self):
        """Two-phase commit. Who has PREPARE acknowledged comes back to end it, however often the server dies."""
        transaction = Transaction(self.journal)
        name = f"two-{self.next_number}"
        try:
            self.session.ask("BEGIN")
            for _ in range(self.random.randint(1, 3)):
                self.enqueue(transaction, self.random.choice(("plain", "own", "later")))
            self.session.ask(f"PREPARE TRANSACTION '{name}'")
        except wire.Lost:
            transaction.lost()
            raise
        except wire.SqlError:
            transaction.rolled_back()
            raise
        time.sleep(self.random.uniform(0, 0.5))
        commit = self.random.random() < 0.7
        asked = False
        while True:
            try:
                if self.session is None:
                    self.session = self.pair.session(self.role)
                self.session.ask(f"{'COMMIT' if commit else 'ROLLBACK'} PREPARED '{name}'")
                break
            except wire.Lost:
                self.session, asked = None, True
                time.sleep(0.05)
            except wire.SqlError as problem:
                if problem.sqlstate == "55000" or problem.sqlstate == "55006":
                    time.sleep(0.05)  # the backend of before is still at it
                elif problem.sqlstate == "42704" and asked:
                    break  # done, and only the answer was lost
                else:
                    raise
        if commit:
            transaction.committed()
        else:
            transaction.rolled_back()

    def linger(self):
        """A transaction that commits late: others have been sent whose ids are higher."""
        def work(transaction):
            self.enqueue(transaction, self.random.choice(("plain", "own", "few")))
            time.sleep(self.random.uniform(0.3, 2))
        self.transact(work)

    def vanish(self):
        """A client that dies in the middle of a transaction."""
        transaction = Transaction(self.journal)
        try:
            self.session.ask("BEGIN")
            self.enqueue(transaction)
        except wire.SqlError:
            pass
        transaction.rolled_back()
        self.session.drop()
        self.session = None

    # -- cancelling, retrying, waiting

    def far(self):
        """What nobody will see sent, unless it is cancelled and retried."""
        numbers = []
        if self.transact(lambda t: numbers.append(self.enqueue(t, "far"))):
            self.remember(numbers)

    def cancel_all(self):
        """Who is back after a crash, or a failover, is not told that what was sent before was not."""
        for n, flow in list(self.recent):
            self.cancel(n, flow)

    def cancel(self, n=None, flow=None):
        if n is None:
            if not self.recent:
                return
            n, flow = self.random.choice(self.recent)
        done = []

        def work(_):
            if self.session.value(f"SELECT feishu.cancel_flow({flow})") == "t":
                self.session.ask(f"INSERT INTO cancelled VALUES ({n})")
                done.append(n)
        if self.transact(work) and done:
            with self.journal.lock:
                self.journal.cancelled[n] = time.time()
                self.journal.counts["cancelled"] += 1

    def retry(self):
        if not self.recent:
            return
        n, flow = self.random.choice(self.recent)
        new_key = self.random.choice(("true", "false"))
        repair = self.random.choice(("NULL", "NULL", f"'{{\"n\": {n}, \"repaired\": true}}'"))
        done = []

        def work(_):
            if self.session.value(f"SELECT feishu.retry_flow({flow}, {new_key}, {repair})") == "t":
                self.session.ask(f"INSERT INTO retried VALUES ({n}, {new_key})")
                done.append(n)
        if self.transact(work) and done:
            self.journal.count("retried")

    def wait(self):
        if not self.recent:
            return
        n, flow = self.recent[-1]
        try:
            self.session.ask(f"SELECT feishu.wait_flow({flow}, '2 s')")
            with self.journal.lock:
                self.journal.succeeded.add(n)
                self.journal.counts["waited for"] += 1
        except wire.SqlError as problem:
            if not problem.sqlstate.startswith("LK") and problem.sqlstate != "55000":
                raise

    def pause(self):
        """An administrator stops a server for a moment, and sees to it that it goes on."""
        name = self.random.choice(SERVERS)
        action = "pause"
        while action:
            try:
                session = self.pair.session()
                session.ask(f"SELECT feishu.{action}_server('{name}')")
                session.close()
                if action == "resume":
                    action = None
                else:
                    action = "resume"
                    time.sleep(self.random.uniform(0.2, 1))
            except wire.Lost:
                time.sleep(0.05)

    # -- calling

    def call(self):
        """A synchronous call, repeated with its key until it is known to have run."""
        n = self.number_one()
        server = self.random.choice(SERVERS)
        with self.journal.lock:
            self.journal.calls[f"call-{n}"] = outcome = "unknown"
        for _ in range(4):
            try:
                if self.session is None:
                    self.session = self.pair.session(self.role)
                self.session.ask(f"SELECT feishu.execute_flow('app', 'callFlow', {OPERATOR}, '{{\"n\": {n}}}', "
                                 f"idempotent_key => 'call-{n}', server => '{server}', timeout => '1 s')")
                outcome = "ok"
            except wire.Lost:
                self.session = None
                time.sleep(0.05)
            except wire.SqlError as problem:
                if not problem.sqlstate.startswith("LK"):
                    raise
                outcome = problem.sqlstate
            if outcome in ("ok", "LK409"):
                break
        self.journal.count("calls")
        with self.journal.lock:
            self.journal.calls[f"call-{n}"] = outcome

    def impatient_call(self):
        """A call that statement_timeout cancels, maybe."""
        n = self.number_one()
        with self.journal.lock:
            self.journal.calls[f"call-{n}"] = "unknown"
        try:
            self.session.ask(f"SET statement_timeout = '{self.random.randint(1, 60)}ms'; "
                             f"SELECT feishu.execute_flow('app', 'callFlow', {OPERATOR}, '{{\"n\": {n}}}', "
                             f"idempotent_key => 'call-{n}', server => '{self.random.choice(SERVERS)}')")
        except wire.SqlError as problem:
            if not problem.sqlstate.startswith("LK") and problem.sqlstate != "57014":
                raise
        self.session.ask("SET statement_timeout = 0")
        self.journal.count("calls")

    def stop(self):
        self.stopping.set()


class Load:
    """All workers. classes: of each of them."""

    def __init__(self, classes, pair, journal, rng, pace):
        self.journal = journal
        self.workers = [one(n, pair, journal, rng.random(), pace) for n, one in enumerate(classes, 1)]

    def start(self):
        for worker in self.workers:
            worker.start()

    def check(self):
        for worker in self.workers:
            if worker.problem:
                raise worker.problem

    def stop(self, but=()):
        """All but those of these classes."""
        stopped = [worker for worker in self.workers if not isinstance(worker, but)]
        for worker in stopped:
            worker.stop()
        for worker in stopped:
            worker.join()
        self.check()
