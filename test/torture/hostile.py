"""
Clients of a campaign that want the others' flows not to be sent: a role that may queue and has servers of its own, and
a role without any right. They fill memory (numbers that are long as they are written, answers that unpack to what is
large), take all places (flows that hang, servers without end), accuse the platform (timeouts that nobody could meet),
and hold locks.

What they queue is reckoned as everybody's: it may fail, but it is not lost and not started twice. What they may not do
is refused, at once.
"""
import time

import wire
from load import OPERATOR, Worker

ROLE, NOBODY = "eve", "nobody"
SERVER_COUNT = 130  # more than feishu_flow.max_apps
APPS = {f"evil_{n}": f"secret-evil-{n}" for n in range(1, SERVER_COUNT + 1)}
HANGS, BOMBS, NUMBERS = "hangFlow", "bombFlow", "numberFlow"
BACKLOG = 1000  # flows of its that wait at once, so that the queue can be emptied in the end
SHARED = ("feishu", "feishu", "http2", "oauth")  # servers of others, and their apps

# In every phase of the platform.
RULES = [{"match": {"kind": "execute", "flow_id": HANGS}, "fault": {"type": "hang"}},
         {"match": {"kind": "execute", "flow_id": BOMBS}, "probability": 0.5,
          "fault": {"type": "gzip_bomb", "bytes": 14 << 20}},
         {"match": {"kind": "execute", "flow_id": BOMBS}, "fault": {"type": "gzip_bomb", "bytes": 128 << 20}}]

SCHEMA = f"""
CREATE ROLE {ROLE} LOGIN;
CREATE ROLE {NOBODY} LOGIN;
GRANT USAGE ON FOREIGN DATA WRAPPER feishu_flow TO {ROLE};
GRANT CREATE ON SCHEMA public TO {NOBODY};
GRANT SELECT, INSERT ON marker, cancelled, retried TO {ROLE};
CREATE FUNCTION numbers(n bigint, size int, zeros int) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('n', n, 'numbers', ('[' || repeat('1e' || zeros || ',', size) || '0]')::jsonb)
$$;
"""
SERVERS = """
SET ROLE {role};
DO $$ BEGIN
  FOR i IN 1..{count} LOOP
    EXECUTE format('CREATE SERVER evil_%s FOREIGN DATA WRAPPER feishu_flow '
                   'OPTIONS (base_url %L, timeout %L, max_rate %L)',
                   i, '{url}', CASE WHEN i % 3 = 0 THEN '8s' ELSE '2s' END, '100');
    EXECUTE format('CREATE USER MAPPING FOR PUBLIC SERVER evil_%s OPTIONS (app_id %L, app_secret %L)', i,
                   'evil_' || i, 'secret-evil-' || i);
  END LOOP;
END $$;
RESET ROLE;
"""

# What the role without rights tries; a name of the schema feishu_internal, or of what everybody may see, is to be put
# in.
FORBIDDEN = ("LOCK TABLE {table}", "LOCK TABLE {table} IN ACCESS SHARE MODE",
             "CREATE RULE r AS ON INSERT TO {table} DO NOTHING",
             "CREATE TRIGGER t BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger()",
             "ALTER TABLE {table} SET (fillfactor = 50)", "TRUNCATE {table}", "DROP TABLE {table}",
             "CREATE INDEX ON {table} ((1))", "COMMENT ON TABLE {table} IS 'x'", "SELECT FROM {table} FOR UPDATE",
             "ALTER SERVER feishu OPTIONS (SET base_url 'http://localhost')", "DROP SERVER feishu",
             "ALTER USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (SET app_secret 'x')",
             "ALTER FUNCTION feishu.cancel_flow(bigint) OWNER TO nobody", "SELECT feishu.pause_server('feishu')")
TABLES = ("feishu_internal.outbox", "feishu_internal.claim", "feishu_internal.paused_server", "feishu_internal.last_id")
REFUSED = "42501"
AT_ONCE = "3s"


def create_schema(session, platform):
    session.ask(SCHEMA)
    session.ask(SERVERS.format(role=ROLE, count=SERVER_COUNT, url=f"http://127.0.0.1:{platform.port}"))


