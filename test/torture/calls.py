"""
Clients of a campaign whose calls are cancelled where a call can be: in a cursor with a savepoint, in a function, in a
function that catches it and goes on, by statement_timeout and by another session.

They share a server that takes one call at a time, so that most of them wait while another's is under way. However a
call ends, nothing of it lives on: no request with its key may arrive once its statement has ended. To see that, each
client goes on in the same transaction, waits, and calls again, which would drive what is left.
"""
import re
import threading
import time

import wire
from load import OPERATOR, Worker

CANCELLED = "57014"
NOT_SENT = re.compile(r"not (been )?sent")  # a CONTEXT says so of a call that was cancelled before
NOT_STARTED = re.compile(r"not (been )?started")
REST = 1.2  # seconds from a cancel to the next call

SCHEMA = """
CREATE TABLE ended (key text PRIMARY KEY, at timestamptz NOT NULL, context text NOT NULL);
GRANT INSERT ON ended TO app1, app2;
CREATE FUNCTION call_flow(flow text, n bigint, name text) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RETURN feishu.execute_flow('app', flow, '{"_id": 1111}', jsonb_build_object('n', n), idempotent_key => name,
    server => 'narrow');
END $$;
-- catches the cancel, says when, goes on
CREATE FUNCTION call_flow_and_go_on(n bigint, name text, rest float8) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  context text;
BEGIN
  PERFORM call_flow('callFlow', n, name);
  RETURN true;
EXCEPTION WHEN query_canceled THEN
  GET STACKED DIAGNOSTICS context = PG_EXCEPTION_CONTEXT;
  INSERT INTO ended VALUES (name, clock_timestamp(), context);
  PERFORM pg_sleep(rest);
  RETURN false;
END $$;
"""


class Caller(Worker):
    """One client of that server."""

    STEPS = {"hold": 5, "cursor": 3, "function": 3, "block": 3}

    def ended(self, key, problem):
        """Note that a call's statement has ended by a cancel."""
        with self.journal.lock:
            self.journal.ended[key] = (time.time(), problem.context)

    def new_call(self):
        """-> number, key"""
        n = self.number_one()
        self.journal.count("calls")
        with self.journal.lock:
            self.journal.calls[f"call-{n}"] = "unknown"
        return n, f"call-{n}"

    def outcome(self, key, what):
        with self.journal.lock:
            self.journal.calls[key] = what

    def attempt(self, key, sql):
        """A statement that makes one call. False: it was cancelled."""
        try:
            self.session.ask(sql)
            self.outcome(key, "ok")
        except wire.SqlError as problem:
            if problem.sqlstate == CANCELLED:
                self.ended(key, problem)
                return False
            if not problem.sqlstate.startswith("LK"):
                raise
            self.outcome(key, problem.sqlstate)
        return True

    def limit(self):
        """Some time for a statement, or someone who cancels it after that: -> (SQL, thread)"""
        seconds = self.random.uniform(0.02, 0.7)
        if self.random.random() < 0.6:
            return f"SET LOCAL statement_timeout = {int(seconds * 1000)}", None
        pid = self.session.value("SELECT pg_backend_pid()")
        canceller = threading.Thread(target=self.cancel_session, args=(seconds, pid))
        return "SET LOCAL statement_timeout = 0", canceller

    def cancel_session(self, seconds, pid):
        time.sleep(seconds)
        try:
            session = self.pair.session(self.role)
            session.ask(f"SELECT pg_cancel_backend({pid})")
            session.close()
        except (wire.Lost, wire.SqlError):
            pass  # nobody cancels, then

    def limited(self, work):
        """Runs work() with a limit of time; what it returned. Nobody cancels any more when it has ended."""
        sql, canceller = self.limit()
        self.session.ask(sql)
        if canceller:
            canceller.start()
        try:
            return work()
        finally:
            if canceller:
                canceller.join()

    def hold(self):
        """A call that takes the only place for a while."""
        n, key = self.new_call()
        self.attempt(key, f"SELECT call_flow('slowCall', {n}, '{key}')")

    def call_again(self):
        """What was left of another call would go with this one."""
        self.session.ask(f"SET LOCAL statement_timeout = 0; SELECT pg_sleep({REST})")
        n, key = self.new_call()
        self.attempt(key, f"SELECT call_flow('callFlow', {n}, '{key}')")

    def cursor(self):
        n, key = self.new_call()
        self.session.ask("BEGIN")
        self.session.ask(f"DECLARE c CURSOR FOR SELECT feishu.execute_flow('app', 'callFlow', {OPERATOR}, "
                         f"'{{\"n\": {n}}}', idempotent_key => '{key}', server => 'narrow')")
        self.session.ask("SAVEPOINT s")
        if not self.limited(lambda: self.attempt(key, "FETCH c")):
            self.session.ask("ROLLBACK TO s")
            self.call_again()
        self.session.ask("ROLLBACK")

    def function(self):
        """And then the client has something else to do, with its transaction aborted."""
        n, key = self.new_call()
        self.session.ask("BEGIN")
        if not self.limited(lambda: self.attempt(key, f"SELECT call_flow('callFlow', {n}, '{key}')")):
            time.sleep(REST)
        self.session.ask("ROLLBACK")

    def block(self):
        n, key = self.new_call()
        self.session.ask("BEGIN")

        def work():
            try:
                if self.session.value(f"SELECT call_flow_and_go_on({n}, '{key}', {REST})") == "t":
                    self.outcome(key, "ok")
            except wire.SqlError as problem:
                if problem.sqlstate == CANCELLED:
                    self.ended(key, problem)  # before or after its call
                elif not problem.sqlstate.startswith("LK"):
                    raise
                return False
            return True
        if self.limited(work):
            self.call_again()
        self.session.ask("COMMIT")


def check_ghosts(truth, report):
    """No request arrives after the statement that made it has ended; nor ever, where the error said that it had not
    been sent, or not started, but for one that was refused, as for its token. A request that was on its way may take a
    moment to be seen by a platform that is busy."""
    for key, (at, context) in truth.calls_ended.items():
        late = [when - at for when in truth.calls_arrived.get(key, ()) if when > at + 1]
        if late:
            report("ghosts", f"{key}: arrived {max(late):.1f} s after its statement had ended")
        elif NOT_SENT.search(context) and truth.calls_arrived.get(key):
            report("ghosts", f"{key}: arrived, and was said not to have been sent: {context}")
        elif NOT_STARTED.search(context) and key in truth.calls_not_refused:
            report("ghosts", f"{key}: may have started, and was said not to have: {context}")
