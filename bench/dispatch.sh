# shellcheck shell=bash disable=SC2034,SC2153 # (variables shared with script/bench)
#
# The queue's part of script/bench, which sources this file: enqueue, dispatch, latency, memory.
#
# The server of these measurements writes to the disk as a real one does (fsync on): a flow counts as dispatched when
# its end is recorded durably. Autovacuum is off, so that it does not come in between; the other settings are
# PostgreSQL's and the extension's own.

ENQUEUE_ROWS=20000
DEAD_ROWS=200000
LATENCY_FLOWS=400
LATENCY_GAP_MS=20
BUSY_RATE=2000	# flows per second
MULTI_REQUESTS=60000
LENGTHS=(1000 10000 100000)
MEMORY_LIMIT_KB=65536
PLOT=${TMPDIR:-/tmp}/feishu_flow_dispatch.svg

# ---- the ground ----

dispatch_prepare() {
	local program
	for program in curl_multi arrival; do
		as_owner cc -O2 -Wall -o "$WORK/$program" "$WORK/src/bench/$program.c" -lcurl ||
			die "could not build bench/$program.c"
	done
	server_start server "$PORT" "shared_preload_libraries = '$(dispatch_libraries)'" "fsync = on" "autovacuum = off" \
		"max_wal_size = 8GB" "track_commit_timestamp = on"
	server_psql "$PORT" -q -v base_url="$NGINX_URL" -f "$WORK/src/bench/setup.sql"
	server_psql "$PORT" -q -v tls_url="$NGINX_TLS_URL" -v ca_file="$WORK/tls.crt" -f "$WORK/src/bench/dispatch.sql"
	as_owner mkdir -p "$WORK/scripts" "$WORK/results"
}

dispatch_libraries() {
	if pg_net_installed; then say "feishu_flow,pg_net"; else say "feishu_flow"; fi
}

pg_net_installed() { [ -e "$("$PG_CONFIG" --sharedir)/extension/pg_net.control" ]; }

# One value of SQL.
sql() { server_psql "$PORT" -qAt -c "$1"; }

# Milliseconds that the statement $1 takes, in a session where $2 was run before; nothing stays of it.
statement_ms() {
	server_psql "$PORT" -qAt -c "BEGIN" -c "${2:-SELECT 1}" -c '\timing on' -c "$1" -c '\timing off' -c "ROLLBACK" |
		awk '/^Time:/ { print $2 }'
}

dispatcher_pid() {
	sql "SELECT pid FROM pg_stat_activity
		WHERE backend_type LIKE 'feishu_flow dispatcher%' AND datname = current_database()"
}

# ---- enqueue ----

# enqueue_measure: a round. All statements are over the same rows; microseconds a row go to the results.
enqueue_measure() {
	local part rows="generate_series(1, $ENQUEUE_ROWS) AS i"
	local -A statement=(
		[series]="SELECT count(i) FROM $rows"
		[plain]="INSERT INTO bench.plain (id, roleid, is_async, own_key, created_at, run_at, expires_at,
			server, namespace, flow_id, operator, params, idempotent_key)
			SELECT nextval('bench.plain_id_seq'), current_user::regrole, true, true, now(), now(), now() + '1 day',
			'feishu', 'package_7344545d87__c', 'deleteObject_99c656599f',
			'{\"_id\": 1111, \"email\": \"apaas@bytedance.com\"}', '{\"variable_rgrtgqworiginal\": {\"_id\": 5454545}}',
			gen_random_uuid()::text FROM $rows"
		[enqueue]="SELECT count(feishu.enqueue_flow('package_7344545d87__c', 'deleteObject_99c656599f',
			'{\"_id\": 1111, \"email\": \"apaas@bytedance.com\"}',
			'{\"variable_rgrtgqworiginal\": {\"_id\": 5454545}}')) FROM $rows"
		[orders]="INSERT INTO bench.orders SELECT i, 'submitted' FROM $rows"
		[orders_plpgsql]="INSERT INTO bench.orders_plpgsql SELECT i, 'submitted' FROM $rows"
		[orders_flow]="INSERT INTO bench.orders_flow SELECT i, 'submitted' FROM $rows"
	)
	for part in series plain enqueue orders orders_plpgsql orders_flow; do
		statement_ms "${statement[$part]}" "${statement[$part]/$rows/generate_series(1, 10) AS i}" |
			awk -v rows="$ENQUEUE_ROWS" '{ print $1 * 1000 / rows }' >>"$WORK/results/$part"
	done
	sql "VACUUM feishu_internal.outbox, bench.plain, bench.orders, bench.orders_plpgsql, bench.orders_flow"
}

