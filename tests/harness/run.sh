#!/usr/bin/env bash
# Runs a command with what the tests need beyond Rust: a throwaway PostgreSQL server and public Python and Node clients.
#
# Exports WEDSYNC_TEST_POSTGRES (a URL), WEDSYNC_TEST_PYTHON (an interpreter), WEDSYNC_TEST_NODE_MODULES (a folder) and,
# where one can be had, WEDSYNC_TEST_CHROMIUM (a browser's program); with CI=true it must be there.
# Guarantee: however this script ends, by itself, by Ctrl-C or killed, the server is stopped and its folder removed; but with
# WEDSYNC_KEEP=1 the folder of a command that failed is kept, to be looked at.
#
# Usage: tests/harness/run.sh COMMAND [ARGUMENT...]
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: tests/harness/run.sh COMMAND [ARGUMENT...]" >&2; exit 2; }
tools=$(dirname "${BASH_SOURCE[0]}")/tools.sh

WEDSYNC_TEST_PYTHON=$("$tools" python)
WEDSYNC_TEST_NODE_MODULES=$("$tools" node_modules)
programs=$("$tools" postgres)
export WEDSYNC_TEST_PYTHON WEDSYNC_TEST_NODE_MODULES
if WEDSYNC_TEST_CHROMIUM=$("$tools" chromium); then
  export WEDSYNC_TEST_CHROMIUM
elif [ "${CI:-}" = true ]; then
  exit 1
else
  unset WEDSYNC_TEST_CHROMIUM
fi

# PostgreSQL refuses to run as root.
as_postgres() {
  if [ "$(id -u)" = 0 ]; then
    runuser -u "$(id -un postgres 2>/dev/null || echo nobody)" -- "$@"
  else
    "$@"
  fi
}

folder=$(as_postgres mktemp -d "${TMPDIR:-/tmp}/wedsync-postgres.XXXXXX")

remove() {
  as_postgres "$programs/pg_ctl" -D "$folder/data" -m immediate -s stop >/dev/null 2>&1 || true
  [ -e "$folder/keep" ] || rm -rf "$folder"
}

# The guard lives until nobody holds the other end of its input: it outlives every way in which this script can end.
exec {guard}> >(trap '' INT TERM HUP; cat >/dev/null; remove)
guardian=$!
# The command, if this script is told to end before it, ends too.
trap 'pkill -TERM -P $$ 2>/dev/null || true; exec {guard}>&-; wait "$guardian" 2>/dev/null || true' EXIT

# Everything durable, as in production: tests of durability must be able to fail.
configure() {
  cat <<SETTINGS
listen_addresses = '127.0.0.1'
unix_socket_directories = '$folder'
max_connections = 500
shared_buffers = 64MB
fsync = on
synchronous_commit = on
full_page_writes = on
wal_level = logical
max_replication_slots = 100
max_wal_senders = 100
logging_collector = off
SETTINGS
}

# The port may be taken by the time the server asks for it: then another one is tried.
start() {
  local port
  for _ in 1 2 3 4 5 6 7 8; do
    port=$((20000 + RANDOM % 10000))
    if as_postgres "$programs/pg_ctl" -D "$folder/data" -l "$folder/log" -o "-p $port" -w -s start {guard}>&-; then
      WEDSYNC_TEST_POSTGRES=postgres://postgres@127.0.0.1:$port/postgres
      export WEDSYNC_TEST_POSTGRES
      return
    fi
  done
  echo "PostgreSQL doesn't start:" >&2
  cat "$folder/log" >&2
  exit 1
}

as_postgres "$programs/initdb" -D "$folder/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 >/dev/null {guard}>&-
configure | as_postgres tee -a "$folder/data/postgresql.conf" >/dev/null
start
status=0
"$@" {guard}>&- || status=$?
if [ "$status" != 0 ] && [ -n "${WEDSYNC_KEEP:-}" ]; then
  touch "$folder/keep"
  echo "kept: $folder" >&2
fi
exit "$status"
