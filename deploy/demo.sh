#!/usr/bin/env bash
# Tells the story of psyncd on real servers, twice, in less than a minute:
#
#   deploy/demo.sh          build, run, and stop by itself (or on Ctrl-C)
#   deploy/demo.sh --keep   leave the second part running and say how to stop it
#
# A master with data and three replicas live through the same five days, first on their own and then with psyncd in
# between: everybody needs everything; the master dies and a replica is promoted; psyncd is killed; a replica is cut off
# for three times the writes that its master keeps; three more replicas come. After each day everybody must be in sync
# again, and at the end stands a table of what it took, read from the servers and psyncd in this very run. Everything is
# on loopback and on free ports, in a directory of its own that is removed, and every process is ended by its pid. A
# redis-server or valkey-server that is not on the PATH is fetched into target/servers without touching the system.
# PSYNCD names a psyncd that is built.
#
# Both parts have servers with their default settings but these: nothing is saved, the RDB is not compressed and goes by
# way of the disk (so that its bytes are announced, and nobody waits five seconds for company).
set -euo pipefail

keep=no
case ${1-} in
  '') ;;
  --keep) keep=yes ;;
  *) sed -n '2,17s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
cd "$(dirname "$(readlink -f "$0")")/.."

pids=() stopped=no home='' admin_port='' last_port='' last_pid='' writer=''
# The shell's own notices of ended jobs would clutter what is shown.
set +m

# end PID...: ends processes of ours and waits for them
end() {
  local pid
  for pid; do kill "$pid" 2>/dev/null || true; done
  for pid; do forget "$pid"; done
}
# forget PID: it is dead or dying
forget() {
  local at
  wait "$1" 2>/dev/null || true
  for at in "${!pids[@]}"; do
    if [ "${pids[at]}" = "$1" ]; then unset "pids[at]"; fi
  done
}
clean_up() {
  [ "$stopped" = no ] || return 0
  stopped=yes
  end "${pids[@]}"
  [ -z "$home" ] || rm -rf "$home"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
note() { printf '  %s\n' "$*"; }
give_up() {
  printf 'demo: %s\n' "$*" >&2
  if [ -f "$home/with/psyncd.log" ]; then tail -n 5 "$home/with/psyncd.log" >&2; fi
  exit 1
}

# ---- what it takes ----

psyncd=${PSYNCD-}
if [ -z "$psyncd" ]; then
  say "Building psyncd"
  cargo build --release --quiet
  psyncd=$(cargo metadata --format-version 1 --no-deps --quiet | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/release/psyncd
fi
[ -x "$psyncd" ] || give_up "there is no $psyncd"

server=$(command -v redis-server || command -v valkey-server || true)
if [ -z "$server" ]; then
  say "No redis-server on the PATH: fetching one into target/servers"
  # The last field of `NAME VERSION RDB PATH`; the path may contain blanks.
  server=$(python3 tests/e2e/servers/fetch.py target/servers redis-7.0.15 | cut -d' ' -f4-)
fi
[ -x "$server" ] || give_up "there is no redis-server to be had"
note "$("$server" --version | cut -c1-70)"

home=$(mktemp -d)

# ---- a client of a dozen lines, so that no redis-cli is needed ----

# ask PORT WORD...: one command, its answer as text without the framing (bulk, integer, status and errors)
ask() {
  local port=$1 line word length answer
  shift
  exec 3<>"/dev/tcp/127.0.0.1/$port" || return 1
  printf '*%d\r\n' $# >&3
  for word; do printf '$%d\r\n%s\r\n' "${#word}" "$word" >&3; done
  IFS= read -r -t 10 line <&3 || { exec 3>&-; return 1; }
  line=${line%$'\r'}
  case $line in
    '$-1') answer='' ;;
    '$'*) length=${line#?}; IFS= read -r -t 10 -N "$length" answer <&3 || true ;;
    *) answer=${line#?} ;;
  esac
  exec 3>&-
  printf '%s\n' "$answer"
  case $line in -*) return 1 ;; esac
}

# field PORT NAME: one field of INFO (0 where the server does not have it)
field() {
  local value
  value=$(ask "$1" INFO everything | tr -d '\r' | sed -n "s/^$2://p" | head -n 1)
  printf '%s\n' "${value:-0}"
}