bench_enqueue() {
	local round
	sql "SELECT feishu.pause_server('feishu')" >/dev/null
	for ((round = 1; round <= ROUNDS; round++)); do
		progress "enqueue: round $round of $ROUNDS"
		enqueue_measure
	done
	progress ""
	sql "SELECT feishu.resume_server('feishu')" >/dev/null
	difference enqueue series enqueue_net
	difference plain series plain_net
	difference orders_flow orders trigger_net
	difference orders_plpgsql orders plpgsql_net
	printf '%-64s %8s  %s\n' "enqueue" "us/row" "(lowest-highest)"
	enqueue_line plain_net "INSERT of the same row, one statement"
	enqueue_line enqueue_net "feishu.enqueue_flow, one statement"
	enqueue_line plpgsql_net "the INSERT in a row trigger (PL/pgSQL), net of the table's own row"
	enqueue_line trigger_net "feishu.flow_trigger, net of the table's own row"
	say
	target_at_most enqueue_net plain_net 1.3
	target_at_most trigger_net plpgsql_net 1.5
	say
}

# difference A B C: C gets A less B, round by round.
difference() { paste "$WORK/results/$1" "$WORK/results/$2" | awk '{ print $1 - $2 }' >"$WORK/results/$3"; }

enqueue_line() {
	printf '%-64s %8.1f  %s\n' "$2" "$(median <"$WORK/results/$1")" "$(range <"$WORK/results/$1")"
}

# ---- dispatch ----

# The limit: requests per second of the multi loop on server $1.
multi_rate() {
	case "$1" in
		feishu) as_owner "$WORK/curl_multi" "$NGINX_URL" "$MULTI_REQUESTS" ;;
		feishu_tls) as_owner "$WORK/curl_multi" "$NGINX_TLS_URL" "$MULTI_REQUESTS" "$WORK/tls.crt" ;;
	esac
}

# Queue $2 flows to server $1, which is paused then.
flows_queue() {
	sql "SELECT feishu.pause_server('$1')" >/dev/null
	sql "SELECT count(feishu.enqueue_flow('package_7344545d87__c', 'deleteObject_99c656599f',
		'{\"_id\": 1111, \"email\": \"apaas@bytedance.com\"}', '{\"variable_rgrtgqworiginal\": {\"_id\": 5454545}}',
		server => '$1')) FROM generate_series(1, $2)" >"$WORK/results/queued"
	sql "CHECKPOINT"
}

# Send what is queued to server $1, $2 flows; prints how many a second were sent and recorded.
flows_send() {
	local resumed first
	first=$(sql "SELECT COALESCE(min(id), 0) FROM feishu_internal.outbox WHERE state = 'q'")
	sql "SELECT feishu.stat_reset()" >/dev/null
	resumed=$(sql "SELECT extract(epoch FROM clock_timestamp()); SELECT feishu.resume_server('$1')" | sed -n 1p)
	flows_await "$2"
	flows_recorded "$2" "$first" "$resumed"
}

# Wait until $1 flows were sent. The counters in shared memory tell: to count rows, or to start one psql after the
# other, would be work for the machine that is measured.
flows_await() {
	sql "DO \$\$ BEGIN
		FOR look IN 1..12000 LOOP	-- ten minutes
			EXIT WHEN (SELECT sum(successes) >= $1 FROM feishu.stat_flows);
			COMMIT;
			PERFORM pg_sleep(0.05);
		END LOOP;
	END \$\$"
}