class Hostile(Worker):
    """A session of the role that may queue."""

    STEPS = {"numbers": 4, "refused_numbers": 2, "called_numbers": 1, "bombs": 3, "hang": 4, "servers": 2,
             "impatient_calls": 5, "hold_rows": 4, "old_snapshot": 1, "retry": 1}

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.role = ROLE

    def own(self):
        return f"evil_{self.random.randint(1, SERVER_COUNT)}"

    def may_queue(self):
        waiting = self.session.value("SELECT count(*) FROM feishu.flows "
                                     "WHERE state IN ('queued', 'sending', 'retrying')")
        return int(waiting) < BACKLOG

    def many(self, kind, flow_id, count, params="jsonb_build_object('n', n)", server="'feishu'", rest=""):
        """So many flows of a kind; expressions over their number n."""
        def work(transaction):
            first = self.next_number + 1
            transaction.numbers += [self.number_one() for _ in range(count)]
            self.session.ask(f"INSERT INTO marker SELECT n, feishu.enqueue_flow('app', '{flow_id}', {OPERATOR}, "
                             f"{params}, server => {server}, max_attempts => {self.random.randint(1, 3)}{rest}), "
                             f"'{kind}' FROM generate_series({first}, {first + count - 1}) n")
            self.journal.count("hostile flows", count)
        if self.transact(work):
            self.remember(range(self.next_number - count + 1, self.next_number + 1))

    # -- memory

    def size(self, most):
        """size and zeros of numbers(): some bytes up to so many"""
        zeros = self.random.choice((400, 131071))
        return f"{self.random.randint(1, most // zeros)}, {zeros}"

    def numbers(self):
        server = self.random.choice((self.own(), *SHARED))
        self.many("number", NUMBERS, self.random.randint(1, 3), f"numbers(n, {self.size(15 << 20)})", f"'{server}'")

    def refused_numbers(self):
        """More than max_request_size: 22023, at once."""
        self.refused(f"SELECT feishu.enqueue_flow('app', '{NUMBERS}', {OPERATOR}, "
                     f"numbers(0, {self.random.randint(200, 8300)}, 131071))", "22023")

    def called_numbers(self):
        n = self.number_one()
        self.one_call(n, f"numbers({n}, {self.size(15 << 20)})", self.random.choice(SHARED), "1 s")

    def bombs(self):
        server = self.random.choice((self.own(), *SHARED))
        self.many("bomb", BOMBS, self.random.randint(1, 10), server=f"'{server}'")

    # -- places

    def hang(self):
        if self.may_queue():
            server = self.random.choice((self.own(), *SHARED))
            ordering = self.random.choice(("", ", ordering_key => (n % 7)::text", ", ordering_key => n::text"))
            self.many("hang", HANGS, self.random.randint(20, 100), server=f"'{server}'", rest=ordering)

    def servers(self):
        if self.may_queue():
            self.many("hang", HANGS, SERVER_COUNT, server=f"('evil_' || 1 + n % {SERVER_COUNT})::name")

    # -- calls

    def one_call(self, n, params, server, timeout):
        with self.journal.lock:
            self.journal.calls[f"call-{n}"] = outcome = "unknown"
        try:
            self.session.ask(f"SELECT feishu.execute_flow('app', 'callFlow', {OPERATOR}, {params}, "
                             f"idempotent_key => 'call-{n}', server => '{server}', timeout => '{timeout}')")
            outcome = "ok"
        except wire.SqlError as problem:
            if not problem.sqlstate.startswith("LK"):
                raise
            outcome = problem.sqlstate
        with self.journal.lock:
            self.journal.calls[f"call-{n}"] = outcome
        self.journal.count("hostile calls")

    def impatient_calls(self):
        server = self.random.choice(SHARED)
        for _ in range(self.random.randint(5, 30)):
            n = self.number_one()
            self.one_call(n, f"jsonb_build_object('n', {n})", server, "1 ms")

    # -- locks

    def hold_rows(self):
        """Rows of flows that may be due, for a while."""
        cancelled = []

        def work(_):
            for n, flow in self.random.sample(self.recent, min(len(self.recent), 20)):
                if self.session.value(f"SELECT feishu.cancel_flow({flow})") == "t":
                    self.session.ask(f"INSERT INTO cancelled VALUES ({n})")
                    cancelled.append(n)
            time.sleep(self.random.uniform(0.3, 2))
        if self.transact(work, commit=0.5):
            with self.journal.lock:
                self.journal.cancelled.update({n: time.time() for n in cancelled})

    def old_snapshot(self):
        self.session.ask("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM feishu.flows")
        time.sleep(self.random.uniform(0.5, 3))
        self.session.ask("ROLLBACK")

    def refused(self, statement, state):
        """The statement is an error of this state, and soon; anything else is for the campaign to tell."""
        try:
            self.session.ask(f"SET statement_timeout = '{AT_ONCE}'")
            self.session.ask(statement)
        except wire.SqlError as problem:
            if problem.sqlstate != state:
                self.journal.unexpected(f"{statement}: {problem}")
        else:
            self.journal.unexpected(f"{statement}: was allowed")
        self.session.ask("ROLLBACK; SET statement_timeout = 0")
        self.journal.count("hostile statements")


class Nobody(Hostile):
    """The one session of the role without rights."""

    STEPS = {"lock_extension": 3, "prepare_lock": 1, "forbidden": 6, "old_snapshot": 1}

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.role = NOBODY

    def depend(self, name):
        """Takes the lock, that of a prepared transaction for which nobody came back aside: it would be waited for."""
        for gid, in self.session.ask("SELECT gid FROM pg_prepared_xacts WHERE owner = current_user"):
            self.session.ask(f"ROLLBACK PREPARED '{gid}'")
        self.session.ask(f"BEGIN; CREATE FUNCTION {name}() RETURNS void LANGUAGE sql AS 'SELECT'; "
                         f"ALTER FUNCTION {name}() DEPENDS ON EXTENSION feishu_flow")
        self.journal.count("hostile statements")

    def lock_extension(self):
        self.depend("pg_temp.f")
        time.sleep(self.random.uniform(0.5, 3))
        self.session.ask("ROLLBACK")

    def prepare_lock(self):
        """A lock that lives on when the session, or the server, does not."""
        number = self.number_one()
        self.depend(f"public.f{number}")
        self.session.ask(f"PREPARE TRANSACTION 'lock-{number}'")
        time.sleep(self.random.uniform(0.5, 2))
        self.session.ask(f"ROLLBACK PREPARED 'lock-{number}'")

    def forbidden(self):
        for statement in self.random.sample(FORBIDDEN, 3):
            prefix = "BEGIN; " if statement.startswith("LOCK") else ""
            self.refused(prefix + statement.format(table=self.random.choice(TABLES)), REFUSED)
