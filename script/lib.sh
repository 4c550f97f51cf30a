# shellcheck shell=bash disable=SC2034 # (variables for the scripts that read this file)
#
# What script/demo, script/test and script/bench share: a sandbox.
#
# A sandbox is one temporary folder ($WORK) that holds all a run makes:
#
#   src/    a copy of this repository; the extension is built in it
#   pg/     a private view of the PostgreSQL installation: its programs, and links to the rest. PostgreSQL finds
#           its folders relative to its programs, so what is installed here is seen by servers of this sandbox
#           and by nobody else. No server of the machine, and no other run, meets a half-tested library.
#   NAME/   the data directory of the server NAME, NAME.log its log
#   sock/   the Unix sockets; no server of a sandbox listens on TCP
#
# PostgreSQL refuses to run as root, so root hands the folder to the user "postgres" and works as that user
# ("owner" below). Anybody else works as oneself.
#
# sandbox_open sets a trap that stops what was started and removes the folder, however the script ends.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
FEISHU_TMP=${FEISHU_TMP:-/tmp}	# sockets live below it, and their paths must be short
RUN_USER=postgres
WORK=
KEEP=
MOCK_URL=

if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ] && [ -z "${NO_COLOR:-}" ]; then
	BOLD=$'\e[1m' RED=$'\e[31m' GREEN=$'\e[32m' PLAIN=$'\e[0m'
else
	BOLD='' RED='' GREEN='' PLAIN=''
fi

say() { printf '%s\n' "$*"; }
heading() { printf '\n%s== %s ==%s\n' "$BOLD" "$*" "$PLAIN"; }
fail() { printf '%s%s: %s%s\n' "$RED" "${0##*/}" "$*" "$PLAIN" >&2; }
die() {
	fail "$@"
	exit 1
}

# The comment at the head of a script is its --help.
usage() { sed -n '2,/^[^#]\|^$/{/^#/!d;s/^# \{0,1\}//;p}' "$0"; }

# ---- PostgreSQL of the machine ----

# Prints the pg_config to use, or nothing when there is none: PG_CONFIG, else the version PG_MAJOR, else 15,
# else the newest one with a server and its headers.
pg_config_find() {
	local major
	if [ -n "${PG_CONFIG:-}" ]; then
		command -v "$PG_CONFIG" || true
		return
	fi
	for major in ${PG_MAJOR:-15 $(pg_majors_installed)}; do
		if pg_complete "/usr/lib/postgresql/$major/bin/pg_config"; then
			say "/usr/lib/postgresql/$major/bin/pg_config"
			return
		fi
	done
}

# Debian's versions on this machine, newest first.
pg_majors_installed() {
	find /usr/lib/postgresql -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null | sort -rn
}

# Are the server and what extensions are built with both there?
pg_complete() {
	local bindir
	[ -x "$1" ] && bindir=$("$1" --bindir) && [ -x "$bindir/postgres" ] &&
		[ -f "$("$1" --pgxs)" ] && [ -f "$("$1" --includedir-server)/postgres.h" ]
}

# ---- the sandbox ----

# Makes it; $1 names what it is for.
sandbox_open() {
	trap 'sandbox_close' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	umask 022
	environment_clean
	PG_CONFIG=$(pg_config_find)
	[ -n "$PG_CONFIG" ] || die "no PostgreSQL with server headers found; run script/bootstrap, or set PG_CONFIG"
	WORK=$(mktemp -d "$FEISHU_TMP/feishu_flow_$1.XXXXXX")
	chmod 755 "$WORK"
	mkdir "$WORK/src" "$WORK/sock" "$WORK/home"
	chmod 700 "$WORK/sock"
	sandbox_copy_repository
	sandbox_copy_postgres
	if [ "$(id -u)" = 0 ]; then
		id -u "$RUN_USER" >/dev/null 2>&1 || die "there is no user $RUN_USER to run PostgreSQL as; run script/bootstrap"
		chown -R -h "$RUN_USER:" "$WORK"
	fi
	cd "$WORK" || exit	# the owner may not be able to enter the folder we were called in
	as_owner test -w "$WORK" ||
		die "the user $RUN_USER cannot reach $WORK; set FEISHU_TMP to a folder that everybody can"
}

# Nothing of the caller's environment may leak in: where to connect, which proxy to take, which language.
environment_clean() {
	local name
	for name in $(compgen -e PG | grep -vxE 'PG_CONFIG|PG_MAJOR|PG_TEST_[A-Z_]*' || true); do
		unset "$name"
	done
	unset http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY
	unset LANGUAGE MAKEFLAGS MAKELEVEL MFLAGS
	export LC_ALL=C.UTF-8
}

sandbox_copy_repository() {
	tar -C "$ROOT" -cf - --exclude=./.git --exclude='*.o' --exclude='*.bc' --exclude='*.so' --exclude='__pycache__' \
		--exclude=./results --exclude=./tmp_check --exclude=./log . | tar -C "$WORK/src" --no-same-owner -xf -
}

