#!/usr/bin/env bash
# Installs the Debian packages that building and testing need and that are missing, then builds the release preset:
# build/release/bin/{modelstore,modelstored}. Running it again does only what is left to do.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'EOF'
usage: scripts/build.sh [--tests | --no-tests] [--also PACKAGE]... [--jobs N]

  (default)        packages for building and testing; builds the programs
  --tests          builds the tests too
  --no-tests       only the packages and programs that a user needs
  --also PACKAGE   one more Debian package that must be present
  --jobs N         parallel compile jobs (default: all cores)
EOF
}

say() { printf 'build: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

tests=packages
jobs=$(nproc)
packages=(g++ cmake ninja-build pkg-config librocksdb-dev libfuse3-dev fuse3 libzstd-dev libxxhash-dev libssl-dev
  nlohmann-json3-dev libcli11-dev libtomlplusplus-dev libspdlog-dev libsystemd-dev prometheus-cpp-dev
  libeigen3-dev libblis-serial-dev)
test_packages=(libgtest-dev libgmock-dev python3 systemd zsh fish)
also=()
while [ $# -gt 0 ]; do
  case $1 in
    --tests) tests=build ;;
    --no-tests) tests=none ;;
    --also) also+=("${2:?--also needs a package}") && shift ;;
    --jobs) jobs=${2:?--jobs needs a number} && shift ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
  shift
done
[ $tests = none ] || packages+=("${test_packages[@]}")
packages+=(${also[@]+"${also[@]}"})

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s\n' "$package"
  done
}

install_missing() {
  local missing sudo=()
  missing=($(missing_packages))
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "packages are missing and sudo is not there; as root run:
  apt-get install --no-install-recommends ${missing[*]}"
    sudo=(sudo)
  fi
  say "installing ${missing[*]}"
  ${sudo[@]+"${sudo[@]}"} apt-get update -q >&2 || fail "apt-get update failed; see the lines above"
  ${sudo[@]+"${sudo[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    "${missing[@]}" >&2 || fail "apt-get could not install ${missing[*]}; see the lines above"
}

if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
  install_missing
else
  say "not a Debian system; going on in the hope that these (or their equivalents) are there: ${packages[*]}"
fi

[ $tests = none ] && testing=OFF || testing=ON
mkdir -p build
cmake --preset release -DBUILD_TESTING=$testing >build/configure.log 2>&1 ||
  { cat build/configure.log >&2 && fail "configuring failed"; }
[ $tests = build ] && targets=(all) || targets=(modelstore modelstored)
say "building ${targets[*]} with $jobs jobs"
cmake --build build/release --target "${targets[@]}" -j "$jobs" >&2
say "$PWD/build/release/bin/modelstore and modelstored"
