# shellcheck shell=bash disable=SC2034 # (variables for the scripts that read this file)
#
# What is run in a sandbox to test what is installed there, for script/test and script/mutate; read after lib.sh.

export TEST_SLOW=${TEST_SLOW:-1}
export PG_TEST_TIMEOUT_DEFAULT=$((180 * TEST_SLOW))	# PostgreSQL's own, for its tests' library

# A server that stays for the parts that follow; TAP tests start their own.
server_once() {
	[ -d "$WORK/$1" ] || server_start "$@"
	export PGHOST=$WORK/sock PGPORT=$2 PGUSER=postgres
}

server_preload() { server_once preload 5432 "shared_preload_libraries = 'feishu_flow'"; }

# Its tests are run by a superuser of another name: what they expect is not to depend on that.
server_nopreload() {
	server_once nopreload 5433
	server_psql 5433 -qc "CREATE ROLE somebody SUPERUSER LOGIN"
	PGUSER=somebody
}

# No dispatcher: what is tested is how sessions get along with each other.
server_quiet() { server_once quiet 5434 "shared_preload_libraries = 'feishu_flow'" "feishu_flow.dispatch = off"; }

# Runs pg_regress in the server that was last asked for; arguments are what runs the command.
suite_regress() {
	"$@" make -s -C "$WORK/src" PG_CONFIG="$PG_CONFIG" NO_TEMP_INSTALL=1 installcheck
}

suite_isolation() {
	local specs
	specs=$(cd "$WORK/src/test/specs" && ls ./*.spec)
	specs=${specs//.spec/}
	as_owner mkdir -p "$WORK/isolation"
	# shellcheck disable=SC2086 # (a list)
	"$@" "$(dirname "$("$PG_CONFIG" --pgxs)")/../test/isolation/pg_isolation_regress" \
		--bindir="$PG_BIN" --inputdir="$WORK/src/test" --outputdir="$WORK/isolation" --dbname=isolation_regression \
		${specs//.\//}
}

# Builds the codec as one that checks what it makes of an input, and has the server of the isolation tests read the
# inputs. Prints how many there were.
suite_fuzz() {
	as_owner mkdir -p "$WORK/src/test/fuzz/corpus"
	as_owner make -s -C "$WORK/src/test/fuzz" -j "$(nproc)" PG_CONFIG="$PG_CONFIG" with_llvm=no >&2 &&
		as_owner python3 -B "$WORK/src/test/fuzz/seeds.py" "$WORK/seeds" >&2 &&
		server_psql 5434 -qAt <<-END
			SET client_encoding = LATIN1;
			CREATE FUNCTION pg_temp.replay(text) RETURNS integer LANGUAGE C
				AS '$WORK/src/test/fuzz/feishu_fuzz', 'feishu_fuzz_replay';
			SELECT sum(pg_temp.replay(folder))
				FROM unnest(ARRAY['$WORK/src/test/fuzz/corpus', '$WORK/seeds']) AS folder;
		END
}

# Runs a command as "make installcheck" runs prove, with the file of the mock added.
suite_tap() {
	local pgxs
	pgxs=$(dirname "$("$PG_CONFIG" --pgxs)")/..
	as_owner mkdir -p "$WORK/tap/tmp_check/log" "$WORK/tap/ports"
	cd "$WORK/src/test" || return
	as_owner env -u PGHOST -u PGPORT -u PGUSER PATH="$PG_BIN:$PATH:/usr/sbin" \
		PERL5LIB="$pgxs/test/perl:$WORK/src/test" \
		PWD="$WORK/src/test" TESTDIR="$WORK/tap" TESTDATADIR="$WORK/tap/tmp_check" \
		TESTLOGDIR="$WORK/tap/tmp_check/log" PG_TEST_PORT_DIR="$WORK/tap/ports" \
		PG_REGRESS="$pgxs/test/regress/pg_regress" PG_CONFIG="$PG_CONFIG" PGPORT=65432 \
		FEISHU_MOCK="$WORK/src/test/feishu_mock.py" PYTHONDONTWRITEBYTECODE=1 "$@"
}
