#!/usr/bin/env bash
# Makes the Debian package of this release of Debian: builds the programs and writes build/modelstore_VERSION_ARCH.deb.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'EOF'
usage: scripts/package.sh [--jobs N]

  --jobs N   parallel compile jobs (default: all cores)
EOF
}

jobs=()
while [ $# -gt 0 ]; do
  case $1 in
    --jobs) jobs=(--jobs "${2:?--jobs needs a number}") && shift ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
  shift
done

scripts/build.sh --no-tests --also dpkg-dev --also file ${jobs[@]+"${jobs[@]}"}
work=$(mktemp -d build/package.XXXXXX)
trap 'rm -rf "$work"' EXIT
(umask 022 && cpack --config build/release/CPackConfig.cmake -B "$PWD/$work" >"$work/log" 2>&1) ||
  { cat "$work/log" >&2 && exit 1; }
mv "$work"/modelstore_*.deb build/
printf '%s\n' "$PWD"/build/"$(basename "$(ls -t build/modelstore_*.deb | head -1)")"
