#!/usr/bin/env bash
# Builds .venv in the project's root from constraints.txt. Run by `make`; says nothing when there is nothing to do.
#
#   PYTHON=python3.12   the interpreter to take
#   SWAV_SIMD=auto      auto | avx2 | sse4 | off: which build of pillow-simd goes in Pillow's place (off: stock Pillow)
#   SWAV_APT=1          0: never install system packages
#   SWAV_SETUP_FORCE=1  go through all stages again
#   SWAV_PROJECT=0      the packages only, without the project itself (for layers of an image)
set -euo pipefail
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER # they would send packages elsewhere
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
STAMP=$VENV/.swav-setup
SIMD=${SWAV_SIMD:-auto}

# What the environment depends on. The folder is part of it: scripts in a .venv hold its absolute path.
key() {
  { pwd -P; cat constraints.txt pyproject.toml deploy/setup.sh deploy/check_pillow.py; } | sha256sum | cut -d' ' -f1
}

up_to_date() {
  [ "${SWAV_SETUP_FORCE:-0}" != 1 ] && [ -x $VENV/bin/python ] && [ "$(cat $STAMP 2>/dev/null)" = "$KEY" ]
}

KEY=$(key)
if up_to_date; then exit 0; fi

# Two `make` at once: the second one waits for the first and then finds all done.
if command -v flock >/dev/null; then
  exec 9>.swav-setup
  flock 9
  if up_to_date; then exit 0; fi
fi

STARTED=$SECONDS
LOG=/dev/null
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

say() { printf '[set-up %3d s] %s\n' $((SECONDS - STARTED)) "$*"; }

fail() {
  printf '%s\n' "$*" | fold -s -w 110 >&2
  exit 1
}

# stage TEXT COMMAND...: one line of progress; the command's output goes to the log, its tail is shown on failure.
stage() {
  local text=$1
  shift
  say "$text"
  printf '\n== %s\n' "$*" >>"$LOG"
  if ! "$@" >>"$LOG" 2>&1; then
    printf '\n... the last lines of %s:\n' "$LOG" >&2
    tail -n 25 "$LOG" >&2
    fail "Set-up stopped at \"$text\". The lines above say why (most often: no network, no package of that version for" \
      "this Python, or a full disk). Mend that and run the same command again; what is installed already is kept."
  fi
}

# ---------------------------------------------------------------- system packages

root_prefix() {
  if [ "$(id -u)" = 0 ]; then
    echo env
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    echo "sudo -n env"
  fi
}

# apt_install PACKAGE...: as many of them as can be had; never asks, never waits for long.
apt_install() {
  local as_root package
  as_root=$(root_prefix)
  if [ "${SWAV_APT:-1}" = 0 ] || [ -z "$as_root" ] || ! command -v apt-get >/dev/null; then return 0; fi
  say "Installing system packages: $*"
  local install="$as_root DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -q --no-install-recommends"
  if $install "$@" >>"$LOG" 2>&1 </dev/null; then return 0; fi
  $as_root timeout 180 apt-get update -q >>"$LOG" 2>&1 </dev/null || true
  if $install "$@" >>"$LOG" 2>&1 </dev/null; then return 0; fi
  for package in "$@"; do $install "$package" >>"$LOG" 2>&1 </dev/null || true; done
}

# ---------------------------------------------------------------- Python

new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

has_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# 3.11 is what the lock was made and tested with; else the newest one. Those with a venv module go first.
# A pyenv shim without a version behind it doesn't run, so it is passed over.
choose_python() {
  local candidate fallback=""
  if [ -n "${PYTHON:-}" ]; then
    if ! new_enough "$PYTHON"; then
      fail "PYTHON=$PYTHON is no working Python 3.11 or newer. Name another one, or leave PYTHON out."
    fi
    echo "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.13 python3.12 python3; do
    new_enough "$candidate" || continue
    if has_venv "$candidate"; then
      echo "$candidate"
      return
    fi
    fallback=${fallback:-$candidate}
  done
  if [ -n "$fallback" ]; then
    echo "$fallback"
    return
  fi
  fail "No Python 3.11 or newer was found ($(python3 --version 2>/dev/null || echo 'there is no python3 at all'))." \
    "Install one (Debian 12 and Ubuntu 24.04 have it: apt-get install python3 python3-venv python3-dev), or name it:" \
    "make setup PYTHON=/path/to/python3.12"
}

# One that was copied or moved here still runs the scripts of its first place.
usable_venv() {
  [ -x $VENV/bin/python ] && new_enough $VENV/bin/python && grep -qsF "$(pwd -P)/$VENV" $VENV/bin/activate &&
    $VENV/bin/python -m pip --version >/dev/null 2>&1
}

make_venv() {
  local python=$1 version
  if ! has_venv "$python"; then
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    apt_install "$version-venv"
    if ! has_venv "$python"; then
      fail "$python has no venv module, which Debian and Ubuntu pack apart. Install it with:" \
        "sudo apt-get install $version-venv"
    fi
  fi
  if ! "$python" -m venv --clear $VENV >"$WORK/venv.log" 2>&1; then
    tail -n 15 "$WORK/venv.log" >&2
    fail "$python could not make $(pwd)/$VENV; see the lines above. Is the folder writable and the disk not full?"
  fi
}

