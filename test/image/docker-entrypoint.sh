#!/bin/bash
#
# What script/image gives a base of its own for the entry point of the official image of PostgreSQL: as much of it as
# compose.yaml takes. It makes the database at the first start, with the password and the files that are there for it,
# and becomes the server.

set -euo pipefail

database_make() {
	local file
	[ -n "${POSTGRES_PASSWORD:-}" ] || { echo "POSTGRES_PASSWORD is not set" >&2; exit 1; }
	initdb -D "$PGDATA" -U postgres -E UTF8 --locale=C.UTF-8 --auth-local=trust --auth-host=scram-sha-256 \
		--pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD")
	echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
	echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
	pg_ctl -D "$PGDATA" -w -o "$(printf '%q ' "${@:2}" -c listen_addresses=)" start
	for file in /docker-entrypoint-initdb.d/*.sql; do
		[ ! -e "$file" ] || psql -X -v ON_ERROR_STOP=1 -U postgres -d postgres -f "$file"
	done
	pg_ctl -D "$PGDATA" -w -m fast stop
}

if [ "${1:-}" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
	database_make "$@"
fi
exec "$@"