flows_recorded() {
	wait_until 10 queue_empty || die "flows stayed in the queue"
	sql "SELECT round(count(*) / (extract(epoch FROM max(finished_at)) - $3), 1) FROM feishu_internal.outbox
		WHERE id >= $2 AND state = 's' HAVING count(*) = $1" | grep . || die "not all of $1 flows succeeded"
}

queue_empty() { [ "$(sql "SELECT NOT EXISTS (SELECT FROM feishu_internal.outbox WHERE state = 'q')")" = t ]; }

# dispatch_measure SERVER LENGTH NAME: a round; the limit is measured next to it.
dispatch_measure() {
	flows_queue "$1" "$2"
	multi_rate "$1" >>"$WORK/results/$3.multi"
	flows_send "$1" "$2" >>"$WORK/results/$3" || exit
}

outbox_empty() { sql "TRUNCATE feishu_internal.outbox"; }

bench_rate() {
	local server length round rounds
	printf '%-40s %9s  %-17s %9s %8s\n' "dispatch" flows/s "(lowest-highest)" "multi" "of multi"
	for server in feishu feishu_tls; do
		for length in "${LENGTHS[@]}"; do
			rounds=$ROUNDS
			[ "$length" -le 100000 ] || rounds=1
			for ((round = 1; round <= rounds; round++)); do
				progress "$server: $length queued, round $round of $rounds"
				outbox_empty
				dispatch_measure "$server" "$length" "$server.$length"
			done
			progress ""
			dispatch_line "$server.$length" "$(describe_server "$server"), $length queued"
			plot_point "$server" "$length"
		done
	done
}

describe_server() { if [ "$1" = feishu ]; then say "HTTP/1.1"; else say "HTTPS + HTTP/2"; fi; }

dispatch_line() {
	printf '%-40s %9.0f  %-17s %9.0f %8.2f\n' "$2" "$(median <"$WORK/results/$1")" "$(range <"$WORK/results/$1")" \
		"$(median <"$WORK/results/$1.multi")" "$(ratio "$1" "$1.multi")"
}

plot_point() {
	say "$2 $(median <"$WORK/results/$1.$2") $(median <"$WORK/results/$1.$2.multi")" >>"$WORK/results/$1.plot"
}

# The same when an old snapshot keeps the rows of flows that were sent and purged, and right before that without them.
bench_dead_rows() {
	local round
	for ((round = 1; round <= ROUNDS; round++)); do
		progress "$DEAD_ROWS dead rows, round $round of $ROUNDS"
		outbox_empty
		dispatch_measure feishu 10000 clean
		dead_rows_measure
	done
	progress ""
	dispatch_line clean "HTTP/1.1, 10000 queued, no dead rows"
	dispatch_line dead "HTTP/1.1, 10000 queued, $DEAD_ROWS dead rows"
}

dead_rows_measure() {
	local holder
	outbox_empty
	as_owner "$PG_BIN/psql" -X -q -h "$WORK/sock" -p "$PORT" -U postgres postgres >/dev/null 2>&1 <<-END &
		BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; SELECT pg_sleep(3600);
	END
	holder=$!
	wait_until 10 old_snapshot_held || die "no old snapshot"
	flows_queue feishu "$DEAD_ROWS"
	flows_send feishu "$DEAD_ROWS" >/dev/null
	sql "SELECT feishu.purge_flows('infinity')" >/dev/null
	dispatch_measure feishu 10000 dead
	sql "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE query LIKE '%pg_sleep(3600)%' AND pid <> pg_backend_pid()" >/dev/null
	wait "$holder" || true
}

old_snapshot_held() {
	[ "$(sql "SELECT count(*) FROM pg_stat_activity
		WHERE query LIKE '%pg_sleep(3600)%' AND wait_event = 'PgSleep'")" = 1 ]
}

dispatch_targets() {
	local longest=${LENGTHS[-1]}
	say
	target feishu.10000 feishu.10000.multi 0.4
	target feishu_tls.10000 feishu_tls.10000.multi 0.5
	target_of_medians "feishu.$longest" feishu.10000 0.8
	target dead clean 0.8
	say
}

# ---- memory ----