# ---------------------------------------------------------------- Pillow

# Both distributions own the folder PIL/, and whoever comes last wins: never both, so the old ones go first.
replace_pillow() {
  $PIP uninstall -y pillow pillow-simd
  $PIP install --no-deps "$1"
}

pin() { grep -E "^$1==" constraints.txt | sed 's/ *;.*//'; }

simd_level() {
  if [ "$SIMD" != auto ]; then
    echo "$SIMD"
  elif grep -qsw avx2 /proc/cpuinfo; then
    echo avx2
  elif grep -qsw sse4_1 /proc/cpuinfo; then
    echo sse4
  else
    echo off
  fi
}

has_python_headers() {
  $VENV/bin/python -c 'import os, sysconfig as s; raise SystemExit(not os.path.exists(s.get_path("include") + "/Python.h"))'
}

install_headers() {
  command -v dpkg-query >/dev/null || return 0
  local missing=() package
  for package in libjpeg-dev zlib1g-dev libwebp-dev libtiff-dev liblcms2-dev libopenjp2-7-dev; do
    dpkg-query -W -f '${Status}' $package 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  has_python_headers || missing+=("$($VENV/bin/python -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')")
  # AVIF needs libavif 1.0, which Debian 12 and Ubuntu 22.04 don't have; an older one is no use.
  if ! dpkg-query -W libavif-dev >/dev/null 2>&1 &&
    apt-cache policy libavif-dev 2>/dev/null | grep -qE 'Candidate: ([1-9]|[0-9]{2})'; then missing+=(libavif-dev); fi
  if [ ${#missing[@]} -gt 0 ]; then apt_install "${missing[@]}"; fi
}

# Built and tried aside; PIL/ is replaced only by what works on this CPU and reads the formats that the platform promises.
build_simd() {
  local level=$1 cc=${CC:-cc}
  if [ "$level" = avx2 ]; then cc="$cc -mavx2"; fi
  # No cache: pip's key knows nothing of compiler flags, CPUs or headers.
  CC=$cc timeout 900 $PIP wheel --no-deps --no-build-isolation --no-cache-dir -w "$WORK" "$(pin pillow-simd)" &&
    $PIP install --no-deps --target "$WORK/site" "$WORK"/pillow_simd-*.whl &&
    PYTHONPATH="$WORK/site" $VENV/bin/python deploy/check_pillow.py
}

simd_is_in_place() {
  ! $PIP show -q pillow >/dev/null 2>&1 && $PIP show pillow-simd 2>/dev/null | grep -qx "Version: $(pin pillow-simd | cut -d= -f3)" &&
    $VENV/bin/python deploy/check_pillow.py >/dev/null 2>&1
}

install_pillow() {
  local level reason=""
  level=$(simd_level)
  if [ "$level" = off ]; then
    reason="pillow-simd is for x86 CPUs with SSE4, or was switched off"
  elif [ "${SWAV_SETUP_FORCE:-0}" != 1 ] && simd_is_in_place; then
    say "pillow-simd is in place"
    return
  else
    install_headers
    say "Building pillow-simd for $level (half a minute)"
    local ended=0
    build_simd "$level" >>"$LOG" 2>&1 || ended=$?
    if [ $ended -eq 0 ]; then
      stage "Putting pillow-simd in Pillow's place" replace_pillow "$(echo "$WORK"/pillow_simd-*.whl)"
      return
    fi
    if [ $ended -eq 124 ]; then
      reason="pillow-simd was not built within 900 s; on a machine with less to do: make setup FORCE=1"
    else
      reason="pillow-simd could not be built with all codecs: C compiler, Python headers and libjpeg-dev zlib1g-dev libwebp-dev libtiff-dev are needed; details in $LOG; then: make setup FORCE=1"
    fi
  fi
  stage "Stock Pillow, resizing several times slower ($reason)" replace_pillow "$(pin pillow)"
}

# ---------------------------------------------------------------- all of it

if ! usable_venv; then
  CHOSEN=$(choose_python)
  say "Making $VENV with $("$CHOSEN" --version 2>&1) ($(command -v "$CHOSEN"))"
  make_venv "$CHOSEN"
fi
rm -f $STAMP
LOG=$VENV/setup.log
: >"$LOG"
PIP="$VENV/bin/python -m pip --disable-pip-version-check --no-input"

stage "torch, the build that this machine's pip offers (CUDA builds are large)" $PIP install -c constraints.txt "$(pin torch)"
grep -vE '^(torch|pillow|pillow-simd)==' constraints.txt >"$WORK/lock.txt"
stage "The other packages of the lock" $PIP install --no-deps -r "$WORK/lock.txt"
install_pillow
if [ "${SWAV_PROJECT:-1}" = 0 ]; then
  say "Packages are in place"
  exit 0
fi
stage "The project itself" $PIP install --no-deps --no-build-isolation -e .
stage "Trying it" $VENV/bin/python -c 'import PIL.Image, numpy, pyarrow, torch, swav_platform'
printf '%s\n' "$KEY" >$STAMP
say "Ready: $VENV/bin/swav"
