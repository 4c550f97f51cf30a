# shellcheck shell=bash disable=SC2034,SC2153,SC2154 # (variables shared with script/bench)
#
# The part of script/bench that is about priorities, which sources this file: how long a flow takes to the wire while a
# backlog below it is sent.

PRIORITY_BACKLOG=${PRIORITY_BACKLOG:-1000000}
PRIORITY_FLOWS=400
PRIORITY_GAP_MS=20
PRIORITY_MS=5

bench_priority() {
	local idle p50 p99 idle_p50 idle_p99
	dispatch_prepare
	wait_until 20 test -n "$(dispatcher_pid)" || die "no dispatcher"
	as_owner "$WORK/arrival" >"$WORK/arrival.log" &
	wait_until 10 test -s "$WORK/arrival.log" || die "bench/arrival.c did not start"
	sql "ALTER SERVER feishu OPTIONS (SET base_url 'http://127.0.0.1:$(head -n 1 "$WORK/arrival.log")')"
	printf "SELECT feishu.enqueue_flow('package_7344545d87__c', 'deleteObject_99c656599f', '{\"_id\": 1}', %s);\n%s\n" \
		"jsonb_build_object('xid', pg_current_xact_id()::text::bigint)" "\\sleep $PRIORITY_GAP_MS ms" \
		>"$WORK/scripts/above.sql"
	printf '%-40s %9s %9s %9s %9s\n' "commit to wire, ms" flows p50 p99 highest
	priority_run "in an empty queue"
	read -r _ idle_p50 idle_p99 _ <"$WORK/results/latency"
	progress "$PRIORITY_BACKLOG flows at -1"
	sql "SELECT feishu.pause_server('feishu')" >/dev/null
	sql "SELECT count(feishu.enqueue_flow('package_7344545d87__c', 'deleteObject_99c656599f', '{\"_id\": 1}', '{}',
		priority => -1)) FROM generate_series(1, $PRIORITY_BACKLOG)" >/dev/null
	sql "CHECKPOINT"
	sql "SELECT feishu.resume_server('feishu')" >/dev/null
	wait_until 20 backlog_begun || die "the backlog is not sent"
	priority_run "above a backlog of $PRIORITY_BACKLOG"
	[ "$(sql "SELECT EXISTS (SELECT FROM feishu_internal.outbox WHERE state = 'q')")" = t ] ||
		die "the backlog was too short"
	read -r _ p50 p99 _ <"$WORK/results/latency"
	awk -v p50="$p50" -v p99="$p99" -v idle_p50="$idle_p50" -v idle_p99="$idle_p99" 'BEGIN {
		printf "%-40s %9s %9.1f %9.1f\n", "... times that in an empty queue", "", p50 / idle_p50, p99 / idle_p99 }'
	verdict "$(at_most "$p50" "$PRIORITY_MS")" "commit to wire, above a backlog, p50 = $p50 ms (at most $PRIORITY_MS)"
	say
}

# priority_run WHAT: flows one by one, and how long they took.
priority_run() {
	local from
	sql "$(sed 1q "$WORK/scripts/above.sql")" >/dev/null	# the first one connects
	wait_until 10 none_above || die "flows stayed in the queue"
	from=$(sql "SELECT pg_current_xact_id()")
	progress "$PRIORITY_FLOWS flows at 0"
	as_owner "$PG_BIN/pgbench" -h "$WORK/sock" -p "$PORT" -U postgres -n -c 1 -t "$PRIORITY_FLOWS" \
		-f "$WORK/scripts/above.sql" postgres >"$WORK/pgbench.log" 2>&1 ||
		{ cat "$WORK/pgbench.log" >&2; die "pgbench failed"; }
	wait_until 30 none_above || die "flows stayed in the queue"
	progress ""
	latency_line "$1" "$from"
}

backlog_begun() {
	[ "$(sql "SELECT COALESCE(sum(successes), 0) > $PRIORITY_FLOWS + 1000 FROM feishu.stat_flows")" = t ]
}

none_above() { [ "$(sql "SELECT NOT EXISTS (SELECT FROM feishu_internal.outbox
	WHERE server = 'feishu' AND priority = 0 AND state = 'q' AND next_at IS NULL)")" = t ]; }