# Until it is stopped: the dispatcher's private memory, each second. (Not what the kernel calls private: that has the
# pages of shared buffers, too, that no other process happens to have touched.)
memory_watch() {
	local pid
	pid=$(dispatcher_pid)
	while kb=$(anonymous_kb "$pid" 2>/dev/null) && [ -n "$kb" ]; do
		say "$kb"
		sleep 1
	done >"$WORK/results/memory"
}

memory_report() {
	local first last highest
	first=$(sed -n 10p "$WORK/results/memory")
	last=$(tail -n 1 "$WORK/results/memory")
	highest=$(sort -n "$WORK/results/memory" | tail -n 1)
	printf 'dispatcher, private memory: %d kB after 10 s, %d kB at the end, %d kB at most, %s flows\n' \
		"${first:-0}" "${last:-0}" "${highest:-0}" "$(cat "$WORK/results/flows")"
	verdict "$([ -n "$highest" ] && [ "$highest" -le "$MEMORY_LIMIT_KB" ] && say 1)" \
		"at most $((MEMORY_LIMIT_KB / 1024)) MB"
	say
}

# ---- latency ----

# Each flow carries the number of its transaction; bench/arrival.c writes down when a request with it arrived, and
# PostgreSQL when the transaction committed (track_commit_timestamp: before it waits for the disk).
bench_latency() {
	as_owner "$WORK/arrival" >"$WORK/arrival.log" &
	wait_until 10 test -s "$WORK/arrival.log" || die "bench/arrival.c did not start"
	sql "ALTER SERVER feishu OPTIONS (SET base_url 'http://127.0.0.1:$(head -n 1 "$WORK/arrival.log")')"
	say "SELECT feishu.enqueue_flow('package_7344545d87__c', 'deleteObject_99c656599f', '{\"_id\": 1}',
		jsonb_build_object('xid', pg_current_xact_id()::text::bigint));" | tr '\n\t' '  ' >"$WORK/scripts/busy.sql"
	{
		cat "$WORK/scripts/busy.sql"
		printf '\n\\sleep %d ms\n' "$LATENCY_GAP_MS"
	} >"$WORK/scripts/idle.sql"
	printf '%-40s %9s %9s %9s %9s\n' "commit to wire, ms" flows p50 p99 highest
	latency_run "idle" -c 1 -t "$LATENCY_FLOWS" -f "$WORK/scripts/idle.sql"
	latency_run "busy, $BUSY_RATE flows/s" -c 4 -t "$((BUSY_RATE))" -R "$BUSY_RATE" -f "$WORK/scripts/busy.sql"
	sql "ALTER SERVER feishu OPTIONS (SET base_url '$NGINX_URL')"
	say
}

latency_run() {
	local what=$1 from
	shift
	outbox_empty
	sql "$(cat "$WORK/scripts/busy.sql")" >/dev/null	# the first one connects
	wait_until 10 queue_empty
	from=$(sql "SELECT pg_current_xact_id()")
	as_owner "$PG_BIN/pgbench" -h "$WORK/sock" -p "$PORT" -U postgres -n "$@" postgres >"$WORK/pgbench.log" 2>&1 ||
		{ cat "$WORK/pgbench.log" >&2; die "pgbench failed"; }
	wait_until 30 queue_empty || die "flows stayed in the queue"
	latency_line "$what" "$from"
	[ "$what" != idle ] || cp "$WORK/results/latency" "$WORK/results/latency.idle"
}

# latency_line WHAT FROM: of the flows of transactions after that one.
latency_line() {
	local what=$1 from=$2
	awk -v from="$from" 'NR > 1 && $1 > from { print $1 "," $2 }' "$WORK/arrival.log" >"$WORK/results/arrivals"
	chmod a+r "$WORK/results/arrivals"
	server_psql "$PORT" -qAt -F ' ' -f - >"$WORK/results/latency" <<-END
		CREATE TEMP TABLE arrivals (xid text, us bigint);
		\copy arrivals FROM '$WORK/results/arrivals' CSV
		SELECT count(ms), round(percentile_cont(0.5) WITHIN GROUP (ORDER BY ms)::numeric, 2),
			round(percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)::numeric, 2), round(max(ms), 2)
		FROM (SELECT us / 1000.0 - extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1000 AS ms FROM arrivals) d;
	END
	awk -v what="$what" '{ printf "%-40s %9d %9.2f %9.2f %9.2f\n", what, $1, $2, $3, $4 }' "$WORK/results/latency"
}

