"""Django's ORM, its test database, and its connections after an error."""

import json
import os
import time

import django
from django.conf import settings

from check import NAMESPACE, PATIENCE, WAITS, equal, interrupted, ok, wait_until

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": os.environ["PGDATABASE"],
            "USER": os.environ["PGUSER"],
            "HOST": os.environ["PGHOST"],
            "PORT": os.environ["PGPORT"],
            "CONN_MAX_AGE": None,
            "TEST": {"NAME": "test_orders"},
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
)
django.setup()

from django.db import DatabaseError, OperationalError, connection, models, transaction  # noqa: E402


class Order(models.Model):
    item = models.TextField()

    class Meta:
        app_label = "shop"
        managed = False
        db_table = "orders"


def enqueue_flow(flow_id, params):
    """Queues a flow in the transaction of the caller; returns its id."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT feishu.enqueue_flow(%s, %s, params => %s)",
            [NAMESPACE, flow_id, json.dumps(params)],
        )
        return cursor.fetchone()[0]


def value(sql, parameters=()):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone()[0]


with transaction.atomic():
    order = Order.objects.create(item="desk")
    flow = enqueue_flow("committed", {"order": order.id})

equal(Order.objects.order_by("-id").first().id, order.id, "the ORM has the order's id, not that of the trigger's flow")
equal(type(flow), int, "the id of a flow is an int")
answer = value("SELECT feishu.wait_flow(%s, make_interval(secs => %s))", [flow, PATIENCE])
equal(json.loads(answer)["code"], 0, "a flow that was queued with its order is sent")

try:
    with transaction.atomic():
        enqueue_flow("rolledBack", {})
        raise ValueError
except ValueError:
    pass
with transaction.atomic():
    enqueue_flow("committed", {})
    try:
        with transaction.atomic():
            enqueue_flow("rolledBack", {})
            raise ValueError
    except ValueError:
        pass

big = 2**63 - 1
out = value("SELECT feishu.out_params(feishu.execute_flow(%s, %s, params => %s))",
            [NAMESPACE, "echoParams", json.dumps({"total": big})])
equal(json.loads(out)["total"], big, "an integer of 64 bits keeps its digits")
equal(value("SELECT feishu.out_params(%s)", [None]), None, "NULL comes back as None")

pid = value("SELECT pg_backend_pid()")
try:
    with transaction.atomic():
        value("SELECT feishu.execute_flow(%s, %s)", [NAMESPACE, "noScope"])
    ok(False, "a refusal is an error")
except DatabaseError as error:
    cause = error.__cause__    # the driver's own error
    equal(getattr(cause, "sqlstate", None) or cause.pgcode, "LK403", "the SQLSTATE")
    ok("code 99991672" in cause.diag.message_detail, "DETAIL")
    ok("https://" in cause.diag.message_hint, "HINT")
    ok(not isinstance(error, OperationalError), "it is no error of the connection")
connection.close_if_unusable_or_obsolete()
equal(value("SELECT pg_backend_pid()"), pid, "the connection is kept for the next request")

# A cancel needs the driver's connection.
driver = connection.connection
watch = connection.copy()
watch.inc_thread_sharing()


def waits():
    with watch.cursor() as cursor:
        cursor.execute(WAITS, [pid])
        return cursor.fetchone()[0]


def hang():
    with driver.cursor() as cursor:
        cursor.execute("SELECT feishu.execute_flow(%s, %s)", [NAMESPACE, "hangingFlow"])


error, seconds = interrupted(hang, waits, driver.cancel)
equal(getattr(error, "sqlstate", None) or error.pgcode, "57014", "a cancel of the driver ends a call")
ok(seconds < PATIENCE / 10, "... at once")
equal(value("SELECT 1"), 1, "... and the connection works")
watch.close()

# The test database is a copy of template1, which has the extension: it comes and goes beside a dispatcher.
connection.creation.create_test_db(verbosity=0, autoclobber=True)
equal(value("SELECT current_database()"), "test_orders", "a test database is made")
equal(value("SELECT count(*) FROM pg_extension WHERE extname = 'feishu_flow'"), 1, "... with the extension")
equal(value("SELECT count(*) FROM pg_foreign_server"), 0, "... and without servers: a test starts no flow at Feishu")
wait_until(lambda: value(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") == 2)    # it and we
started = time.monotonic()
connection.creation.destroy_test_db(os.environ["PGDATABASE"], verbosity=0)
ok(time.monotonic() - started < PATIENCE / 4, "... and dropped, in spite of its dispatcher")