# metric SERIES: the sum of all series that begin so
metric() {
  local line
  exec 4<>"/dev/tcp/127.0.0.1/$admin_port" || return 1
  printf 'GET /metrics HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&4
  while IFS= read -r -t 10 line <&4 || [ -n "$line" ]; do printf '%s\n' "${line%$'\r'}"; done |
    awk -v series="$1" 'index($0, series) == 1 { sum += $NF } END { printf "%d\n", sum }'
  exec 4>&-
}

# until_true WHAT COMMAND...: asks twenty times a second, for half a minute
until_true() {
  local what=$1 deadline=$((SECONDS + 30))
  shift
  until "$@" 2>/dev/null; do
    [ "$SECONDS" -lt "$deadline" ] || give_up "waited in vain for: $what"
    sleep 0.05
  done
}

# ---- the actors ----

# start_server NAME: a server on a free port (in last_port and last_pid)
start_server() {
  local name=$1 try wait
  local options=(--bind 127.0.0.1 --save '' --appendonly no --loglevel notice --rdbcompression no --repl-diskless-sync no)
  mkdir "$home/$part/$name"
  for ((try = 0; try < 20; try++)); do
    # Below the ports that the kernel gives to outgoing connections; a taken one is noticed by the server itself.
    last_port=$((20000 + RANDOM % 12000))
    "$server" --port "$last_port" --dir "$home/$part/$name" "${options[@]}" >"$home/$part/$name.log" 2>&1 &
    last_pid=$!
    for ((wait = 0; wait < 100; wait++)); do
      kill -0 "$last_pid" 2>/dev/null || break
      if grep -qs 'eady to accept connections' "$home/$part/$name.log"; then
        pids+=("$last_pid")
        return 0
      fi
      sleep 0.05
    done
    kill "$last_pid" 2>/dev/null || true
    wait "$last_pid" 2>/dev/null || true
  done
  give_up "$name did not start: $(tail -n 1 "$home/$part/$name.log")"
}

# start_psyncd PORT ADMIN_PORT: in front of the master; 0 is a free port
start_psyncd() {
  local started log="$home/$part/psyncd.log"
  : >"$log"
  "$psyncd" run --upstream "127.0.0.1:$master_port" --port "$1" --admin-bind "127.0.0.1:$2" --dir "$home/$part/psyncd" \
    --log-format logfmt >"$log" 2>&1 &
  psyncd_pid=$!
  pids+=("$psyncd_pid")
  until_true "psyncd to start" grep -q 'psyncd started' "$log"
  started=$(grep 'psyncd started' "$log" | tr -d '"')
  port=$(sed -n 's/.* listen=[^ ]*:\([0-9]*\).*/\1/p' <<<"$started")
  admin_port=$(sed -n 's/.* admin=[^ ]*:\([0-9]*\).*/\1/p' <<<"$started")
  until_true "psyncd to reach the master" psyncd_streams
}
psyncd_streams() { [ "$(metric psyncd_upstream_link_up)" = 1 ]; }

# A client that adds some thousand times a second, at the port where it finds the master.
start_writer() {
  (
    exec 5<>"/dev/tcp/127.0.0.1/$port"
    command=''
    for ((n = 0; n < 50; n++)); do command+=$'*2\r\n$4\r\nINCR\r\n$8\r\nwritings\r\n'; done
    while printf '%s' "$command" >&5; do
      for ((n = 0; n < 50; n++)); do IFS= read -r -t 10 _ <&5 || exit 0; done
      sleep 0.02
    done
  ) >/dev/null 2>&1 &
  writer=$!
  pids+=("$writer")
}
stop_writer() { end "$writer"; }

# in_sync PORT OFFSET: the replica has all up to there
in_sync() {
  local said
  said=$(ask "$1" INFO replication | tr -d '\r')
  case $said in *master_link_status:up*) ;; *) return 1 ;; esac
  [ "$(sed -n 's/^slave_repl_offset://p' <<<"$said")" -ge "$2" ]
}
# all_in_sync: every replica has what the master has now
all_in_sync() {
  local replica offset
  offset=$(field "$master_port" master_repl_offset)
  for replica in "${replica_ports[@]}"; do until_true "the replica on $replica to be in sync" in_sync "$replica" "$offset"; done
}
# follow PORT...: has the replicas follow whoever is to be followed in this part
follow() {
  local replica
  for replica; do ask "$replica" SLAVEOF 127.0.0.1 "$port" >/dev/null; done
}

