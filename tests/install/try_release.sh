#!/usr/bin/env bash
# Tries what README promises in a minimal root of a Debian release: the build with its own packages, the tests, the
# package, and a daemon from that package in a second root that has nothing else. Not part of scripts/test.sh: it
# downloads a release and compiles everything.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: tests/install/try_release.sh RELEASE [--roots DIR] [--mirror URL] [--package FILE] [--no-tests]

  RELEASE         bookworm or trixie
  --roots DIR     where the roots are made and kept (default: /var/tmp/modelstore-roots); about 3 GB a release
  --mirror URL    of Debian's packages (default: http://deb.debian.org/debian)
  --package FILE  only install this package and try it
  --no-tests      build the programs and the package only

Needs root, the package debootstrap, and /dev/fuse.
EOF
}

say() { printf '%s: %s\n' "$release" "$*" >&2; }
fail() {
  say "FAILED: $*"
  exit 1
}

release= roots=/var/tmp/modelstore-roots mirror=http://deb.debian.org/debian package= tests=yes
while [ $# -gt 0 ]; do
  case $1 in
    --roots) roots=${2:?--roots needs a folder} && shift ;;
    --mirror) mirror=${2:?--mirror needs a URL} && shift ;;
    --package) package=$(realpath "${2:?--package needs a file}") && shift ;;
    --no-tests) tests=no ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
    *) release=$1 ;;
  esac
  shift
done
case $release in bookworm | trixie) ;; *) usage >&2 && exit 2 ;; esac
[ "$(id -u)" -eq 0 ] || fail "debootstrap and chroot need root"
[ -c /dev/fuse ] || fail "/dev/fuse is missing"
source=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$roots"

root= daemon=
leave_root() {
  [ -n "$root" ] || return 0
  [ -z "$daemon" ] || { kill -TERM "$daemon" 2>/dev/null && wait "$daemon" || true; }
  daemon=
  awk -v below="$root/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r -n1 umount -l
  root=
}
trap leave_root EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A root with nothing but what the release always has; kept as an archive, so that it is downloaded once.
minimal_root() {
  local archive=$roots/$release.minimal.tar
  if [ ! -f "$archive" ]; then
    say "a minimal root"
    rm -rf --one-file-system "$roots/$release.part"
    debootstrap --variant=minbase "$release" "$roots/$release.part" "$mirror" >"$roots/$release.debootstrap.log" ||
      fail "debootstrap; see $roots/$release.debootstrap.log"
    tar -C "$roots/$release.part" -cf "$archive.part" .
    mv "$archive.part" "$archive"
    rm -rf --one-file-system "$roots/$release.part"
  fi
  mkdir -p "$1"
  tar -C "$1" -xf "$archive"
}

enter_root() {
  root=$1
  mount -t proc proc "$root/proc"
  mount -t sysfs sysfs "$root/sys"
  mount --bind /dev "$root/dev"
  mount --bind /dev/pts "$root/dev/pts"
  mount -t tmpfs tmpfs "$root/run"
  [ ! -e /etc/resolv.conf ] || cp -L /etc/resolv.conf "$root/etc/resolv.conf"
}

inside() { chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }

build_inside() {
  local place=$roots/$release.build
  [ -d "$place/etc" ] || minimal_root "$place"
  enter_root "$place"
  mkdir -p "$root/src"
  git -C "$source" ls-files -z | tar -C "$source" --null -T - -cf - | tar -C "$root/src" -xf -
  if [ $tests = yes ]; then
    say "building with tests"
    inside /src/scripts/build.sh --tests
    say "testing"
    inside ctest --test-dir /src/build/release -L '^(unit|integration|cli|mount)$' -j "$(nproc)" --output-on-failure
  fi
  say "making the package"
  package=$root$(inside /src/scripts/package.sh | tail -1)
  [ -f "$package" ] || fail "scripts/package.sh made no package"
  mkdir -p "$roots/$release.package"
  cp "$package" "$roots/$release.package/"
  package=$roots/$release.package/$(basename "$package")
  leave_root
}

await_daemon() {
  local tries
  for tries in $(seq 300); do
    inside modelstore status >"$root/tmp/status" 2>&1 && return 0
    kill -0 "$daemon" 2>/dev/null || break
    sleep 0.1
  done
  cat "$root/tmp/status" "$root/tmp/daemon.log" >&2
  fail "the installed daemon does not answer (tried $tries times)"
}

install_inside() {
  local place=$roots/$release.install name
  rm -rf --one-file-system "$place"
  minimal_root "$place"
  enter_root "$place"
  name=$(basename "$package")
  cp "$package" "$root/tmp/"
  say "installing $name"
  inside apt-get update -q >"$root/tmp/apt.log"
  inside apt-get install -q -y --no-install-recommends "/tmp/$name" >>"$root/tmp/apt.log" 2>&1 ||
    { cat "$root/tmp/apt.log" >&2 && fail "apt-get install"; }
  inside getent group modelstore >/dev/null || fail "no group modelstore"
  [ "$(stat -c %a "$root/var/lib/modelstore")" = 700 ] || fail "/var/lib/modelstore is not 0700"
  local file
  for file in bash-completion/completions/modelstore zsh/vendor-completions/_modelstore \
    fish/vendor_completions.d/modelstore.fish man/man1/modelstore.1 man/man8/modelstored.8 doc/modelstore/copyright; do
    [ -f "$root/usr/share/$file" ] || [ -f "$root/usr/share/$file.gz" ] || case $file in
      man/* | doc/*) ;; # what a minimal root may leave out
      *) fail "/usr/share/$file is missing" ;;
    esac
  done

  say "a daemon of the package"
  chroot "$root" /usr/bin/modelstored >"$root/tmp/daemon.log" 2>&1 &
  daemon=$!
  await_daemon
  head -c 3000000 /dev/urandom >"$root/tmp/model.bin"
  inside modelstore push /tmp/model.bin --name tried >/dev/null || fail "push"
  cmp "$root/tmp/model.bin" "$root/models/tried/model.bin" || fail "the mount shows other bytes"
  inside modelstore verify tried >/dev/null || fail "verify"
  kill -TERM "$daemon"
  wait "$daemon" || fail "the daemon ended with $?"
  daemon=

  say "upgrading, removing and purging"
  inside dpkg -i "/tmp/$name" >>"$root/tmp/apt.log" 2>&1 || fail "installing it again"
  inside dpkg -r modelstore >>"$root/tmp/apt.log" 2>&1 || fail "removing it"
  inside dpkg -P modelstore >>"$root/tmp/apt.log" 2>&1 || fail "purging it"
  [ -n "$(ls -A "$root/var/lib/modelstore")" ] || fail "purging has deleted the models"
  [ ! -e "$root/usr/bin/modelstored" ] || fail "purging has left the program"

  say "the unit"
  inside apt-get install -q -y --no-install-recommends systemd "/tmp/$name" >>"$root/tmp/apt.log" 2>&1 ||
    { tail -20 "$root/tmp/apt.log" >&2 && fail "installing it beside systemd"; }
  inside systemd-analyze verify --man=no /usr/lib/systemd/system/modelstored.service || fail "systemd-analyze verify"
  [ -L "$root/etc/systemd/system/multi-user.target.wants/modelstored.service" ] || fail "the unit is not enabled"
  leave_root
}

[ -n "$package" ] || build_inside
install_inside
say "passed: $package"
