#!/usr/bin/env bash
# Puts psyncd in front of a running node that keeps its data, its address and its replicas, without a restart and
# without a full resync: the node moves to another port, psyncd takes the one it had, and the replicas come back to it.
#
#   deploy/live-insert.sh [--dry-run] [--yes] [options] -- COMMAND...    COMMAND starts psyncd and returns
#   deploy/live-insert.sh [--dry-run] [--yes] [options] --rollback -- COMMAND...    COMMAND stops psyncd
#
#   --host ADDR        the node's address; replicas and clients keep using it          [127.0.0.1]
#   --port PORT        the node's port now, and psyncd's afterwards                    [6379]
#   --node-port PORT   the node's port afterwards                                      [6380]
#   --admin ADDR:PORT  psyncd's admin-bind                                             [127.0.0.1:9379]
#   --wait SECONDS     how long psyncd may take to have the stream                     [15]
#   --keep-config      do not CONFIG REWRITE the node
#   --dry-run          look at everything, say what would be done, change nothing
#   --yes              do not ask
#
# psyncd must be configured with port = PORT and upstream = "127.0.0.1:NODE_PORT"; COMMAND is what starts it, such as
# `systemctl start psyncd`. The node's password is taken from REDISCLI_AUTH. It takes Redis 7.0 or later, or Valkey.
#
# Do the replicas of a set first, then the master. If psyncd does not have the stream in time, the node gets its port
# back by itself. It may be interrupted at any time and run again.
set -euo pipefail

host=127.0.0.1 port=6379 node_port=6380 admin=127.0.0.1:9379 wait=15
dry=no yes=no rewrite=yes rollback=no
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
fail() { printf 'live-insert: %s\n' "$*" >&2; exit 1; }
note() { printf '  %s\n' "$*"; }
say() { printf '\n%s\n' "$*"; }

while [ $# -gt 0 ]; do
  case $1 in
    --host) host=${2:?}; shift ;;
    --port) port=${2:?}; shift ;;
    --node-port) node_port=${2:?}; shift ;;
    --admin) admin=${2:?}; shift ;;
    --wait) wait=${2:?}; shift ;;
    --keep-config) rewrite=no ;;
    --dry-run) dry=yes ;;
    --yes) yes=yes ;;
    --rollback) rollback=yes ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
[ $# -gt 0 ] || { usage >&2; exit 2; }
command -v redis-cli >/dev/null || command -v valkey-cli >/dev/null || fail "it takes redis-cli or valkey-cli"
command -v curl >/dev/null || fail "it takes curl"
cli=$(command -v redis-cli || command -v valkey-cli)

# node PORT WORD...: a command for the node, asked from this machine, so that it need not listen elsewhere
node() {
  local at=$1 answer
  shift
  answer=$("$cli" -h "$host" -p "$at" --no-auth-warning "$@") || return 1
  case $answer in ERR* | NOAUTH* | NOPERM* | WRONGPASS*) printf '%s\n' "$answer" >&2; return 1 ;; esac
  printf '%s\n' "$answer"
}
field() { node "$1" INFO | tr -d '\r' | sed -n "s/^$2://p" | head -n 1; }
change() {
  if [ "$dry" = yes ]; then note "would: $*"; return 0; fi
  note "$*"
  "$@" >/dev/null
}
# metric SERIES: its value at psyncd
metric() { curl -fsS --max-time 2 "http://$admin/metrics" 2>/dev/null | awk -v series="$1" '$1 == series { print $2 }'; }
# until_true SECONDS COMMAND...
until_true() {
  local end=$((SECONDS + $1))
  shift
  while ! "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}
has_stream() { [ "$(metric psyncd_upstream_link_up)" = 1 ]; }
# Whether as many replicas as there were are online, behind psyncd or at the node itself.
online() { node "$port" INFO replication | grep -c '^slave[0-9]*:.*state=online'; }
are_behind_psyncd() { [ "$(metric 'psyncd_replicas{state="online"}')" -ge "$replicas" ] 2>/dev/null; }
are_at_the_node() { [ "$(online)" -ge "${replicas:-0}" ]; }
# The id of the process that answers: through psyncd it is still the node's.
answers_as() { [ "$(field "$1" run_id 2>/dev/null)" = "$2" ]; }

# write_down PORT: has the node keep what was changed for its next start. One without a file, or with one that it cannot
# write, goes on as well as any.
write_down() {
  [ "$rewrite" = yes ] || return 0
  change node "$1" CONFIG REWRITE ||
    note "the node could not write that down: see to it that its next start has the same port and replica-announce-port"
}
put_back() {
  change node "$1" CONFIG SET port "$port" && change node "$port" CONFIG SET replica-announce-port 0
}
# make_room PORT: replicas are away for a second or two; what twenty seconds write has to fit into the node's backlog
# meanwhile. From 7.0 on a backlog keeps what it has when its size is changed.
room=''
make_room() {
  local before size wanted
  before=$(field "$1" master_repl_offset)
  sleep 1
  size=$(field "$1" repl_backlog_size)
  wanted=$((($(field "$1" master_repl_offset) - before) * 20))
  if [ "$wanted" -gt "$size" ]; then
    room=$size
    change node "$1" CONFIG SET repl-backlog-size "$wanted"
  fi
}
take_room_back() {
  [ -n "$room" ] || return 0
  change node "$1" CONFIG SET repl-backlog-size "$room"
  room=''
}
# Whatever ends this script before psyncd has the stream: nobody is left at a port where nobody answers.
moved=no
give_back() {
  [ -z "$room" ] || printf 'live-insert: repl-backlog-size of the node is left as it was needed; it was %s\n' "$room" >&2
  [ "$moved" = yes ] || return 0
  moved=no
  printf 'live-insert: giving the port back to the node\n' >&2
  put_back "$node_port" && write_down "$port" ||
    printf 'live-insert: the node is at %s and could not be moved back: stop psyncd, then run --rollback\n' "$node_port" >&2
}
trap give_back EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ "$rollback" = yes ]; then
  say "Giving $host:$port back to the node"
  id=$(field "$node_port" run_id) || fail "nobody answers at $host:$node_port"
  replicas=$(metric 'psyncd_replicas{state="online"}')
  full=$(field "$node_port" sync_full)
  make_room "$node_port"
  change "$@"
  put_back "$node_port"
  if [ "$dry" = no ]; then
    until_true "$wait" answers_as "$port" "$id" || fail "the node does not answer at $host:$port"
    note "the node answers at $host:$port; its replicas come back by themselves and continue where they are"
    until_true 30 are_at_the_node || fail "only $(online) of $replicas replicas are back so far"
    note "full resyncs of the node since the beginning: $(($(field "$port" sync_full) - full))"
  fi
  at=$port
  [ "$dry" = no ] || at=$node_port
  take_room_back "$at"
  write_down "$at"
  exit 0
