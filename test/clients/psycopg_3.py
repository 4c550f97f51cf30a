"""psycopg 3."""

import datetime
import uuid

import psycopg
from psycopg.types.json import Jsonb

from check import NAMESPACE, PATIENCE, WAITS, equal, interrupted, ok

# The transaction of the order queues its flow.
with psycopg.connect() as conn:
    with conn.transaction():
        order = conn.execute("INSERT INTO orders (item) VALUES (%s) RETURNING id", ["desk"]).fetchone()[0]
        flow = conn.execute(
            "SELECT feishu.enqueue_flow(%s, %s, operator => %s, params => %s)",
            [NAMESPACE, "committed", Jsonb({"email": "li@example.com"}), Jsonb({"order": order})],
        ).fetchone()[0]
    answer = conn.execute("SELECT feishu.wait_flow(%s, %s)", [flow, datetime.timedelta(seconds=PATIENCE)]).fetchone()[0]
    equal(answer["code"], 0, "a flow that was queued with its order is sent, and its answer is a dict")

# A number beyond 2^53, and NULLs.
conn = psycopg.connect(autocommit=True)
big = 2**63 - 1
given = {"total": big, "text": "桌子", "list": [1, None], "null": None}
answer = conn.execute(
    "SELECT feishu.execute_flow(%(namespace)s, %(flow)s, operator => %(operator)s, params => %(params)s,"
    " is_async => %(is_async)s, idempotent_key => %(key)s, loop_masks => %(masks)s, server => %(server)s, "
    "timeout => %(timeout)s)",
    {
        "namespace": NAMESPACE, "flow": "echoParams", "operator": Jsonb({"_id": big}), "params": Jsonb(given),
        "is_async": False, "key": None, "masks": Jsonb(["a"]), "server": "feishu",
        "timeout": datetime.timedelta(seconds=PATIENCE),
    },
).fetchone()[0]
out = conn.execute("SELECT feishu.out_params(%s)", [Jsonb(answer)]).fetchone()[0]
equal(out.get("total"), big, "an integer of 64 bits keeps its digits")
equal(out.get("text"), "桌子", "text is what it was")
equal((out.get("list"), out.get("null")), ([1, None], None), "lists and null are what they were")
equal(conn.execute("SELECT feishu.out_params(%s)", [None]).fetchone()[0], None, "NULL comes back as None")
nothing = "SELECT feishu.execute_flow(%s, %s, %s, %s, %s, %s, %s, %s, %s)"
answer = conn.execute(nothing, [NAMESPACE, "flow", None, None, False, None, None, None, None]).fetchone()[0]
equal(answer["code"], 0, "None stands for an argument that is not given")
for index in range(8):    # from the sixth on it is prepared
    answer = conn.execute(nothing,
                          [NAMESPACE, "flow", None, None, False, str(uuid.uuid4()), None, None, None]).fetchone()[0]
equal(answer["code"], 0, "a statement that the driver has prepared by itself")
run_at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
flow = conn.execute("SELECT feishu.enqueue_flow(%s, %s, run_at => %s)", [NAMESPACE, "later", run_at]).fetchone()[0]
equal(conn.execute("SELECT run_at FROM feishu.flows WHERE id = %s", [flow]).fetchone()[0], run_at,
      "a time keeps its microseconds")
equal(conn.execute("SELECT feishu.cancel_flow(%s)", [flow]).fetchone()[0], True, "the id of a flow is an int")

with conn.cursor(binary=True) as cursor:
    cursor.execute("SELECT feishu.out_params(feishu.execute_flow(%b, %b, params => %b))",
                   [NAMESPACE, "echoParams", Jsonb({"total": big})])
    equal(cursor.fetchone()[0], {"total": big}, "all in binary")
many = conn.execute(
    "SELECT n, (r).response, (r).sqlstate, (r).hint FROM (SELECT n, feishu.execute_flows(%s, %s, "
    "params => jsonb_build_object('n', n)) OVER () AS r"
    " FROM generate_series(1, 3) AS n) AS s", [NAMESPACE, "flow"]).fetchall()
equal([(n, answer["code"], sqlstate, hint) for n, answer, sqlstate, hint in many],
      [(n, 0, None, None) for n in (1, 2, 3)], "many calls at once")

# What went wrong.
try:
    conn.execute("SELECT feishu.execute_flow(%s, %s)", [NAMESPACE, "noScope"])
except psycopg.Error as error:
    if error.sqlstate == "LK403":
        print(error.diag.message_primary, error.diag.message_detail, error.diag.message_hint, sep="\n")
    equal(error.sqlstate, "LK403", "the SQLSTATE")
    ok("code 99991672" in error.diag.message_detail, "DETAIL")
    ok("https://" in error.diag.message_hint, "HINT")
    equal(type(error), psycopg.DatabaseError, "it is no error of the connection")
try:
    conn.execute("SELECT feishu.execute_flow(%s, %s, params => %s)", [NAMESPACE, "flow", {"a": 1}])
    ok(False, "a plain dict is no parameter")
except psycopg.ProgrammingError:
    ok(True, "a plain dict is no parameter")
equal(conn.broken, False, "the connection lives")
equal(conn.execute("SELECT 1").fetchone()[0], 1, "... and works")

# Cancel.
watch = psycopg.connect(autocommit=True)
error, seconds = interrupted(
    lambda: conn.execute("SELECT feishu.execute_flow(%s, %s)", [NAMESPACE, "hangingFlow"]),
    lambda: watch.execute(WAITS, [conn.info.backend_pid]).fetchone()[0],
    lambda: conn.cancel(),
)
equal(type(error), psycopg.errors.QueryCanceled, "a cancel of the driver ends a call")
ok(seconds < PATIENCE / 10, "... at once")
equal(conn.execute("SELECT 1").fetchone()[0], 1, "... and the connection works")

# Rollback, and savepoints.
with conn.transaction():
    conn.execute("SELECT feishu.enqueue_flow(%s, %s)", [NAMESPACE, "committed"])
    try:
        with conn.transaction():
            conn.execute("SELECT feishu.enqueue_flow(%s, %s)", [NAMESPACE, "rolledBack"])
            raise ValueError
    except ValueError:
        pass
try:
    with conn.transaction():
        conn.execute("SELECT feishu.enqueue_flow(%s, %s)", [NAMESPACE, "rolledBack"])
        raise ValueError
except ValueError:
    pass

# Many at once.
with conn.pipeline():
    flows = [conn.execute("SELECT feishu.enqueue_flow(%s, %s)", [NAMESPACE, "piped"]) for _ in range(10)]
    equal(len({cursor.fetchone()[0] for cursor in flows}), 10, "a pipeline queues")
