# shellcheck shell=bash disable=SC2034,SC2153,SC2154 # (variables shared with script/bench)
#
# script/bench --first: what the first call of a fresh session takes, over HTTP, over HTTPS with ca_file, and over HTTPS
# with the system's authorities. script/bench sources it.
#
# The system's authorities are a copy of this machine's with one more, that of nginx, where libcurl is told to look for
# them by test/lib/other_libcurl.c. Sessions of the three take turns; each difference is taken between neighbours.

FIRST_PARTS=(http ca_file system)
FIRST_SESSIONS=20	# of each part in a round
FIRST_TARGET_MS=6	# that the system's authorities may add

bench_first() {
	local round part
	first_prepare
	for ((round = 1; round <= ROUNDS; round++)); do
		progress "first calls, round $round of $ROUNDS"
		first_round
	done
	progress ""
	printf '%-46s %8s  %-17s %10s %11s\n' "first call of a fresh session" "ms" "(lowest-highest)" \
		"over HTTP" "ms of CPU"
	for part in "${FIRST_PARTS[@]}"; do
		printf '%-46s %8.1f  %-17s %+10.1f %11.1f\n' "$(first_describe "$part")" "$(median <"$WORK/results/$part")" \
			"$(range <"$WORK/results/$part")" "$(first_added "$part")" "$(median <"$WORK/results/$part.cpu")"
	done
	say
	target_is "system - http, ms" "$(first_added system)" "<=" "$FIRST_TARGET_MS"
}

first_prepare() {
	first_authorities_make
	as_owner cc -shared -fPIC -o "$WORK/other_libcurl.so" "$WORK/src/test/lib/other_libcurl.c" -ldl ||
		die "could not build test/lib/other_libcurl.c"
	LD_PRELOAD=$WORK/other_libcurl.so OTHER_CAPATH=$WORK/certs OTHER_CAINFO=$WORK/certs/ca-certificates.crt \
		database_prepare
	server_psql "$PORT" -q -v tls_url="$NGINX_TLS_URL" -v ca_file="$WORK/tls.crt" <<-'END'
		CREATE SERVER ca_file FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url :'tls_url', ca_file :'ca_file');
		CREATE SERVER system FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url :'tls_url');
		CREATE USER MAPPING FOR PUBLIC SERVER ca_file OPTIONS (app_id 'cli_bench', app_secret 'bench-secret');
		CREATE USER MAPPING FOR PUBLIC SERVER system OPTIONS (app_id 'cli_bench', app_secret 'bench-secret');
	END
	first_round	# fetches the tokens
	rm -f "$WORK"/results/*
}

first_authorities_make() {
	local file
	as_owner mkdir "$WORK/certs"
	as_owner cp -L /etc/ssl/certs/*.pem "$WORK/certs/"
	as_owner cp "$WORK/tls.crt" "$WORK/certs/nginx.pem"
	# a whole file from each, which not all of them end with a new line
	for file in "$WORK"/certs/*.pem; do cat "$file"; say; done |
		as_owner tee "$WORK/certs/ca-certificates.crt" >/dev/null
	as_owner openssl rehash "$WORK/certs" >/dev/null 2>&1 || die "openssl could not hash a folder of authorities"
}

first_round() {
	local session part elapsed cpu
	for ((session = 1; session <= FIRST_SESSIONS; session++)); do
		for part in "${FIRST_PARTS[@]}"; do
			read -r elapsed cpu < <(first_call "$part") || die "could not measure: $(first_describe "$part")"
			say "$elapsed" >>"$WORK/results/$part"
			say "$cpu" >>"$WORK/results/$part.cpu"
		done
	done
}

# ms of the first call of a session, and of CPU of those, as the session sees them.
first_call() {
	local server=$1
	[ "$server" != http ] || server=feishu
	server_psql "$PORT" -qAt -c "SET log_statement_stats = on; SET client_min_messages = log" \
		-c "SELECT ${CALL%)}, server => '$server')" 2>&1 |
		awk '/ elapsed/ { print $8 * 1000, ($2 + $5) * 1000; found = 1 } END { exit !found }'
}

first_added() { paste "$WORK/results/$1" "$WORK/results/http" | awk '{ print $1 - $2 }' | median; }

first_describe() {
	case "$1" in
		http) say "over HTTP" ;;
		ca_file) say "over HTTPS, ca_file of one authority" ;;
		system) say "over HTTPS, $(grep -c BEGIN "$WORK/certs/ca-certificates.crt") authorities of the system" ;;
	esac
}
