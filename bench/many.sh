# shellcheck shell=bash disable=SC2034,SC2153,SC2154 # (variables shared with script/bench)
#
# script/bench --many: feishu.execute_flows, the calls of all rows at once. script/bench sources it.
#
# Beside libcurl's multi loop with as many requests in flight, where nginx answers at once; and, where answers take
# their time (bench/slow.c), beside the ideal, which is that time for each wave of calls, and beside one call after the
# other: libcurl in a plain loop, which no extension that waits for each answer can beat, and pgsql-http, when it is
# installed.

MANY_CALLS=20000	# of a round, answered at once
MANY_SLOW_CALLS=2000
MANY_IN_FLIGHT=64	# as curl_multi has

# ---- the ground ----

many_prepare() {
	local program delay
	for program in curl_multi slow; do
		as_owner cc -O2 -Wall -o "$WORK/$program" "$WORK/src/bench/$program.c" -lcurl ||
			die "could not build bench/$program.c"
	done
	database_prepare
	many_server feishu_tls "$NGINX_TLS_URL" ", ca_file '$WORK/tls.crt'"
	for delay in 20 50; do
		as_owner "$WORK/slow" "$delay" >"$WORK/slow_$delay" 2>"$WORK/slow_$delay.log" &
		SLOW_PIDS+=($!)
		wait_until 10 test -s "$WORK/slow_$delay" || die "bench/slow.c did not start"
		many_server "slow_$delay" "http://127.0.0.1:$(cat "$WORK/slow_$delay")"
	done
}

many_server() {
	server_psql "$PORT" -q -c "CREATE SERVER $1 FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url '$2'${3:-})" \
		-c "CREATE USER MAPPING FOR PUBLIC SERVER $1 OPTIONS (app_id 'cli_bench', app_secret 'bench-secret')"
}

# many_rate SERVER CALLS IN_FLIGHT: calls per second, in a session that has made one.
many_rate() {
	local call="feishu.execute_flows('package_7344545d87__c', 'deleteObject_99c656599f',
		operator => '{\"_id\": 1111, \"email\": \"apaas@bytedance.com\"}',
		params => '{\"variable_rgrtgqworiginal\": {\"_id\": 5454545}}', is_async => true,
		idempotent_key => format('7b0a4d5e-0000-4000-8000-%s', lpad(i::text, 12, '0')), server => '$1') OVER ()"
	server_psql "$PORT" -qAt -c "SET feishu_flow.max_concurrent_calls = $3" \
		-c "SELECT feishu.execute_flow('package_7344545d87__c', 'f', '{\"_id\": 1}', server => '$1')" -c '\timing on' \
		-c "SELECT 'good', count(*)
			FROM (SELECT $call AS r FROM generate_series(1, $2) AS i) AS calls WHERE (r).sqlstate IS NULL" |
		awk -F'[| ]' -v calls="$2" '/^Time:/ { ms = $2 } /^good/ { good = $2 == calls }
			END { if (!good || !ms) exit 1; printf "%.1f\n", calls * 1000 / ms }'
}

# ---- the parts ----

many_http1() { many_rate feishu "$MANY_CALLS" "$MANY_IN_FLIGHT"; }
many_multi1() { as_owner "$WORK/curl_multi" "$NGINX_URL" "$MANY_CALLS"; }
many_http2() { many_rate feishu_tls "$MANY_CALLS" "$MANY_IN_FLIGHT"; }
many_multi2() { as_owner "$WORK/curl_multi" "$NGINX_TLS_URL" "$MANY_CALLS" "$WORK/tls.crt"; }
many_slow32() { many_rate slow_50 "$MANY_SLOW_CALLS" 32; }
many_slow256() { many_rate slow_50 "$MANY_SLOW_CALLS" 256; }
many_slow20() { many_rate slow_20 "$MANY_SLOW_CALLS" 32; }
many_loop20() { as_owner "$WORK/curl_loop" "http://127.0.0.1:$(cat "$WORK/slow_20")" 100; }
many_http20() {
	HTTP_CALL=${HTTP_CALL//$NGINX_URL/http://127.0.0.1:$(cat "$WORK/slow_20")} CALLS=100 bench_http_statement
}

many_describe() {
	case "$1" in
		http1) say "HTTP/1.1, answers at once, $MANY_IN_FLIGHT at once" ;;
		multi1) say "  libcurl's multi loop" ;;
		http2) say "HTTPS + HTTP/2, answers at once" ;;
		multi2) say "  libcurl's multi loop" ;;
		slow32) say "answers after 50 ms, 32 at once" ;;
		slow256) say "answers after 50 ms, 256 at once" ;;
		slow20) say "answers after 20 ms, 32 at once" ;;
		loop20) say "  libcurl, plain C loop" ;;
		http20) say "  pgsql-http" ;;
	esac
}

bench_many() {
	local parts=(http1 multi1 http2 multi2 slow32 slow256 slow20 loop20) part round
	SLOW_PIDS=()
	many_prepare
	! http_extension_installed || parts+=(http20)
	for ((round = 1; round <= ROUNDS; round++)); do
		for part in "${parts[@]}"; do
			progress "round $round of $ROUNDS: $part"
			"many_$part" >>"$WORK/results/$part" || die "could not measure: $(many_describe "$part")"
		done
	done
	progress ""
	printf '%-46s %9s  %s\n' "execute_flows" calls/s "(lowest-highest)"
	for part in "${parts[@]}"; do
		printf '%-46s %9.0f  %s\n' "$(many_describe "$part")" \
			"$(median <"$WORK/results/$part")" "$(range <"$WORK/results/$part")"
	done
	say
	target http1 multi1 0.5
	target http2 multi2 0.5
	many_target_time slow32 32 1.15
	many_target_time slow256 256 1.3
	target slow20 loop20 5
	! http_extension_installed || target slow20 http20 5
	many_memory
	kill "${SLOW_PIDS[@]}" 2>/dev/null || true
}

# many_target_time PART IN_FLIGHT MOST: the time of its calls, in that of as many waves of 50 ms.
many_target_time() {
	target_is "$1, time / ideal" \
		"$(median <"$WORK/results/$1" | awk -v n="$2" '{ print n / 0.05 / $1 }')" "<=" "$3"
}

# ---- memory: 100,000 calls of one statement ----

MANY_MEMORY_KB=65536	# above the same session after 1,000

many_memory() {
	local calls pid_file=$WORK/results/pid
	{
		say "SELECT pg_backend_pid() \\g $pid_file"
		for calls in 1000 100000 100000; do
			say "SELECT count(r) FROM (SELECT feishu.execute_flows('package_7344545d87__c', 'f', '{\"_id\": 1}',
				params => jsonb_build_object('i', i)) OVER () AS r
				FROM generate_series(1, $calls) AS i) AS s \\g /dev/null" |
				tr '\n' ' '
			say
			say "\\! \"\$BENCH\" --probe $calls $pid_file"
		done
	} >"$WORK/scripts/many_memory.sql"
	say
	printf '%12s %20s %12s\n' calls "private memory, kB" descriptors
	BENCH=$WORK/src/script/bench server_psql "$PORT" -qAt -f "$WORK/scripts/many_memory.sql" |
		tee "$WORK/results/many_memory"
	verdict "$(awk -v most="$MANY_MEMORY_KB" 'NR == 1 { kb = $2; fds = $3 } $2 - kb > most || $3 > fds { bad = 1 }
			END { if (NR == 3 && !bad) print 1 }' "$WORK/results/many_memory")" \
		"100,000 calls: at most $((MANY_MEMORY_KB / 1024)) MB more than after 1,000, and no more descriptors"
}
