# shellcheck shell=bash disable=SC2034,SC2153,SC2154 # (variables shared with script/bench)
#
# The part of script/bench about handlers, which sources this file: how many of one role are called in a second, each of
# which updates one row; and how long after the end of its flow one is called, in a session that is there, and in one
# that is still to begin.
#
# The ends are those of flows that are cancelled, many at once: so the platform has no part in the rate.

HANDLERS=20000
HANDLER_FLOWS=200
HANDLER_COLD=20
HANDLER_RATE=3000
HANDLER_MS=3	# half of them
HANDLER_MOST_MS=15	# 99 of 100
HANDLER_COLD_MS=60

bench_handlers() {
	local round part
	dispatch_prepare
	sql "CREATE ROLE handler LOGIN" && sql "GRANT USAGE ON FOREIGN SERVER feishu TO handler" &&
		sql "GRANT ALL ON SCHEMA bench TO handler"
	handlers_as "CREATE TABLE bench.target (id int PRIMARY KEY, execution_id text)"
	handlers_as "INSERT INTO bench.target SELECT generate_series(1, $HANDLERS)"
	handlers_as "CREATE TABLE bench.called (id bigint, at timestamptz)"
	handlers_as "CREATE FUNCTION bench.put(f feishu.flows) RETURNS void LANGUAGE plpgsql AS
		'BEGIN UPDATE bench.target SET execution_id = f.state WHERE id = (f.params->>''n'')::int; END'"
	handlers_as "CREATE FUNCTION bench.note(f feishu.flows) RETURNS void LANGUAGE sql AS
		'INSERT INTO bench.called VALUES ((f).id, clock_timestamp())'"
	for ((round = 1; round <= ROUNDS; round++)); do
		progress "handlers, round $round of $ROUNDS"
		handlers_rate
		handlers_times warm "$HANDLER_FLOWS"
		handlers_times cold "$HANDLER_COLD"
	done
	progress ""
	printf '%-40s %9s  %-17s\n' "handlers" "" "(lowest-highest)"
	for part in rate warm.half warm.most cold.half; do
		printf '%-40s %9.1f  %-17s\n' "$part" "$(median <"$WORK/results/$part")" "$(range <"$WORK/results/$part")"
	done
	say
	verdict "$(at_most "$HANDLER_RATE" "$(median <"$WORK/results/rate")")" "$HANDLER_RATE handlers/s of one role"
	verdict "$(at_most "$(median <"$WORK/results/warm.half")" "$HANDLER_MS")" "half of them within $HANDLER_MS ms"
	verdict "$(at_most "$(median <"$WORK/results/warm.most")" "$HANDLER_MOST_MS")" \
		"99 of 100 within $HANDLER_MOST_MS ms"
	verdict "$(at_most "$(median <"$WORK/results/cold.half")" "$HANDLER_COLD_MS")" \
		"in a new session within $HANDLER_COLD_MS ms"
	say
}

# Runs SQL as the role whose handlers they are.
handlers_as() { server_psql "$PORT" -qAt -U handler -d postgres -c "$1" >/dev/null; }

handlers_none_wait() {
	[ "$(sql "SELECT count(*) FROM feishu_internal.outbox
		WHERE end_number IS NOT NULL AND handler_state IS NULL")" = 0 ]
}

# handlers_queue FUNCTION FLOWS [ARGUMENTS]
handlers_queue() {
	handlers_as "SELECT count(feishu.enqueue_flow('package_7344545d87__c', 'deleteObject_99c656599f', '{\"_id\": 1111}',
		jsonb_build_object('n', n), on_end => 'bench.$1'$3)) FROM generate_series(1, $2) AS n"
}

handlers_rate() {
	local from
	outbox_empty
	handlers_queue put "$HANDLERS" ", run_at => now() + '1 day'"
	sql "ANALYZE feishu_internal.outbox"
	handlers_as "SELECT count(feishu.cancel_flow(id)) FROM feishu.flows"
	from=$(sql "SELECT max(finished_at) FROM feishu.flows")
	wait_until 60 handlers_none_wait || die "the handlers are not called"
	sql "SELECT $HANDLERS / extract(epoch FROM max(on_end_at) - '$from') FROM feishu.flows" >>"$WORK/results/rate"
}

# handlers_times warm|cold FLOWS: milliseconds from the end of a flow to its handler.
handlers_times() {
	local i
	outbox_empty
	sql "TRUNCATE bench.called"
	for ((i = 0; i < $2; i++)); do
		[ "$1" = warm ] || sql "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
			WHERE backend_type = 'feishu_flow handler'" >/dev/null
		handlers_queue note 1 ""
		wait_until 10 handlers_called $((i + 1)) || die "the handler is not called"
	done
	sql "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) FROM ($HANDLER_TIMES) t" >>"$WORK/results/$1.half"
	sql "SELECT percentile_cont(0.99) WITHIN GROUP (ORDER BY ms) FROM ($HANDLER_TIMES) t" >>"$WORK/results/$1.most"
}

handlers_called() { [ "$(sql "SELECT count(*) FROM bench.called")" -ge "$1" ]; }

HANDLER_TIMES="SELECT extract(epoch FROM c.at - f.finished_at) * 1000 AS ms
	FROM bench.called c JOIN feishu.flows f USING (id)"
