# shellcheck shell=bash disable=SC2034,SC2153,SC2154 # (variables shared with script/bench)
#
# The part of script/bench that is about paused flows, which sources this file: how long flows take to the wire while a
# backlog of a paused flow is passed over, when it is out of the way, and when it is resumed.

PAUSED_BACKLOG=${PAUSED_BACKLOG:-1000000}
PAUSED_FLOWS=400
PAUSED_GAP_MS=20
PAUSED_RATIO=3
PAUSED_WAIT_MS=2000
PAUSED_OTHER="feishu.enqueue_flow('package_7344545d87__c', 'deleteObject_99c656599f', '{\"_id\": 1}',
	jsonb_build_object('xid', pg_current_xact_id()::text::bigint))"

bench_paused() {
	local behind resumed empty p50 waited ratio
	dispatch_prepare
	wait_until 20 test -n "$(dispatcher_pid)" || die "no dispatcher"
	as_owner "$WORK/arrival" >"$WORK/arrival.log" &
	wait_until 10 test -s "$WORK/arrival.log" || die "bench/arrival.c did not start"
	sql "ALTER SERVER feishu OPTIONS (SET base_url 'http://127.0.0.1:$(head -n 1 "$WORK/arrival.log")')"
	printf "SELECT %s;\n%s\n" "$(tr '\n\t' '  ' <<<"$PAUSED_OTHER")" \
		"\\sleep $PAUSED_GAP_MS ms" >"$WORK/scripts/other.sql"
	printf '%-40s %9s %9s %9s %9s\n' "commit to wire, ms" flows p50 p99 highest
	paused_run "empty queue"
	paused_run "empty queue"
	read -r _ empty _ <"$WORK/results/latency"

	progress "$PAUSED_BACKLOG flows that are paused"
	sql "SELECT feishu.pause_server('feishu')" >/dev/null
	sql "SELECT count(feishu.enqueue_flow('package_7344545d87__c', 'backlog', '{\"_id\": 1}', '{}'))
		FROM generate_series(1, $PAUSED_BACKLOG)" >/dev/null
	behind=$(sql "SELECT pg_current_xact_id() FROM (SELECT $PAUSED_OTHER OFFSET 0) AS e")
	sql "CHECKPOINT"
	sql "SELECT feishu.pause_flow('feishu', 'package_7344545d87__c', 'backlog')" >/dev/null
	resumed=$(sql "SELECT pg_current_xact_id() FROM (SELECT feishu.resume_server('feishu') OFFSET 0) AS r")
	paused_run "while a backlog is passed over"
	read -r _ p50 _ <"$WORK/results/latency"
	wait_until 30 grep -q "^$behind " "$WORK/arrival.log" || die "the flow behind the backlog was not sent"
	waited=$(sql "SELECT round($(awk -v xid="$behind" '$1 == xid { print $2; exit }' "$WORK/arrival.log") / 1000.0
		- extract(epoch FROM pg_xact_commit_timestamp('$resumed'::xid)) * 1000, 1)")
	progress "waiting until they are out of the way"
	wait_until 600 paused_out_of_the_way || die "the backlog stayed where it was"
	paused_run "a backlog is out of the way"
	sql "SELECT feishu.resume_flow('feishu', 'package_7344545d87__c', 'backlog')" >/dev/null
	progress ""
	ratio=$(awk -v a="$p50" -v b="$empty" 'BEGIN { printf "%.2f", a / b }')
	verdict "$(at_most "$ratio" "$PAUSED_RATIO")" \
		"beside $PAUSED_BACKLOG paused flows, p50 = $ratio of that of an empty queue (at most $PAUSED_RATIO)"
	verdict "$(at_most "$waited" "$PAUSED_WAIT_MS")" \
		"the flow behind them is on the wire after $waited ms (at most $PAUSED_WAIT_MS)"
	say
}

# paused_run WHAT: flows of another id, each of a transaction of its own.
paused_run() {
	local from
	from=$(sql "SELECT pg_current_xact_id()")
	as_owner "$PG_BIN/pgbench" -h "$WORK/sock" -p "$PORT" -U postgres -n -c 1 -t "$PAUSED_FLOWS" \
		-f "$WORK/scripts/other.sql" postgres >"$WORK/pgbench.log" 2>&1 ||
		{ cat "$WORK/pgbench.log" >&2; die "pgbench failed"; }
	wait_until 30 paused_others_sent || die "flows stayed in the queue"
	progress ""
	latency_line "$1" "$from"
}

paused_others_sent() { [ "$(sql "SELECT NOT EXISTS (SELECT FROM feishu_internal.outbox
	WHERE flow_id <> 'backlog' AND state = 'q'
	AND id > (SELECT max(id) - $PAUSED_FLOWS FROM feishu_internal.outbox))")" = t ]; }

paused_out_of_the_way() { [ "$(sql "SELECT count(*) = $PAUSED_BACKLOG FROM feishu_internal.outbox
	WHERE state = 'q' AND next_at = 'infinity'")" = t ]; }
