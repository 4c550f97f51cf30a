# shellcheck shell=bash disable=SC2034 # (variables for the scripts that read this file)
#
# A PostgreSQL built from source with checks in it, for script/sanitize and script/fuzz; read after lib.sh. Kinds:
#
#   asan      assertions, AddressSanitizer, and palloc's chunks known to it (test/sanitize/valgrind/memcheck.h)
#   valgrind  assertions, and palloc's chunks known to valgrind; its program "postgres" runs the server under valgrind
#
# Extensions are built with the same flags, since they take them from pg_config. It is built once, which takes some
# 7 minutes on two cores and 1 GB, and kept below $CHECKED; built anew when what it is made of has changed. The source
# is Debian's of the version PG_MAJOR (15), or of the newest release of it that the mirror has.

CHECKED=${FEISHU_CHECKED:-/var/cache/feishu_flow_checked}
DEBIAN_MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
CHECKED_CC=	# clang, when there is one that can do what we need

# Programs built with AddressSanitizer want to hear it even while they are built: PostgreSQL's leave memory to exit().
ASAN_COMMON=detect_leaks=0:abort_on_error=1

# checked_postgres KIND: sets PG_CONFIG to that of this PostgreSQL, which is built when it is not there.
checked_postgres() {
	local kind=$1 major=${PG_MAJOR:-15} dir stamp
	checked_packages "$kind"
	export ASAN_OPTIONS=${ASAN_OPTIONS:-$ASAN_COMMON}
	environment_clean
	mkdir -p "$CHECKED" 2>/dev/null || true
	[ -w "$CHECKED" ] || die "cannot write to $CHECKED; set FEISHU_CHECKED to a folder that is ours"
	CHECKED=$(cd "$CHECKED" && pwd -P)
	chmod 755 "$CHECKED"
	exec {CHECKED_LOCK}>"$CHECKED/lock"
	flock "$CHECKED_LOCK"
	dir=$CHECKED/pg$major-$kind
	stamp=$(checked_stamp "$kind")
	if [ "$(cat "$dir/stamp" 2>/dev/null)" != "$stamp" ]; then
		say "building PostgreSQL $major ($kind) in $dir; this is done once"
		checked_build "$kind" "$major" "$dir" >"$CHECKED/build.log" 2>&1 {CHECKED_LOCK}>&- ||
			{ tail -n 30 "$CHECKED/build.log" >&2; die "could not build PostgreSQL; see $CHECKED/build.log"; }
		say "$stamp" >"$dir/stamp"
	fi
	exec {CHECKED_LOCK}>&-
	PG_CONFIG=$dir/bin/pg_config	# for sandbox_open
}

# What such a PostgreSQL is made of, but for its source.
checked_stamp() {
	{
		declare -f checked_build checked_source configure configure_asan configure_valgrind wrap_postgres
		cat "$ROOT/test/sanitize/valgrind/memcheck.h"
	} | sha256sum | cut -c 1-16
}

checked_packages() {
	local missing=()
	checked_find_clang
	if [ "$1" = asan ]; then
		[ -n "$CHECKED_CC" ] || missing+=(clang libclang-rt-dev llvm)
	else
		command -v valgrind >/dev/null && [ -e /usr/include/valgrind/memcheck.h ] || missing+=(valgrind)
	fi
	command -v patch >/dev/null || missing+=(patch)
	command -v bzip2 >/dev/null || missing+=(bzip2)
	command -v xz >/dev/null || missing+=(xz-utils)
	echo '#include <openssl/ssl.h>' | cc -E -x c - >/dev/null 2>&1 || missing+=(libssl-dev)
	echo '#include <zlib.h>' | cc -E -x c - >/dev/null 2>&1 || missing+=(zlib1g-dev)
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || die "please install: ${missing[*]}"
	say "installing ${missing[*]}"
	apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" >/dev/null </dev/null ||
		die "could not install: ${missing[*]}"
	checked_find_clang
	[ "$1" != asan ] || [ -n "$CHECKED_CC" ] || die "there is no clang with AddressSanitizer and libFuzzer"
}

