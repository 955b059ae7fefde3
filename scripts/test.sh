#!/usr/bin/env bash
# Builds everything and runs every test that needs no GPU; exits with ctest's code. ctest's summary comes last.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

usage() {
  cat <<'EOF'
usage: scripts/test.sh [--no-asan] [-- CTEST ARGUMENTS]

  --no-asan   leave out the unit tests and fuzz corpora under AddressSanitizer and UndefinedBehaviorSanitizer
  --          what follows goes to ctest, for example: scripts/test.sh --no-asan -- -L unit

Environment:
  MODELSTORE_REALMODELS  a folder with real checkpoints; tests that need them skip, saying so, when there is none
EOF
}

say() { printf 'test: %s\n' "$*" >&2; }

asan=yes
while [ $# -gt 0 ]; do
  case $1 in
    --no-asan) asan=no ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) usage >&2 && exit 2 ;;
  esac
  shift
done

# Real checkpoints, built once into a cache by the script that makes them, where it lies beside the checkout.
make_realmodels() {
  local source=$1 cache=$2
  [ ! -e "$cache/realmodels" ] || return 0
  mkdir -p "$cache"
  [ -x "$cache/venv/bin/pip" ] || python3 -m venv "$cache/venv" || return 1
  "$cache/venv/bin/pip" install -q --disable-pip-version-check numpy gguf zstandard safetensors || return 1
  rm -rf "$cache/realmodels.part"
  "$cache/venv/bin/python" "$source/fetch.py" "$cache/realmodels.part" || return 1
  mv "$cache/realmodels.part" "$cache/realmodels"
}

find_realmodels() {
  [ -z "${MODELSTORE_REALMODELS:-}" ] || return 0
  local source=$root/../shared/realmodels
  local cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/modelstore-tests
  [ -f "$source/fetch.py" ] || return 0
  if make_realmodels "$source" "$cache" >&2; then
    export MODELSTORE_REALMODELS=$cache/realmodels
    export MODELSTORE_PYTHON=${MODELSTORE_PYTHON:-$cache/venv/bin/python}
  else
    say "the real models could not be built (see above); tests that need them will skip"
  fi
}

also=()
if [ -f "$root/../shared/realmodels/fetch.py" ] && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
  also=(--also python3-venv)
fi
scripts/build.sh --tests ${also[@]+"${also[@]}"}
find_realmodels

run_sanitized() {
  cmake --preset asan >build/configure-asan.log 2>&1 || { cat build/configure-asan.log >&2 && return 1; }
  cmake --build build/asan --target sanitized_tests -j "$(nproc)" >&2 || return 1
  ctest --test-dir build/asan -L '^(unit|fuzz|gpu-host)$' -j 2 --output-on-failure
}

asan_code=0
if [ $asan = yes ]; then
  say "unit tests under AddressSanitizer and UndefinedBehaviorSanitizer"
  run_sanitized || asan_code=$?
fi

code=0
ctest --test-dir build/release -LE '^gpu$' -j 2 --output-on-failure "$@" || code=$?
if [ $asan_code -ne 0 ]; then
  say "the stage under the sanitizers failed too; its report is above"
  [ $code -ne 0 ] || code=$asan_code
fi
exit $code
