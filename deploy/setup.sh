#!/usr/bin/env bash
# Builds .venv in the project's root from constraints.txt. Called by `make`; prints nothing if .venv is up to date.
#
#   deploy/setup.sh          build or update .venv
#   deploy/setup.sh clean    remove .venv
#
# Both change only a .venv that this script made. It writes the file .venv/.swav-environment first, and recognises its own
# environments by it. .venv may be a link to an empty folder, for example on another disk; the script then builds there.
#
#   PYTHON=python3.12   interpreter for .venv (default: the first of python3.11, 3.13, 3.12 and python3 that has a venv module)
#   SWAV_SIMD=auto      build of pillow-simd that replaces Pillow: auto (by CPU), avx2, sse4, or off for stock Pillow
#   SWAV_APT=1          0: never install system packages
#   SWAV_SETUP_FORCE=1  repeat all stages
#   SWAV_PROJECT=0      install the packages without the project itself (for layers of an image)
set -euo pipefail
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER # they would install packages elsewhere
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
OWNER=$VENV/.swav-environment # path of the project that made the environment
STAMP=$VENV/.swav-setup       # key of a completed set-up
SIMD=${SWAV_SIMD:-auto}

# Everything that the environment depends on. The folder is included, because scripts in .venv contain its absolute path.
key() {
  { pwd -P; cat constraints.txt pyproject.toml deploy/setup.sh deploy/check_pillow.py; } | sha256sum | cut -d' ' -f1
}

up_to_date() {
  [ "${SWAV_SETUP_FORCE:-0}" != 1 ] && [ -x $VENV/bin/python ] && [ "$(cat $STAMP 2>/dev/null)" = "$KEY" ]
}

say() { printf '[set-up %3d s] %s\n' $((SECONDS - STARTED)) "$*"; }

fail() {
  printf '%s\n' "$*" | fold -s -w 110 >&2
  exit 1
}

# ---------------------------------------------------------------- whose .venv it is

is_empty() { [ -d $VENV ] && [ -z "$(ls -A $VENV)" ]; }

# Environments of earlier versions have the stamp only.
is_ours() { [ -f $OWNER ] || [ -f $STAMP ]; }

# A copied project has a copy of the link: the environment behind it then belongs to the original.
used_by() {
  local owner
  owner=$(cat $OWNER 2>/dev/null || true)
  if [ -L $VENV ] && [ -n "$owner" ] && [ "$owner" != "$(pwd -P)" ] && [ -e "$owner/$VENV" ]; then echo "$owner"; fi
}

describe() {
  if [ -L $VENV ]; then printf 'a link to %s, ' "$(readlink $VENV)"; fi
  if [ ! -e $VENV ]; then
    echo "which does not exist"
  elif [ ! -d $VENV ]; then
    echo "a file"
  elif [ -n "$(used_by)" ]; then
    echo "the environment of the project in $(used_by)"
  elif [ -d $VENV/conda-meta ]; then
    echo "a conda environment"
  elif grep -qs '^uv *=' $VENV/pyvenv.cfg; then
    echo "an environment made by uv"
  elif grep -qs '^virtualenv *=' $VENV/pyvenv.cfg; then
    echo "an environment made by virtualenv"
  elif [ -f $VENV/pyvenv.cfg ]; then
    echo "an environment made by python -m venv"
  else
    echo "a folder with other files"
  fi
}

may_change() {
  if [ ! -e $VENV ] && [ ! -L $VENV ]; then return 0; fi
  [ -d $VENV ] && { is_empty || { is_ours && [ -z "$(used_by)" ]; }; }
}

check_owner() {
  local use="move it away (mv $VENV $VENV-mine)"
  if may_change; then return 0; fi
  if [ -L $VENV ]; then use="remove the link (rm $VENV), or point it to an empty folder,"; fi
  fail "$(pwd)/$VENV was not made by make setup: it is $(describe). Nothing in it was changed." $'\n' \
    "To let make build its own environment, $use and run the same command again." $'\n' \
    "To use your own environment instead, activate it and install the project there:" $'\n' \
    "  python -m pip install -c constraints.txt -e . && swav demo"
}

# Empties the environment. The marker goes last, so that an interrupted removal is still recognised.
empty_venv() {
  find "$(cd $VENV && pwd -P)" -mindepth 1 -maxdepth 1 ! -name "${OWNER##*/}" -exec rm -rf {} +
}

claim_venv() {
  mkdir -p $VENV
  pwd -P >$OWNER
}

clean() {
  if [ ! -e $VENV ] && [ ! -L $VENV ]; then return 0; fi
  if ! may_change; then
    echo "$(pwd)/$VENV is left in place, because make setup did not make it: it is $(describe)."
    return 0
  fi
  if ! is_empty; then claim_venv && empty_venv; fi
  rm -f $OWNER
  if [ ! -L $VENV ]; then rmdir $VENV; fi # a link stays, for the next set-up
}

STARTED=$SECONDS
if [ "${1:-}" = clean ]; then
  clean
  exit 0
fi

KEY=$(key)
if up_to_date; then exit 0; fi

# If two `make` run at the same time, the second waits for the first.
if command -v flock >/dev/null; then
  exec 9>.swav-setup
  flock 9
  if up_to_date; then exit 0; fi
fi
check_owner

LOG=/dev/null
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