# ---- what is counted ----

# RDBs, forks and RDB bytes of all masters there were: of those that are gone in gone_*. A master counts its RDBs and forks;
# the bytes are what its replicas say that they were announced, or psyncd says that it received.
rdbs() { echo $((gone_rdbs + $(field "$master_port" sync_full))); }
forks() { echo $((gone_forks + $(field "$master_port" total_forks))); }
bytes() {
  if [ "$part" = with ]; then
    [ -n "$admin_port" ] || { echo 0; return; }
    echo $((gone_bytes + $(metric 'psyncd_upstream_received_bytes_total{kind="snapshot"}')))
  else
    cat "$home/$part"/*.log | sed -n 's/.*sync: receiving \([0-9]*\) bytes from \(master\|primary\).*/\1/p' | awk '{ sum += $1 } END { print sum + 0 }'
  fi
}

declare -A measured
# day NAME PREPARE ACT: prepares, acts, waits until everybody is in sync, and notes what that took; the clock runs from the act
day() {
  local rdbs forks bytes began elapsed
  rdbs=$(rdbs) forks=$(forks) bytes=$(bytes)
  "$2"
  began=${EPOCHREALTIME/[.,]/}
  "$3"
  all_in_sync
  elapsed=$((${EPOCHREALTIME/[.,]/} - began))
  measured[$part.$1]="$(($(rdbs) - rdbs)) $(($(forks) - forks)) $(($(bytes) - bytes)) $elapsed"
  note "  $(took "${measured[$part.$1]}")"
}
took() { awk '{ printf "RDBs %d, forks %d, %.1f MB of RDB, after %.1f s", $1, $2, $3 / 1e6, $4 / 1e6 }' <<<"$1"; }

# ---- the five days ----

nothing() { :; }

# psyncd's own RDB counts, too: the clock runs while it comes.
all_at_once() {
  if [ "$part" = with ]; then start_psyncd 0 0; fi
  follow "${replica_ports[@]}"
}

# Quiet, because the story is not about writes that only the dead master had; deploy/FAILOVERS.md tells that one.
before_failover() {
  stop_writer
  all_in_sync
  gone_rdbs=$(rdbs) gone_forks=$(forks)
}
failover() {
  kill -9 "$master_pid"
  forget "$master_pid"
  local heir=${replica_ports[0]}
  ask "$heir" SLAVEOF NO ONE >/dev/null
  # Only who follows the new master can have this.
  ask "$heir" SET heir "$heir" >/dev/null
  # What it counted as a replica is no master's.
  gone_forks=$((gone_forks - $(field "$heir" total_forks)))
  master_port=$heir master_pid=${replica_pids[0]}
  replica_ports=("${replica_ports[@]:1}") replica_pids=("${replica_pids[@]:1}")
  if [ "$part" = with ]; then
    "$psyncd" repoint "127.0.0.1:$heir" --dir "$home/$part/psyncd" >/dev/null
  else
    port=$heir
    follow "${replica_ports[@]}"
  fi
  start_writer
}

before_kill() { gone_bytes=$(bytes); }
kill_psyncd() {
  kill -9 "$psyncd_pid"
  forget "$psyncd_pid"
  forget "$writer"
  start_psyncd "$port" "$admin_port"
  start_writer
}

# Its line is cut by having it follow a port where nobody is. Redis keeps 1 MiB of writes, Valkey 10.
cut_off() {
  local n value enough
  enough=$((3 * $(field "$master_port" repl_backlog_size) / 65536))
  value=$(head -c 65536 /dev/zero | tr '\0' v)
  ask "${replica_ports[0]}" SLAVEOF 127.0.0.1 1 >/dev/null
  for ((n = 0; n < enough; n++)); do ask "$port" SET "while-away:$n" "$value" >/dev/null; done
}
mend() { follow "${replica_ports[0]}"; }

start_late() {
  local name
  late=()
  for name in four five six; do start_replica "$name"; late+=("$last_port"); done
}
one_after_another() {
  local replica
  for replica in "${late[@]}"; do
    follow "$replica"
    until_true "the late replica on $replica to be in sync" in_sync "$replica" "$(field "$master_port" master_repl_offset)"
    replica_ports+=("$replica")
  done
}
start_replica() {
  start_server "$1"
  replica_pids+=("$last_pid")
}