sandbox_copy_postgres() {
	local bin share lib include
	bin=$("$PG_CONFIG" --bindir)
	share=$("$PG_CONFIG" --sharedir)
	lib=$("$PG_CONFIG" --pkglibdir)
	include=$("$PG_CONFIG" --includedir-server)
	PG_VERSION=$("$PG_CONFIG" --version)
	mkdir -p "$WORK/pg$bin"
	cp -L "$bin"/* "$WORK/pg$bin/"
	link_contents "$share" extension
	link_contents "$share/extension"
	link_contents "$lib" bitcode
	[ ! -d "$lib/bitcode" ] || link_contents "$lib/bitcode"
	mkdir -p "$WORK/pg${include%/*}"
	ln -s "$include" "$WORK/pg$include"
	PG_BIN=$WORK/pg$bin
	PG_CONFIG=$PG_BIN/pg_config
	[ "$("$PG_CONFIG" --pkglibdir)" = "$WORK/pg$lib" ] || die "this PostgreSQL cannot be moved: $bin"
}

# A folder in the private installation with links to all that is in $1, but $2 and an installed feishu_flow.
link_contents() {
	mkdir -p "$WORK/pg$1"
	find "$1" -mindepth 1 -maxdepth 1 ! -name 'feishu_flow*' ! -name "${2:-}" -exec ln -s -t "$WORK/pg$1" {} +
}

# Runs a command as the owner of the sandbox. It is looked up by env, with the owner's rights: setpriv still has root's
# and would find programs in PATH that the owner may not run.
as_owner() {
	if [ "$(id -u)" = 0 ]; then
		HOME=$WORK/home setpriv --reuid="$RUN_USER" --regid="$(id -g "$RUN_USER")" --init-groups -- env "$@"
	else
		HOME=$WORK/home "$@"
	fi
}

# Stops all that runs in the sandbox of folder $1 (default: this one) and removes it.
sandbox_close() {
	local status=$?
	trap - EXIT
	trap '' INT TERM HUP
	if [ -n "$WORK" ] && [ -z "$KEEP" ]; then
		sandbox_remove "$WORK"
	fi
	exit "$status"
}

sandbox_remove() {
	local pid file
	cd /
	while IFS= read -r file; do
		pid=$(head -n 1 "$file")
		if sandbox_has "$1" "$pid"; then
			kill -QUIT "$pid" 2>/dev/null || true	# for a postmaster: stop at once
		fi
	done < <(find "$1" -name postmaster.pid 2>/dev/null)
	for pid in $(sandbox_processes "$1"); do
		kill -TERM "$pid" 2>/dev/null || true
	done
	for _ in {1..100}; do
		[ -n "$(sandbox_processes "$1")" ] || break
		sleep 0.05
	done
	rm -rf "$1" 2>/dev/null || { sleep 1; rm -rf "$1"; }
}

# Servers, mocks, poolers and clients of the sandbox in folder $1: the processes that were started with a path inside
# it.
sandbox_processes() {
	local dir pid
	for dir in /proc/[0-9]*; do
		pid=${dir#/proc/}
		if [ "$pid" != $$ ] && sandbox_has "$1" "$pid"; then
			say "$pid"
		fi
	done
}

sandbox_has() {
	local ours='postgres|nginx|pgbouncer|pgpool|arrival|slow|python3.*|perl|php.*|ruby.*|node|java|go_.*'
	{ grep -qxE "$ours" "/proc/$2/comm" &&
		tr '\0' ' ' <"/proc/$2/cmdline" | grep -qF "$1/"; } 2>/dev/null
}

# ---- building ----

# Builds the extension in the sandbox and installs it there.
extension_install() {
	extension_make all
	extension_make install
}

# Runs make there, and shows what it said when it fails.
extension_make() {
	if ! as_owner make -s -C "$WORK/src" -j "$(nproc)" PG_CONFIG="$PG_CONFIG" "$@" >"$WORK/make.log" 2>&1; then
		cat "$WORK/make.log" >&2
		fail "make $* failed"
		return 1
	fi
}

# ---- servers ----

# server_start NAME PORT [LINE...]: a new cluster with these lines in its postgresql.conf, running.
server_start() {
	local name=$1 port=$2
	shift 2
	as_owner "$PG_BIN/initdb" -D "$WORK/$name" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync \
		>"$WORK/initdb.log" 2>&1 || { cat "$WORK/initdb.log" >&2; die "initdb failed"; }
	printf '%s\n' "listen_addresses = ''" "port = $port" "unix_socket_directories = '$WORK/sock'" \
		"fsync = off" "log_timezone = UTC" "timezone = UTC" "$@" >>"$WORK/$name/postgresql.conf"
	as_owner "$PG_BIN/pg_ctl" -s -w -D "$WORK/$name" -l "$WORK/$name.log" start >/dev/null ||
		{ tail -n 30 "$WORK/$name.log" >&2; die "the server did not start"; }
}

# server_restart NAME: starts it after it was stopped or killed.
server_restart() {
	as_owner "$PG_BIN/pg_ctl" -s -w -D "$WORK/$1" -l "$WORK/$1.log" start >/dev/null ||
		{ tail -n 30 "$WORK/$1.log" >&2; die "the server did not start again"; }
}

# psql on the server at this port, the same everywhere; further arguments are psql's.
server_psql() {
	local port=$1
	shift
	as_owner env PGOPTIONS='--client-min-messages=warning' "$PG_BIN/psql" -X -h "$WORK/sock" -p "$port" -U postgres \
		-v ON_ERROR_STOP=1 "$@"
}

# ---- the mock platform ----

# Starts it on a free port; its URL is then in MOCK_URL. Arguments are the mock's.
mock_start() {
	as_owner setsid python3 "$WORK/src/test/feishu_mock.py" "$@" >"$WORK/mock.out" 2>"$WORK/mock.log" </dev/null &
	wait_until 20 test -s "$WORK/mock.out" || { cat "$WORK/mock.log" >&2; die "the mock platform did not start"; }
	MOCK_URL=http://127.0.0.1:$(head -n 1 "$WORK/mock.out")
}

# wait_until SECONDS COMMAND...: does the command succeed before the time is up?
wait_until() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || return 1
		sleep 0.05
	done
}

# ---- the fault campaign ----

# Runs it in the sandbox; arguments are those of test/torture/campaign.py.
torture_run() {
	as_owner env python3 -B "$WORK/src/test/torture/campaign.py" --bin "$PG_BIN" \
		--test "$WORK/src/test" --work "$WORK/torture" "$@"
}
