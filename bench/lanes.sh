# shellcheck shell=bash disable=SC2034,SC2153,SC2154 # (variables shared with script/bench)
#
# The part of script/bench --dispatch that is about lanes (a server and a role): the same number of flows, queued by one
# role, and spread over many; and how long a dispatcher takes to begin when many lanes wait. script/bench sources it.
#
# A row that does not end in time says so, and the next one begins with an empty queue.

LANES=(1 1500 10000)
LANE_FLOWS=30000
LANE_TIME=60	# seconds for a row
FIRST_LANES=5000
FIRST_MS=1000

bench_lanes() {
	local round lanes
	sql 'GRANT USAGE ON FOREIGN SERVER feishu TO PUBLIC'
	sql "DO \$\$ BEGIN FOR i IN 1..${LANES[-1]} LOOP EXECUTE 'CREATE ROLE lane' || i; END LOOP; END \$\$"
	for ((round = 1; round <= ROUNDS; round++)); do
		for lanes in "${LANES[@]}"; do
			[ ! -e "$WORK/results/lanes.$lanes.late" ] || continue
			progress "$LANE_FLOWS flows of $lanes lanes, round $round of $ROUNDS"
			lanes_measure "$lanes"
		done
		progress "first claim of $FIRST_LANES lanes, round $round of $ROUNDS"
		[ -e "$WORK/results/first.late" ] || first_measure
	done
	progress ""
	printf '%-40s %9s  %-17s %8s %9s %8s %8s\n' "lanes" flows/s "(lowest-highest)" "of one" "most, kB" sockets restarts
	for lanes in "${LANES[@]}"; do
		lanes_line "$lanes"
	done
	first_line
	say
	for lanes in "${LANES[@]:1}"; do
		lanes_targets "$lanes"
	done
	verdict "$([ ! -e "$WORK/results/first.late" ] && at_most "$(median <"$WORK/results/first")" "$FIRST_MS")" \
		"first answer of $FIRST_LANES lanes in $FIRST_MS ms"
	say
}

# ---- the parts ----

# No dispatcher, an empty queue.
lanes_clear() {
	dispatch_set off
	wait_until 30 dispatcher_gone || die "the dispatcher does not end"
	outbox_empty
}

dispatcher_gone() { [ -z "$(dispatcher_pid)" ]; }

dispatch_set() { sql "ALTER SYSTEM SET feishu_flow.dispatch = $1" && sql "SELECT pg_reload_conf()" >/dev/null; }

# lanes_queue LANES FLOWS: flows of so many roles in turn.
lanes_queue() {
	sql "DO \$\$ BEGIN
		FOR i IN 1..$2 LOOP
			PERFORM set_config('role', 'lane' || 1 + i % $1, true);
			PERFORM feishu.enqueue_flow('package_7344545d87__c', 'deleteObject_99c656599f',
				'{\"_id\": 1111, \"email\": \"apaas@bytedance.com\"}',
				'{\"variable_rgrtgqworiginal\": {\"_id\": 5454545}}');
		END LOOP;
	END \$\$"
	sql "ANALYZE feishu_internal.outbox"
	sql "CHECKPOINT"
}

lanes_measure() {
	local name=lanes.$1 resumed rate watcher
	lanes_clear
	sql "SELECT feishu.pause_server('feishu')" >/dev/null
	lanes_queue "$1" "$LANE_FLOWS"
	sql "SELECT feishu.stat_reset()" >/dev/null
	dispatch_set on
	wait_until 30 dispatcher_there || die "no dispatcher"
	python3 "$ROOT/bench/watch.py" "$(head -n 1 "$WORK/server/postmaster.pid")" >"$WORK/results/watched" &
	watcher=$!
	resumed=$(sql "SELECT extract(epoch FROM clock_timestamp()); SELECT feishu.resume_server('feishu')" | sed -n 1p)
	rate=$(lanes_await "$LANE_FLOWS" && lanes_rate "$resumed") || true
	kill "$watcher" 2>/dev/null || true
	wait "$watcher" || true
	say "$(cat "$WORK/results/watched")" >>"$WORK/results/$name.watched"
	if [ -n "$rate" ]; then
		say "$rate" >>"$WORK/results/$name"
	else
		lanes_late >"$WORK/results/$name.late"
	fi
}

dispatcher_there() { [ -n "$(dispatcher_pid)" ]; }

