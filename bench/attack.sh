# shellcheck shell=bash disable=SC2034,SC2153,SC2154 # (variables shared with script/bench)
#
# script/bench --attack: what the server's processes need of memory while roles want it filled, and what becomes of the
# flows of others meanwhile. script/bench sources it.
#
# The server has the extension's own settings, but for a shorter timeout, so that in a minute many flows hang, one after
# the other. The platform is the mock of the tests, over HTTP/1.1 and, behind a front, over HTTP/2. What the hostile
# clients do is in bench/attack.py and test/torture/hostile.py.

ATTACK_SECONDS=60
ATTACK_MOST_KB=131072	# private memory of any process
ATTACK_MOST_MS=15000	# that a flow, or a call, of others may take

bench_attack() {
	local kind kb flows calls slowest problems
	server_start server "$PORT" "shared_preload_libraries = 'feishu_flow'" "max_connections = 60" \
		"max_prepared_transactions = 300" "feishu_flow.timeout = '5s'"
	as_owner mkdir "$WORK/results" "$WORK/attack"
	progress "$ATTACK_SECONDS s of hostile clients"
	as_owner python3 -B "$WORK/src/bench/attack.py" --socket "$WORK/sock" --port "$PORT" --data "$WORK/server" \
		--test "$WORK/src/test" --work "$WORK/attack" --seconds "$ATTACK_SECONDS" >"$WORK/results/attack" ||
		{ tail -n 30 "$WORK/server.log" >&2; die "the attack did not run"; }
	progress ""
	awk '$1 == "hostile" {
			printf "%d flows, %d calls and %d statements of hostile clients in '"$ATTACK_SECONDS"' s\n\n",
				$2, $3, $4
		}' \
		"$WORK/results/attack"
	printf '%-40s %20s\n' "process" "most, kB"
	while read -r _ kind kb; do
		printf '%-40s %20d\n' "$(attack_describe "$kind")" "$kb"
	done < <(grep '^memory ' "$WORK/results/attack")
	say
	while read -r _ kind kb; do
		target_is "$(attack_describe "$kind"), MB" "$(awk -v kb="$kb" 'BEGIN { print kb / 1024 }')" "<=" \
			$((ATTACK_MOST_KB / 1024))
	done < <(grep '^memory ' "$WORK/results/attack")
	read -r _ flows calls slowest < <(grep '^ended ' "$WORK/results/attack")
	problems=$(sed -n 's/^problem //p' "$WORK/results/attack")
	verdict "$([ -z "$problems" ] && [ "$flows" -gt 0 ] && at_most "$slowest" "$ATTACK_MOST_MS")" \
		"$flows flows and $calls calls of others ended well, the slowest in $slowest ms (at most $ATTACK_MOST_MS)"
	[ -z "$problems" ] || say "$problems"
}

attack_describe() {
	case "$1" in
		dispatcher) say "the dispatcher" ;;
		launcher) say "the launcher" ;;
		session) say "a session of others" ;;
		hostile-session) say "a hostile client's session" ;;
		server) say "a process of PostgreSQL's own" ;;
	esac
}