# The newest clang that has its runtime with it.
checked_find_clang() {
	local clang
	for clang in $(compgen -c clang | grep -xE 'clang(-[0-9]+)?' | sort -ruV); do
		if [ -e "$("$clang" -print-file-name="libclang_rt.fuzzer_no_main-$(uname -m).a")" ] &&
			[ -e "$("$clang" -print-file-name="libclang_rt.asan-$(uname -m).a")" ]; then
			CHECKED_CC=$clang
			return
		fi
	done
}

# ---- building ----

checked_build() {
	local kind=$1 major=$2 dir=$3 source
	rm -rf "$dir" "$CHECKED/build" &&
		mkdir -p "$dir" "$CHECKED/build" &&
		checked_source "$major" || return
	source=$(find "$CHECKED/build" -mindepth 1 -maxdepth 1 -type d -name 'postgresql-*')
	cd "$source" &&
		"configure_$kind" "$dir" &&
		nice make -s -j "$(nproc)" &&
		make -s install &&
		make -s -C src/test/isolation install &&
		make -s -C contrib/pg_stat_statements install || return
	if [ "$kind" = valgrind ]; then
		wrap_postgres "$dir" "$source" || return
	fi
	chmod -R a+rX "$dir"
}

# Debian's source in $CHECKED/build, not patched: what was meant for Debian's folders is of no use here. The package
# lists are our own, so that the machine's stay as they are.
checked_source() {
	local major=$1 lists=$CHECKED/apt version options
	local codename
	codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
	mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial" "$lists/parts" || return
	printf 'deb-src %s main\n' "$DEBIAN_MIRROR $codename" "$DEBIAN_MIRROR-security $codename-security" \
		>"$lists/sources.list"
	options=(-q -o "Dir::Etc::SourceList=$lists/sources.list" -o "Dir::Etc::SourceParts=$lists/parts"
		-o "Dir::State::Lists=$lists/lists" -o "Dir::Cache=$lists/cache" -o APT::Sandbox::User=root)
	apt-get "${options[@]}" update || return
	cd "$CHECKED/build" || return
	for version in $(apt-cache "${options[@]}" showsrc "postgresql-$major" | sed -n 's/^Version: //p' | sort -ruV); do
		if apt-get "${options[@]}" source --download-only "postgresql-$major=$version"; then
			tar -xf "postgresql-${major}_"*.orig.tar.*
			return
		fi
	done
	echo "no source of PostgreSQL $major could be had" >&2
	return 1
}

# PostgreSQL knows nothing of our header; it takes us for valgrind.
configure_asan() {
	mkdir -p "$1/shim" && cp -r "$ROOT/test/sanitize/valgrind" "$1/shim/" || return
	configure "$1" CC="$CHECKED_CC" CPPFLAGS="-DUSE_VALGRIND -I$1/shim" \
		CFLAGS='-O1 -g -fno-omit-frame-pointer -fsanitize=address'
}

configure_valgrind() {
	configure "$1" CC=gcc CPPFLAGS=-DUSE_VALGRIND CFLAGS='-O1 -g -fno-omit-frame-pointer'
}

configure() {
	local dir=$1
	shift
	./configure -q --prefix="$dir" --enable-cassert --enable-debug --enable-tap-tests --with-openssl \
		--without-readline "$@"
}

# The server under valgrind; what runs but a moment, and no code of ours, as it is. VALGRIND_OPTS says how.
wrap_postgres() {
	local bin=$1/bin
	mv "$bin/postgres" "$bin/postgres.real" && cp "$2/src/tools/valgrind.supp" "$1/share/" || return
	cat >"$bin/postgres" <<-'END'
		#!/bin/sh
		case "$1" in
			--boot | --single | --check | --describe-config | -C | -V | --version) exec "${0%/*}/postgres.real" "$@" ;;
		esac
		exec valgrind "${0%/*}/postgres.real" "$@"
	END
	chmod 755 "$bin/postgres"
}
