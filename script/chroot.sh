# shellcheck shell=bash
#
# Chroots of Debian suites for script/matrix and script/package; read after lib.sh.
#
# All of them are below $CHROOTS, with a packed base system of each suite that was ever needed. Programs run in them
# under namespaces of their own, for processes and for mounts: when such a run ends, however it ends, the kernel ends
# what it left running and undoes its mounts. No process and no mount is ever left in a chroot.
#
# Packages that were downloaded for a chroot outlive it in $CHROOTS/archives.

CHROOTS=${FEISHU_CHROOTS:-/var/cache/feishu_flow_matrix}
DEBIAN_MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

# Makes the folder for the chroots.
chroots_open() {
	[ "$(id -u)" = 0 ] || die "must be root, to make chroots"
	command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"
	case "$(mkdir -p "$CHROOTS" && cd "$CHROOTS" && pwd -P)/" in
		"$ROOT"/*) die "the chroots must not be inside the repository: $CHROOTS" ;;
	esac
	CHROOTS=$(cd "$CHROOTS" && pwd -P)
	chmod 755 "$CHROOTS"
	mkdir -p "$CHROOTS/log"
}

# Takes the chroot of this name until the script ends, or takes another; what it started in there keeps it, too.
chroot_lock() {
	[ -z "${CHROOT_LOCK:-}" ] || exec {CHROOT_LOCK}>&-
	exec {CHROOT_LOCK}>"$CHROOTS/$1.lock"
	flock -n "$CHROOT_LOCK" || die "another run uses $CHROOTS/$1"
}

# chroot_make DIR SUITE [APT_SOURCE_SUITE]...: a bare system of the suite, with the package lists of it and of the
# further suites, none of which is preferred. What was in DIR is gone.
chroot_make() {
	local dir=$1 suite=$2
	shift
	chroot_base "$suite" || return
	chroot_remove "$dir"
	mkdir "$dir"
	tar -C "$dir" --numeric-owner -xf "$CHROOTS/base-$suite.tar" || return
	cp -aln "$CHROOTS"/archives/*.deb "$dir/var/cache/apt/archives/" 2>/dev/null || true	# there may be none
	printf "deb $DEBIAN_MIRROR %s main\n" "$@" >"$dir/etc/apt/sources.list"
	# The lists of a mirror that lags, or of a suite that is no longer served, are still the lists.
	cat >"$dir/etc/apt/apt.conf.d/90chroot" <<-'END'
		Acquire::Check-Valid-Until "false";
		Acquire::Languages "none";
		APT::Install-Recommends "false";
		Binary::apt-get::APT::Keep-Downloaded-Packages "true";
		DPkg::Options { "--force-unsafe-io"; };
	END
	printf '#!/bin/sh\nexit 101\n' >"$dir/usr/sbin/policy-rc.d"	# no package starts a service
	chmod 755 "$dir/usr/sbin/policy-rc.d"
	# What makes the names of the machine known in it.
	rm -f "$dir/etc/resolv.conf"
	cp -L /etc/resolv.conf /etc/hosts "$dir/etc/"
	chroot_run "$dir" apt-get -q update
}

chroot_remove() {
	mkdir -p "$CHROOTS/archives"
	cp -aln "${1:?}"/var/cache/apt/archives/*.deb "$CHROOTS/archives/" 2>/dev/null || true
	rm -rf --one-file-system "$1"
}

# Packs a bare system of the suite, once.
chroot_base() (
	dir=$CHROOTS/base-$1
	exec {lock}>"$dir.lock"
	flock "$lock"
	[ ! -e "$dir.tar" ] || exit 0
	rm -rf --one-file-system "$dir"
	namespace debootstrap --variant=minbase "$1" "$dir" "$DEBIAN_MIRROR" || exit
	rm -rf "$dir"/var/cache/apt/archives/*.deb "$dir"/var/lib/apt/lists/*
	tar -C "$dir" --numeric-owner --one-file-system -cf "$dir.tar.new" . || exit
	mv "$dir.tar.new" "$dir.tar"
	rm -rf --one-file-system "$dir"
)

# Runs a command as root in the chroot, in its folder / and with nothing of the caller's environment but the variables
# that are given as NAME=VALUE ahead of the command.
chroot_run() {
	local dir=$1
	shift
	# shellcheck disable=SC2016 # (expanded by the shell in the namespace)
	namespace sh -ec '
		dir=$1
		shift
		mount -t proc proc "$dir/proc"
		mount --bind /dev "$dir/dev"
		mount -t tmpfs -o mode=1777 tmpfs "$dir/dev/shm"
		mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$dir/dev/pts"
		exec chroot "$dir" env -i HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive TERM=dumb \
			PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
	' sh "$dir" "$@" </dev/null
}

# Processes and mounts of the command end with it, and it with this script; the mounts are seen by nobody else.
namespace() {
	setpriv --pdeathsig KILL unshare --mount --propagation private --pid --ipc --fork --kill-child=KILL \
		--mount-proc -- "$@"
}

# chroot_install DIR PACKAGE...
chroot_install() {
	local dir=$1
	shift
	chroot_run "$dir" apt-get -q install -y "$@"
}

# chroot_copy_tree DIR TO: the repository as it is here, but what is built, in the folder TO of the chroot. TO is new.
chroot_copy_tree() {
	rm -rf --one-file-system "${1:?}$2"
	mkdir -p "$1$2"
	tar -C "$ROOT" -cf - --exclude=./.git --exclude='*.o' --exclude='*.bc' --exclude='*.so' --exclude='__pycache__' \
		--exclude=./results --exclude=./tmp_check --exclude=./log . | tar -C "$1$2" --no-same-owner -xf -
}