# live with|without
live() {
  part=$1
  mkdir "$home/$part"
  gone_rdbs=0 gone_forks=0 gone_bytes=0 replica_ports=() replica_pids=()
  start_server master
  master_port=$last_port master_pid=$last_pid port=$last_port
  ask "$master_port" EVAL "for i = 1, 250000 do redis.call('SET', 'key:' .. i, string.rep('v', 200)) end return redis.call('DBSIZE')" 0 >/dev/null
  note "a master on 127.0.0.1:$master_port with $(ask "$master_port" DBSIZE) keys"
  start_writer
  local name
  for name in one two three; do start_replica "$name"; replica_ports+=("$last_port"); done

  if [ "$part" = with ]; then note "Day 1: psyncd, and three replicas behind it, all at once"; else note "Day 1: three replicas, all at once"; fi
  day start nothing all_at_once
  if [ "$part" = with ]; then
    # From here on through psyncd, as clients would.
    stop_writer
    start_writer
    note "psyncd on 127.0.0.1:$port, its page on http://127.0.0.1:$admin_port/"
  fi
  note "Day 2: the master is killed, replica one is promoted"
  day failover before_failover failover
  if [ "$part" = with ]; then
    note "Day 3: psyncd is killed (kill -9) and started again"
    day kill before_kill kill_psyncd
  else
    note "Day 3: there is no psyncd to kill"
  fi
  note "Day 4: a replica is cut off for $((3 * $(field "$master_port" repl_backlog_size) >> 20)) MiB of writes, three times what its master keeps"
  day cut cut_off mend
  note "Day 5: three late replicas, one after the other"
  day late start_late one_after_another
  # Not the sum of the days: between them nothing may be spent, either.
  measured[$part.sum]="$(rdbs) $(forks) $(bytes) 0"
}

# nobody_lost_anything: everybody holds what the master holds
nobody_lost_anything() {
  local replica written keys
  stop_writer
  all_in_sync
  written=$(ask "$master_port" GET writings) keys=$(ask "$master_port" DBSIZE)
  for replica in "${replica_ports[@]}"; do
    [ "$(ask "$replica" GET writings)/$(ask "$replica" DBSIZE)" = "$written/$keys" ] ||
      give_up "the replica on $replica is not equal to the master"
  done
  note "all ${#replica_ports[@]} replicas hold all $keys keys and all $written writes"
}

table() {
  local name title line='  %-29s | %-31s | %-31s\n' head=' RDBs  forks   RDB MB   seconds'
  say "What it took of the masters, and until everybody was in sync"
  # shellcheck disable=SC2059  # the one form of all lines
  {
    printf "$line" '' '       without psyncd' '        with psyncd'
    printf "$line" '' "$head" "$head"
    while read -r name title; do
      printf "$line" "$title" "$(half "without.$name")" "$(half "with.$name")"
    done
  } <<'END'
start three replicas at once
failover master killed, one promoted
kill psyncd killed
cut one away for 3 backlogs
late three late replicas
sum in sum
END
}
# half KEY: what was measured; the sum has no time
half() {
  if [ -z "${measured[$1]-}" ]; then echo '        (there is none)'; return; fi
  awk '{ printf "%5d %6d %8.1f", $1, $2, $3 / 1e6; if ($4) printf " %9.1f", $4 / 1e6 }' <<<"${measured[$1]}"
}

say "Without psyncd"
live without
nobody_lost_anything
end "${pids[@]}"
rm -rf "${home:?}/without"

say "With psyncd"
live with
if [ "$keep" = no ]; then nobody_lost_anything; fi
note "psyncd answered the replicas with $(metric 'psyncd_resyncs_total{kind="partial"') partial and $(metric 'psyncd_resyncs_total{kind="full"') full resyncs since it was killed"
table

if [ "$keep" = yes ]; then
  say "Left running"
  note "the status page:        http://127.0.0.1:$admin_port/"
  note "point a replica at it:  redis-cli -p PORT REPLICAOF 127.0.0.1 $port"
  note "logs:                   $home"
  note "stop it all with:       kill ${pids[*]}; rm -rf $home"
  disown -a
  trap - EXIT
fi
