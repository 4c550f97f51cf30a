#!/bin/bash
#
# Usage: lane.sh FOLDER TEST
#
# Runs one test in a sandbox that is there: t/NAME.pl, or regress, nopreload, isolation, fuzz, torture.

set -euo pipefail
SCRIPTS=$(cd "$(dirname "$0")/../../script" && pwd -P)
# shellcheck source=script/lib.sh
. "$SCRIPTS/lib.sh"
# shellcheck source=script/suite.sh
. "$SCRIPTS/suite.sh"

WORK=$1
PG_BIN=${PG_CONFIG%/*}
ulimit -c 0

servers_stop() {
	local status=$? data
	for data in "$WORK"/*/postmaster.pid; do
		[ ! -e "$data" ] || "$PG_BIN/pg_ctl" -s -w -t 60 -m fast -D "${data%/*}" stop || true
	done
	exit "$status"
}

trap 'servers_stop' EXIT
cd "$WORK/src"
case "$2" in
	t/*) suite_tap perl "$WORK/src/test/$2" ;;
	regress) server_preload && suite_regress as_owner ;;
	nopreload) server_nopreload && suite_regress as_owner ;;
	isolation) server_quiet && suite_isolation as_owner ;;
	fuzz) server_quiet && suite_fuzz ;;
	torture) torture_run --short ;;
	*) die "no such test: $2" ;;
esac
