"""Alembic's autogenerate beside the extension."""

import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import BigInteger, Column, Identity, MetaData, Table, Text

from check import equal, ok

metadata = MetaData()
Table(
    "orders", metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("item", Text, nullable=False),
    Column("status", Text, server_default="draft"),
)


def include_name(name, type_, parent_names):
    return type_ != "schema" or name not in ("feishu", "feishu_internal")


def compared(**options):
    with sqlalchemy.create_engine("postgresql://").connect() as conn:
        return compare_metadata(MigrationContext.configure(conn, opts={"include_schemas": True, **options}), metadata)


schemas = {change[1].schema for change in compared() if change[0] == "remove_table"}
equal(schemas, {"feishu_internal"}, "with include_schemas alone, it wants to drop the tables of the queue")
equal(compared(include_name=include_name), [], "with include_name it finds nothing to do")