latency_targets() {
	local p50 p99
	read -r _ p50 p99 _ <"$WORK/results/latency.idle"
	verdict "$(awk -v is="$p50" 'BEGIN { if (is <= 2) print 1 }')" "commit to wire, idle, p50 = $p50 ms (at most 2)"
	verdict "$(awk -v is="$p99" 'BEGIN { if (is <= 10) print 1 }')" "commit to wire, idle, p99 = $p99 ms (at most 10)"
	say
}

# ---- pg_net ----

PG_NET_REQUESTS=5000

# A round: requests a second, from the commit to the last answer; with its own settings.
pg_net_measure() {
	local queued
	sql "TRUNCATE net._http_response"
	queued=$(sql "SELECT count(net.http_post('$NGINX_URL$FLOW_PATH', '{\"params\": \"{}\"}'::jsonb))
		FROM generate_series(1, $PG_NET_REQUESTS); SELECT extract(epoch FROM clock_timestamp())" | tail -n 1)
	wait_until 300 pg_net_done || die "pg_net has not answered all"
	[ "$(sql "SELECT count(*) FROM net._http_response WHERE status_code = 200")" = "$PG_NET_REQUESTS" ] ||
		die "pg_net was not answered"
	sql "SELECT round($PG_NET_REQUESTS / (extract(epoch FROM max(created)) - $queued), 1) FROM net._http_response"
}

bench_pg_net() {
	local round
	if ! pg_net_installed; then
		say "pg_net: not measured, the extension \"pg_net\" is not installed"
		return
	fi
	sql "CREATE EXTENSION IF NOT EXISTS pg_net"
	for ((round = 1; round <= ROUNDS; round++)); do
		progress "pg_net, round $round of $ROUNDS"
		outbox_empty
		dispatch_measure feishu "$PG_NET_REQUESTS" queue
		pg_net_measure >>"$WORK/results/queue.pg_net"
	done
	progress ""
	printf '%-40s %9s  %-17s %9s %9s\n' "beside pg_net" flows/s "(lowest-highest)" "pg_net" "of pg_net"
	printf '%-40s %9.0f  %-17s %9.0f %9.1f\n' "HTTP/1.1, $PG_NET_REQUESTS queued" "$(median <"$WORK/results/queue")" \
		"$(range <"$WORK/results/queue")" "$(median <"$WORK/results/queue.pg_net")" "$(ratio queue queue.pg_net)"
}

bench_pg_net_alone() {
	dispatch_prepare
	wait_until 20 test -n "$(dispatcher_pid)" || die "no dispatcher"
	bench_pg_net
}

pg_net_done() { [ "$(sql "SELECT count(*) >= $PG_NET_REQUESTS FROM net._http_response")" = t ]; }

# ---- all of it ----

bench_lanes_alone() {
	dispatch_prepare
	bench_lanes
}

bench_dispatch() {
	local watcher
	[ -z "$FULL" ] || LENGTHS+=(1000000)
	dispatch_prepare
	wait_until 20 test -n "$(dispatcher_pid)" || die "no dispatcher"
	bench_enqueue
	memory_watch &
	watcher=$!
	bench_rate
	bench_dead_rows
	kill "$watcher" 2>/dev/null || true
	sql "SELECT id FROM feishu_internal.last_id" >"$WORK/results/flows"
	dispatch_targets
	memory_report
	bench_lanes
	bench_latency
	latency_targets
	bench_pg_net
	dispatch_plot
}

dispatch_plot() {
	if ! command -v gnuplot >/dev/null; then
		say "no plot: gnuplot is not installed"
		return
	fi
	gnuplot -e "plot_file='$PLOT'; terminal_name='${PLOT##*.}'; dir='$WORK/results'" \
		"$WORK/src/bench/dispatch.gnuplot" &&
		say "plot: $PLOT"
}