# Wait until $1 flows have succeeded, but not longer than a row may take.
lanes_await() {
	sql "DO \$\$ BEGIN
		FOR look IN 1..$((LANE_TIME * 20)) LOOP
			EXIT WHEN (SELECT sum(successes) >= $1 FROM feishu.stat_flows);
			COMMIT;
			PERFORM pg_sleep(0.05);
		END LOOP;
	END \$\$"
	wait_until 5 queue_empty
}

# Flows a second since $1, if all succeeded.
lanes_rate() {
	sql "SELECT round(count(*) / (extract(epoch FROM max(finished_at)) - $1), 1) FROM feishu_internal.outbox
		HAVING bool_and(state = 's')"
}

lanes_late() {
	sql "SELECT 'did not end in $LANE_TIME s: ' || string_agg(n || ' ' || what, ', ' ORDER BY what)
		FROM (SELECT CASE state WHEN 'q' THEN 'wait' WHEN 's' THEN 'succeeded'
			WHEN 'u' THEN 'unconfirmed' ELSE 'failed' END,
			count(*) FROM feishu_internal.outbox GROUP BY 1) AS s (what, n)"
}

# From the start of a dispatcher to its first answer, and to the last.
first_measure() {
	local started
	lanes_clear
	lanes_queue "$FIRST_LANES" "$FIRST_LANES"
	sql "SELECT feishu.stat_reset()" >/dev/null
	dispatch_set on
	wait_until 30 dispatcher_there || die "no dispatcher"
	started=$(sql "SELECT extract(epoch FROM backend_start) FROM pg_stat_activity
		WHERE backend_type LIKE 'feishu_flow dispatcher%' AND datname = current_database()")
	if [ -n "$started" ] && lanes_await "$FIRST_LANES"; then
		first_ms min "$started" >>"$WORK/results/first"
		first_ms max "$started" >>"$WORK/results/first.all"
	else
		lanes_late >"$WORK/results/first.late"
	fi
}

# Milliseconds from $2 to the first (min) or last (max) answer.
first_ms() { sql "SELECT round((extract(epoch FROM $1(finished_at)) - $2) * 1000) FROM feishu_internal.outbox"; }

# ---- what came of it ----

# The highest in column $2 of what was watched of a row.
watched() {
	awk -v column="$2" '$column > most { most = $column } END { print most + 0 }' "$WORK/results/lanes.$1.watched"
}

lanes_line() {
	local name=lanes.$1
	if [ -e "$WORK/results/$name.late" ]; then
		printf '%-40s %s' "$1, $LANE_FLOWS queued" "$(cat "$WORK/results/$name.late")"
		printf ' (%d kB, %d sockets, %d restarts)\n' "$(watched "$1" 1)" "$(watched "$1" 2)" "$(watched "$1" 3)"
		return
	fi
	printf '%-40s %9.0f  %-17s %8.2f %9d %8d %8d\n' "$1, $LANE_FLOWS queued" "$(median <"$WORK/results/$name")" \
		"$(range <"$WORK/results/$name")" "$(lanes_ratio "$1")" \
		"$(watched "$1" 1)" "$(watched "$1" 2)" "$(watched "$1" 3)"
}

# Of the rate of one lane; 0 if there is none.
lanes_ratio() {
	if [ -e "$WORK/results/lanes.$1" ] && [ -e "$WORK/results/lanes.1" ]; then
		ratio "lanes.$1" lanes.1
	else
		say 0
	fi
}

first_line() {
	if [ -e "$WORK/results/first.late" ]; then
		printf '%-40s %s\n' "$FIRST_LANES, a flow each" "$(cat "$WORK/results/first.late")"
	else
		printf '%-40s first answer after %.0f ms, the last after %.0f ms\n' "$FIRST_LANES, a flow each" \
			"$(median <"$WORK/results/first")" "$(median <"$WORK/results/first.all")"
	fi
}

# Prints 1 if $1 <= $2.
at_most() { awk -v is="$1" -v most="$2" 'BEGIN { if (is <= most) print 1 }'; }

lanes_targets() {
	target_is "$1 lanes / one" "$(lanes_ratio "$1")" ">=" 0.7
	target_is "$1 lanes, MB" "$(awk -v kb="$(watched "$1" 1)" 'BEGIN { print kb / 1024 }')" "<=" \
		$((MEMORY_LIMIT_KB / 1024))
}
