# shellcheck shell=bash disable=SC2034,SC2153 # (variables shared with script/bench)
#
# The part of script/bench, which sources this file, that replaces flows: what 100,000 enqueues of 1,000 keys cost,
# beside as many updates of the same rows in a table with the same columns and indexes.
#
# Each part is 100 transactions of a statement for each key, by id or by key, as saves of rows come, in PL/pgSQL; so
# are an UPDATE of all rows at once and the enqueues of all keys in one statement, which start the executor once.

REPLACE_KEYS=1000
REPLACE_ROUNDS=100

replace_prepare() {
	server_start server "$PORT" "shared_preload_libraries = 'feishu_flow'" "autovacuum = off" "max_wal_size = 8GB"
	server_psql "$PORT" -q -v base_url="$NGINX_URL" -f "$WORK/src/bench/setup.sql"
	server_psql "$PORT" -q -v keys="$REPLACE_KEYS" -f "$WORK/src/bench/replace.sql"
	as_owner mkdir -p "$WORK/results"
}

# replace_measure PART: microseconds a row.
replace_measure() {
	server_psql "$PORT" -qAt -c "VACUUM feishu_internal.outbox, bench.plain" -c "CALL bench.$1(1)" -c '\timing on' \
		-c "CALL bench.$1($REPLACE_ROUNDS)" |
		awk -v rows=$((REPLACE_KEYS * REPLACE_ROUNDS)) '/^Time:/ { print $2 * 1000 / rows }' >>"$WORK/results/$1"
}

bench_replace() {
	local round part
	replace_prepare
	for ((round = 1; round <= ROUNDS; round++)); do
		progress "replace: round $round of $ROUNDS"
		for part in update_each replace_each update_all replace_all; do replace_measure "$part"; done
	done
	progress ""
	[ "$(sql "SELECT count(*) FROM feishu.flows WHERE state = 'queued'")" = "$REPLACE_KEYS" ] ||
		die "not one flow for a key"
	printf '%-64s %8s  %s\n' "$((REPLACE_KEYS * REPLACE_ROUNDS)) replaces of $REPLACE_KEYS keys" \
		"us/row" "(lowest-highest)"
	enqueue_line update_each "UPDATE of the row, a statement for each"
	enqueue_line replace_each "feishu.enqueue_flow with its replace_key, a statement for each"
	enqueue_line update_all "UPDATE of all rows"
	enqueue_line replace_all "feishu.enqueue_flow with all keys"
	say
	target_at_most replace_each update_each 2
}