# stage TEXT COMMAND...: prints one line of progress. The command's output goes to the log; on failure its tail is shown.
stage() {
  local text=$1
  shift
  say "$text"
  printf '\n== %s\n' "$*" >>"$LOG"
  if ! "$@" >>"$LOG" 2>&1; then
    printf '\n... the last lines of %s:\n' "$LOG" >&2
    tail -n 25 "$LOG" >&2
    fail "Set-up failed at \"$text\"; the lines above show the cause. The most frequent ones are no network, no package" \
      "of that version for this Python, and a full disk. Fix it and run the same command again: installed packages are kept."
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

# apt_install PACKAGE...: installs as many of them as possible. Never prompts; gives up after a timeout.
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

# The lock was made and tested with 3.11; otherwise the newest one is best. One with a venv module is preferred.
# A pyenv shim without an installed version does not run and is skipped.
choose_python() {
  local candidate fallback=""
  if [ -n "${PYTHON:-}" ]; then
    if ! new_enough "$PYTHON"; then
      fail "PYTHON=$PYTHON is not a working Python 3.11 or newer. Choose another one, or unset PYTHON."
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
  fail "No Python 3.11 or newer was found ($(python3 --version 2>/dev/null || echo 'there is no python3'))." \
    "Install one (on Debian 12 and Ubuntu 24.04: apt-get install python3 python3-venv python3-dev), or give its path:" \
    "make setup PYTHON=/path/to/python3.12"
}

# False for an environment that was moved or copied: its scripts contain the old path.
usable_venv() {
  [ -x $VENV/bin/python ] && new_enough $VENV/bin/python &&
    grep -qsF -e "$(pwd -P)/$VENV" -e "$(cd $VENV && pwd -P)" $VENV/bin/activate &&
    $VENV/bin/python -m pip --version >/dev/null 2>&1
}

make_venv() {
  local python=$1 version
  if ! has_venv "$python"; then
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    apt_install "$version-venv"
    if ! has_venv "$python"; then
      fail "$python has no venv module; Debian and Ubuntu have it in a separate package. Install it with:" \
        "sudo apt-get install $version-venv"
    fi
  fi
  claim_venv
  empty_venv
  # The resolved path, because the venv module rejects a link.
  if ! "$python" -m venv "$(cd $VENV && pwd -P)" >"$WORK/venv.log" 2>&1; then
    tail -n 15 "$WORK/venv.log" >&2
    fail "$python could not create $(pwd)/$VENV; see the lines above. Check that the folder is writable and the disk is not full."
  fi
}

# ---------------------------------------------------------------- Pillow

# Both distributions own the folder PIL/, and the one installed last overwrites the other. So both are removed first.
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
  # AVIF needs libavif 1.0, which Debian 12 and Ubuntu 22.04 lack.
  if ! dpkg-query -W libavif-dev >/dev/null 2>&1 &&
    apt-cache policy libavif-dev 2>/dev/null | grep -qE 'Candidate: ([1-9]|[0-9]{2})'; then missing+=(libavif-dev); fi
  if [ ${#missing[@]} -gt 0 ]; then apt_install "${missing[@]}"; fi
}

# Built and tested in a separate folder. PIL/ is replaced only by a build that works on this CPU and reads all required formats.
build_simd() {
  local level=$1 cc=${CC:-cc}
  if [ "$level" = avx2 ]; then cc="$cc -mavx2"; fi
  # No cache: pip's cache key ignores compiler flags, CPUs and headers.
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
    reason="pillow-simd needs an x86 CPU with SSE4, or is switched off"
  elif [ "${SWAV_SETUP_FORCE:-0}" != 1 ] && simd_is_in_place; then
    say "pillow-simd is up to date"
    return
  else
    install_headers
    say "Building pillow-simd for $level (half a minute)"
    local ended=0
    build_simd "$level" >>"$LOG" 2>&1 || ended=$?
    if [ $ended -eq 0 ]; then
      stage "Replacing Pillow by pillow-simd" replace_pillow "$(echo "$WORK"/pillow_simd-*.whl)"
      return
    fi
    if [ $ended -eq 124 ]; then
      reason="the build of pillow-simd took over 900 s; try again when the machine is less busy: make setup FORCE=1"
    else
      reason="pillow-simd with all codecs could not be built, see $LOG; install a C compiler, Python headers, libjpeg-dev zlib1g-dev libwebp-dev libtiff-dev, then: make setup FORCE=1"
    fi
  fi
  stage "Installing stock Pillow, which resizes several times slower ($reason)" replace_pillow "$(pin pillow)"
}

# ---------------------------------------------------------------- the stages

if ! usable_venv; then
  CHOSEN=$(choose_python)
  say "Creating $VENV with $("$CHOSEN" --version 2>&1) ($(command -v "$CHOSEN"))"
  make_venv "$CHOSEN"
fi
claim_venv
rm -f $STAMP
LOG=$VENV/setup.log
: >"$LOG"
PIP="$VENV/bin/python -m pip --disable-pip-version-check --no-input"

stage "Installing torch from pip's default index (CUDA builds are large)" $PIP install -c constraints.txt "$(pin torch)"
grep -vE '^(torch|pillow|pillow-simd)==' constraints.txt >"$WORK/lock.txt"
stage "Installing the other packages of constraints.txt" $PIP install --no-deps -r "$WORK/lock.txt"
install_pillow
if [ "${SWAV_PROJECT:-1}" = 0 ]; then
  say "Packages are installed"
  exit 0
fi
stage "Installing the project" $PIP install --no-deps --no-build-isolation -e .
stage "Testing the installation" $VENV/bin/python -c 'import PIL.Image, numpy, pyarrow, torch, swav_platform'
printf '%s\n' "$KEY" >$STAMP
say "Ready: $VENV/bin/swav"
