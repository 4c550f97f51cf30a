"""SQLAlchemy's ORM."""

import datetime
import importlib.util

import sqlalchemy
from sqlalchemy import Column, BigInteger, FetchedValue, Identity, Text, bindparam, create_engine, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, declarative_base

from check import NAMESPACE, PATIENCE, WAITS, equal, interrupted, ok

# SQLAlchemy 1.4 knows psycopg 2 alone.
DRIVER = "psycopg" if sqlalchemy.__version__ >= "2" and importlib.util.find_spec("psycopg") else "psycopg2"

engine = create_engine(f"postgresql+{DRIVER}://", pool_size=1, max_overflow=0, future=True)
Base = declarative_base()


class Order(Base):
    __tablename__ = "orders"
    id = Column(BigInteger, Identity(always=True), primary_key=True)
    item = Column(Text, nullable=False)
    status = Column(Text, server_default=FetchedValue())


def enqueue_flow(session, flow_id, params, **arguments):
    """Queues a flow in the session's transaction; returns its id."""
    names = "".join(f", {name} => :{name}" for name in arguments)
    return session.execute(
        text(f"SELECT feishu.enqueue_flow(:namespace, :flow_id, params => :params{names})").bindparams(
            bindparam("params", type_=JSONB)
        ),
        {"namespace": NAMESPACE, "flow_id": flow_id, "params": params, **arguments},
    ).scalar_one()


with Session(engine) as session, session.begin():
    order = Order(item="desk")
    session.add(order)
    session.flush()    # the order has its id from here on
    flow = enqueue_flow(session, "committed", {"order": order.id})
    equal(type(flow), int, "the id of a flow is an int")
    equal(session.get(Order, order.id, populate_existing=True).item, "desk",
          "the ORM has the order's id, not that of the trigger's flow")

with Session(engine) as session:
    answer = session.scalar(select(func.feishu.wait_flow(flow, datetime.timedelta(seconds=PATIENCE))))
    equal(answer["code"], 0, "a flow that was queued with its order is sent, and what func returns is a dict")

with Session(engine) as session:
    enqueue_flow(session, "rolledBack", {"order": 1})
    session.rollback()
with Session(engine) as session, session.begin():
    enqueue_flow(session, "committed", None, idempotent_key=None)
    nested = session.begin_nested()
    enqueue_flow(session, "rolledBack", None)
    nested.rollback()
try:
    with Session(engine) as session, session.begin():
        enqueue_flow(session, "rolledBack", {"order": 1})
        raise ValueError
except ValueError:
    pass

big = 2**63 - 1
call = text("SELECT feishu.execute_flow(:namespace, :flow, params => :params)").bindparams(
    bindparam("params", type_=JSONB))
with engine.connect() as conn:
    pid = conn.scalar(text("SELECT pg_backend_pid()"))
    answer = conn.scalar(call, {"namespace": NAMESPACE, "flow": "echoParams", "params": {"total": big, "null": None}})
    out = conn.scalar(select(func.feishu.out_params(bindparam("answer", answer, type_=JSONB), type_=JSONB)))
    equal((out["total"], out["null"]), (big, None), "an integer of 64 bits keeps its digits, and null is null")
    equal(conn.scalar(text("SELECT feishu.out_params(:answer)"), {"answer": None}), None, "NULL comes back as None")
    equal(conn.scalar(call, {"namespace": NAMESPACE, "flow": "flow", "params": None})["code"], 0,
          "None is JSON's null, which stands for none, too")
    try:
        conn.scalar(call, {"namespace": NAMESPACE, "flow": "noScope", "params": None})
        ok(False, "a refusal is an error")
    except DBAPIError as error:
        sqlstate = getattr(error.orig, "sqlstate", None) or error.orig.pgcode
        equal(sqlstate, "LK403", "the SQLSTATE")
        ok("code 99991672" in error.orig.diag.message_detail, "DETAIL")
        ok("https://" in error.orig.diag.message_hint, "HINT")
        equal(error.connection_invalidated, False, "the pool does not take it for a broken connection")
with engine.connect() as conn:
    equal(conn.scalar(text("SELECT pg_backend_pid()")), pid, "... and gives the same connection again")

# A cancel needs the driver's connection.
watch = create_engine(f"postgresql+{DRIVER}://", isolation_level="AUTOCOMMIT", future=True).connect()
with engine.connect() as conn:
    error, seconds = interrupted(
        lambda: conn.scalar(call, {"namespace": NAMESPACE, "flow": "hangingFlow", "params": None}),
        lambda: watch.scalar(text(WAITS.replace("%s", ":pid")), {"pid": pid}),
        lambda: conn.connection.cancel(),
    )
    equal(getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None), "57014",
          "a cancel of the driver ends a call")
    ok(seconds < PATIENCE / 10, "... at once")
with engine.connect() as conn:
    equal(conn.scalar(text("SELECT pg_backend_pid()")), pid, "... and the pool keeps the connection")
