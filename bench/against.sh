# shellcheck shell=bash disable=SC2034,SC2153,SC2154 # (variables shared with script/bench)
#
# script/bench --against COMMIT: what this tree and others cost, in processor time. script/bench sources this file.
#
# Each commit is built from git into an installation of its own, with a server of its own. The parts are measured in
# turn, this tree and all commits in each round, and a ratio is taken within a round. What is measured is the processor
# time of the one process that works (the session, the dispatcher), as the kernel counts it: unlike the time on the
# clock, it does not grow with what else the machine does.

AGAINST=()	# commits
AGAINST_PARTS=(call enqueue trigger dispatch dispatch_tls)
AGAINST_ROWS=30000
AGAINST_FLOWS=20000
AGAINST_GOAL=1.02

# in_tree TREE COMMAND...: runs the function with the sandbox of a commit as its own, in a shell of its own; "this" is
# the outer one.
in_tree() {
	local tree=$1
	shift
	if [ "$tree" = this ]; then "$@"; else (in_sandbox "$WORK/against/$tree" "$@"); fi
}

in_sandbox() {
	local PG_BIN=$1/pg$PG_BIN WORK=$1 PG_CONFIG=$PG_CONFIG
	shift
	[ ! -x "$PG_BIN/pg_config" ] || PG_CONFIG=$PG_BIN/pg_config
	"$@"
}

against_build() {
	mkdir -p "$WORK/src" "$WORK/sock" "$WORK/home" "$WORK/results"
	git -C "$ROOT" archive "$1" | tar -C "$WORK/src" --no-same-owner -xf - || die "there is no commit $1"
	sandbox_copy_postgres
	if [ "$(id -u)" = 0 ]; then
		chown -R -h "$RUN_USER:" "${WORK%/*}"
	fi
	extension_make with_llvm=no all install
}

# What it needs is said here, not in the files of --dispatch, since it is also run on older trees.
against_server() {
	local prefix=$1
	as_owner mkdir -p "$WORK/results"
	server_start server "$PORT" "shared_preload_libraries = 'feishu_flow'" "autovacuum = off" "max_wal_size = 8GB"
	server_psql "$PORT" -q -v base_url="$NGINX_URL" -f "$prefix/src/bench/setup.sql"
	server_psql "$PORT" -q -v tls_url="$NGINX_TLS_URL" -v ca_file="$prefix/tls.crt" <<-'END'
		CREATE SERVER feishu_tls FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url :'tls_url', ca_file :'ca_file');
		CREATE USER MAPPING FOR PUBLIC SERVER feishu_tls OPTIONS (app_id 'cli_bench', app_secret 'bench-secret');
		CREATE TABLE orders (id bigint);
		CREATE TRIGGER queue AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger(
			'package_7344545d87__c', 'deleteObject_99c656599f', '{"_id": 1111, "email": "apaas@bytedance.com"}',
			'{"variable_rgrtgqworiginal": {"_id": "$.new.id"}}');
	END
	wait_until 20 dispatcher_runs || die "no dispatcher"
}

dispatcher_runs() { [ -n "$(dispatcher_pid)" ]; }

# Nanoseconds of processor time that a process has used so far.
cpu_ns() {
	local ns
	read -r ns _ <"/proc/$1/schedstat"
	say "$ns"
}

# Microseconds a row of the statement $1 (with ROWS for the series), in a transaction that is rolled back.
against_session() {
	server_psql "$PORT" -qAt -f - <<-END | awk -v rows="$AGAINST_ROWS" \
		'/^cpu/ { ns[n++] = $2 } END { if (n != 2) exit 1; print (ns[1] - ns[0]) / rows / 1000 }'
		BEGIN;
		${1/ROWS/generate_series(1, 100) AS i} \g /dev/null
		SELECT pg_backend_pid() AS pid \gset
		\setenv PID :pid
		\! sed 's/^/cpu /' /proc/\$PID/schedstat
		${1/ROWS/generate_series(1, $AGAINST_ROWS) AS i} \g /dev/null
		\! sed 's/^/cpu /' /proc/\$PID/schedstat
		ROLLBACK;
		VACUUM feishu_internal.outbox, orders;
	END
}

# Microseconds a flow of the dispatcher, for server $1.
against_flows() {
	local pid before
	outbox_empty
	flows_queue "$1" "$AGAINST_FLOWS"
	pid=$(dispatcher_pid)
	before=$(cpu_ns "$pid")
	flows_send "$1" "$AGAINST_FLOWS" >/dev/null
	awk -v ns=$(($(cpu_ns "$pid") - before)) -v flows="$AGAINST_FLOWS" 'BEGIN { print ns / flows / 1000 }'
}

against_measure() {
	local flow="'package_7344545d87__c', 'deleteObject_99c656599f',
		'{\"_id\": 1111, \"email\": \"apaas@bytedance.com\"}',
		'{\"variable_rgrtgqworiginal\": {\"_id\": 5454545}}'"
	case "$1" in
		call) AGAINST_ROWS=5000 against_session "SELECT count(feishu.execute_flow($flow)) FROM ROWS" ;;
		enqueue) against_session "SELECT count(feishu.enqueue_flow($flow)) FROM ROWS" ;;
		trigger) against_session "INSERT INTO orders SELECT i FROM ROWS" ;;
		dispatch) against_flows feishu ;;
		dispatch_tls) against_flows feishu_tls ;;
	esac
}

bench_against() {
	local trees=(this) commit tree part round
	for commit in "${AGAINST[@]}"; do
		tree=$(git -C "$ROOT" rev-parse --short "$commit^{commit}") || die "there is no commit $commit"
		progress "building $tree"
		in_tree "$tree" against_build "$tree"
		trees+=("$tree")
	done
	for tree in "${trees[@]}"; do in_tree "$tree" against_server "$WORK"; done
	for ((round = 1; round <= ROUNDS; round++)); do
		for part in "${AGAINST_PARTS[@]}"; do
			for tree in "${trees[@]}"; do
				progress "round $round of $ROUNDS: $part, $tree"
				in_tree "$tree" against_measure "$part" >>"$WORK/results/$part.$tree" || die "$part of $tree failed"
			done
		done
	done
	progress ""
	printf '%-16s %-12s %9s %9s %7s  %s\n' "us of processor" "commit" "its own" "this" "ratio" "(middle half)"
	for part in "${AGAINST_PARTS[@]}"; do
		for tree in "${trees[@]:1}"; do against_line "$part" "$tree"; done
	done
	say
	for part in "${AGAINST_PARTS[@]}"; do
		for tree in "${trees[@]:1}"; do target_at_most "$part.this" "$part.$tree" "$AGAINST_GOAL"; done
	done
}

against_line() {
	paste "$WORK/results/$1.this" "$WORK/results/$1.$2" | awk '{ print $1 / $2 }' | sort -g >"$WORK/results/ratios"
	printf '%-16s %-12s %9.2f %9.2f %7.3f  %s\n' "$1" "$2" "$(median <"$WORK/results/$1.$2")" \
		"$(median <"$WORK/results/$1.this")" "$(median <"$WORK/results/ratios")" "$(awk '{ r[NR] = $1 }
			END { printf "(%.3f-%.3f)", r[int((NR + 3) / 4)], r[int((3 * NR + 1) / 4)] }' "$WORK/results/ratios")"
}