fi

say "Looking at the node at $host:$port"
if ! id=$(field "$port" run_id); then
  [ "$(node "$node_port" CONFIG GET replica-announce-port 2>/dev/null | tail -n 1)" != "$port" ] ||
    fail "the node is at $node_port, and nobody at $port: --rollback gives it its port back"
  fail "nobody answers at $host:$port (is REDISCLI_AUTH set?)"
fi
[ -n "$id" ] || fail "what answers at $host:$port is no Redis"
version=$(field "$port" redis_version)
valkey=$(field "$port" valkey_version)
tcp_port=$(field "$port" tcp_port)
[ "${version%%.*}" -ge 7 ] || fail "Redis $version cannot change its port while it runs; restart it with port $node_port instead"
if [ "$tcp_port" = "$node_port" ]; then
  fail "the node is at $node_port already: what answers at $port stands in front of it (--rollback undoes it)"
fi
[ "$tcp_port" = "$port" ] || fail "what answers at $port listens at $tcp_port: is there something in front of it already?"
if node "$node_port" PING >/dev/null 2>&1; then fail "somebody else answers at $host:$node_port"; fi
role=$(field "$port" role)
replicas=$(field "$port" connected_slaves)
active=$(field "$port" repl_backlog_active)
full=$(field "$port" sync_full)
note "${valkey:+Valkey $valkey, speaks }Redis $version, $role, $replicas replicas attached"
if [ "$replicas" -gt 0 ] && [ "$active" != 1 ]; then fail "it has replicas and no backlog: they could not continue"; fi
[ "$replicas" -gt 0 ] || note "no replicas: nobody has to come back"
size=$(field "$port" repl_backlog_size)
note "its backlog holds $size bytes; it is made larger while the replicas are away, should that be too little"
[ "$(node "$port" CONFIG GET repl-backlog-ttl | tail -n 1)" = 0 ] ||
  note "repl-backlog-ttl is not 0: should psyncd be away that long, the node forgets its history (CONFIG SET repl-backlog-ttl 0)"
# What a set announces of itself tells whether a Sentinel would notice.
announced=$(node "$port" CONFIG GET replica-announce-port | tail -n 1)
case $announced in 0 | "$port") ;; *) fail "it announces port $announced: a proxy is in front of it already" ;; esac
if has_stream; then fail "psyncd at $admin runs already: stop it first"; fi

if [ "$dry" = no ] && [ "$yes" = no ]; then
  printf '\nMove the node to port %s and put psyncd at %s? [y/N] ' "$node_port" "$port"
  read -r answer
  [ "$answer" = y ] || exit 1
fi

say "Moving the node to $node_port"
change node "$port" CONFIG SET replica-announce-port "$port"
[ "$dry" = yes ] || moved=yes
change node "$port" CONFIG SET port "$node_port"
# A Sentinel that went on asking the node itself would find psyncd among its replicas, and never forgets one.
at=$port
[ "$dry" = yes ] || at=$node_port
for client in $(node "$at" CLIENT LIST | sed -n 's/^id=\([0-9]*\) .* name=sentinel-.*/\1/p'); do
  change node "$at" CLIENT KILL ID "$client" || true
done

say "Starting psyncd at $port"
change "$@" || fail "psyncd was not started; its log says why"
if [ "$dry" = no ]; then
  until_true "$wait" has_stream ||
    fail "psyncd has no stream after $wait seconds; its log says why (check-config, password, the port in its configuration)"
  moved=no
  until_true "$wait" answers_as "$port" "$id" || fail "psyncd does not pass clients to the node: run --rollback"
fi
at=$port
[ "$dry" = yes ] || at=$node_port
write_down "$at"

say "Letting the replicas come back through psyncd"
make_room "$at"
# psyncd's own link is among those that are cut, and comes back the same way.
change node "$node_port" CLIENT KILL TYPE replica
if [ "$dry" = yes ]; then take_room_back "$at"; exit 0; fi
until_true 30 are_behind_psyncd || fail "only $(metric 'psyncd_replicas{state="online"}') of $replicas replicas are back so far; see http://$admin/status"
note "$(metric 'psyncd_replicas{state="online"}') of $replicas replicas are online behind psyncd"
full=$(($(field "$node_port" sync_full) - full))
take_room_back "$node_port"
note "full resyncs of the node since the beginning: $full"
[ "$full" = 0 ] || note "a resync that was full: see psyncd's log for the reason"
say "Done. At the next restart of the node: bind 127.0.0.1, so that nobody goes round psyncd."
