#!/usr/bin/env bash
# Shows psyncd at work on real servers, in about a minute:
#
#   deploy/demo.sh          build, run, and stop by itself (or on Ctrl-C)
#   deploy/demo.sh --keep   leave everything running and say how to stop it
#
# A master with data, psyncd before it, three replicas behind it; links are cut, a late replica joins, and at the end
# stands how many RDBs left the master. Everything is on loopback and on free ports, in a directory of its own
# that is removed, and every process is ended by its pid. A redis-server that is not on the PATH is fetched into
# target/servers without touching the system.
set -euo pipefail

keep=no
case ${1-} in
  '') ;;
  --keep) keep=yes ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
cd "$(dirname "$(readlink -f "$0")")/.."

pids=() stopped=no home='' last_port=''
# The shell's own notices of ended jobs would clutter what is shown.
set +m

clean_up() {
  [ "$stopped" = no ] || return 0
  stopped=yes
  local pid
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  [ -z "$home" ] || rm -rf "$home"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
note() { printf '  %s\n' "$*"; }
give_up() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# ---- what it takes ----

say "Building psyncd"
cargo build --release --quiet
psyncd=$(cargo metadata --format-version 1 --no-deps --quiet | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/release/psyncd
[ -x "$psyncd" ] || give_up "the build left no $psyncd"

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
  exec 4<>"/dev/tcp/127.0.0.1/$admin_port"
  printf 'GET /metrics HTTP/1.0\r\nHost: demo\r\nConnection: close\r\n\r\n' >&4
  while IFS= read -r -t 10 line <&4 || [ -n "$line" ]; do printf '%s\n' "${line%$'\r'}"; done |
    awk -v series="$1" 'index($0, series) == 1 { sum += $NF } END { printf "%d\n", sum }'
  exec 4>&-
}

# until_true WHAT COMMAND...: asks four times a second, for half a minute
until_true() {
  local what=$1 tries
  shift
  for ((tries = 0; tries < 120; tries++)); do
    if "$@"; then return 0; fi
    sleep 0.25
  done
  give_up "waited in vain for: $what (see the logs in $home)"
}

# ---- the actors ----

# start_server NAME: a server on a free port (in last_port)
start_server() {
  local name=$1 try options=(--bind 127.0.0.1 --save '' --appendonly no --loglevel notice --repl-diskless-sync-delay 0)
  mkdir "$home/$name"
  for ((try = 0; try < 20; try++)); do
    # Below the ports that the kernel gives to outgoing connections; a taken one is noticed by the server itself.
    last_port=$((20000 + RANDOM % 12000))
    "$server" --port "$last_port" --dir "$home/$name" "${options[@]}" >"$home/$name.log" 2>&1 &
    local pid=$!
    local wait
    for ((wait = 0; wait < 40; wait++)); do
      kill -0 "$pid" 2>/dev/null || break
      if grep -q 'eady to accept connections' "$home/$name.log"; then
        pids+=("$pid")
        return 0
      fi
      sleep 0.1
    done
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  give_up "$name did not start: $(tail -n 1 "$home/$name.log")"
}

link_is_up() { [ "$(field "$1" master_link_status)" = up ]; }
psyncd_listens() { grep -q 'psyncd started' "$home/psyncd.log"; }
psyncd_streams() { [ "$(metric psyncd_upstream_link_up)" = 1 ]; }
reached() { [ "$(metric "$1")" -ge "$2" ]; }
master_offset() { field "$master_port" master_repl_offset; }
has_all() { [ "$(field "$1" slave_repl_offset)" = "$(master_offset)" ]; }

# one line: the lag of every replica, in bytes and in seconds of data
show_lag() {
  exec 4<>"/dev/tcp/127.0.0.1/$admin_port"
  printf 'GET /metrics HTTP/1.0\r\nHost: demo\r\nConnection: close\r\n\r\n' >&4
  while IFS= read -r -t 10 line <&4 || [ -n "$line" ]; do printf '%s\n' "${line%$'\r'}"; done |
    awk '/^psyncd_replica_lag_(bytes|seconds)\{/ {
        match($0, /replica="[^"]*"/); replica = substr($0, RSTART + 9, RLENGTH - 10); sub(/.*:/, "", replica)
        if ($0 ~ /^psyncd_replica_lag_bytes/) bytes[replica] = $NF; else seconds[replica] = $NF
      }
      END { for (replica in bytes) printf ":%s %6d bytes %.2f s\n", replica, bytes[replica], seconds[replica] }' |
    sort | awk '{ line = line (NR > 1 ? "  |  " : "") $0 } END { print "  lag of " line }'
  exec 4>&-
}

say "A master with 100000 keys"
start_server master
master_port=$last_port
ask "$master_port" EVAL "for i = 1, 100000 do redis.call('SET', 'key:' .. i, string.rep('v', 100)) end return redis.call('DBSIZE')" 0 >/dev/null
note "redis on 127.0.0.1:$master_port, $(ask "$master_port" DBSIZE) keys"

say "psyncd in front of it"
"$psyncd" run --upstream "127.0.0.1:$master_port" --port 0 --admin-bind 127.0.0.1:0 --log-format logfmt >"$home/psyncd.log" 2>&1 &
psyncd_pid=$!
pids+=("$psyncd_pid")
until_true "psyncd to start" psyncd_listens
started=$(grep 'psyncd started' "$home/psyncd.log" | tr -d '"')
port_in() { sed -n "s/.* $1=[^ ]*:\([0-9]*\).*/\1/p" <<<"$started"; }
port=$(port_in listen) admin_port=$(port_in admin)
until_true "psyncd to reach the master" psyncd_streams
note "replicas and clients: 127.0.0.1:$port"
note "metrics:              http://127.0.0.1:$admin_port/metrics"

say "A writer, through psyncd like any client"
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
note "INCR, some two thousand a second"

say "Three replicas, all at once"
replica_ports=()
for name in one two three; do
  start_server "$name"
  replica_ports+=("$last_port")
done
for replica in "${replica_ports[@]}"; do ask "$replica" SLAVEOF 127.0.0.1 "$port" >/dev/null; done
for replica in "${replica_ports[@]}"; do until_true "the replica on $replica to be in sync" link_is_up "$replica"; done
note "in sync: 127.0.0.1:${replica_ports[0]}, ${replica_ports[1]}, ${replica_ports[2]}"
note "RDBs that left the master so far: $(field "$master_port" sync_full)"

partial='psyncd_resyncs_total{kind="partial"'
# cut_links: psyncd's own link at the master, and every replica's at psyncd
cut_links() {
  local before replica
  before=$(metric "$partial")
  note "CLIENT KILL TYPE replica on the master: $(ask "$master_port" CLIENT KILL TYPE slave) link cut"
  for replica in "${replica_ports[@]}"; do ask "$replica" CLIENT KILL TYPE master >/dev/null; done
  until_true "psyncd to be back at the master" psyncd_streams
  until_true "the replicas to be back" reached "$partial" $((before + ${#replica_ports[@]}))
  note "CLIENT KILL TYPE master on ${#replica_ports[@]} replicas: as many partial resyncs by psyncd"
}

say "Cutting every link, three times"
for _ in 1 2 3; do cut_links; done

say "A late replica"
start_server late
replica_ports+=("$last_port")
ask "$last_port" SLAVEOF 127.0.0.1 "$port" >/dev/null
until_true "the late replica to be in sync" link_is_up "$last_port"
until_true "the lag of four replicas to be known" reached 'psyncd_replicas{state="online"}' 4
note "in sync: 127.0.0.1:$last_port, from the snapshot psyncd already had"

say "The lag, live, for half a minute (replicas acknowledge once a second)"
for ((tick = 1; tick <= 15; tick++)); do
  sleep 2
  show_lag
  if ((tick % 5 == 0)); then cut_links; fi
done

summary() {
  say "In sum"
  note "replicas in sync:                        ${#replica_ports[@]}"
  note "RDBs that left the master (sync_full):   $(field "$master_port" sync_full)"
  note "forks of the master (total_forks):       $(field "$master_port" total_forks)"
  note "full syncs psyncd served from that one:  $(metric 'psyncd_resyncs_total{kind="full"')"
  note "partial resyncs psyncd served:           $(metric "$partial")"
  note "partial resyncs the master served psyncd: $(field "$master_port" sync_partial_ok)"
}

if [ "$keep" = yes ]; then
  summary
  say "Left running"
  note "point a replica at it:  redis-cli -p PORT REPLICAOF 127.0.0.1 $port"
  note "logs:                   $home"
  note "stop it all with:       kill ${pids[*]}; rm -rf $home"
  disown -a
  trap - EXIT
  exit 0
fi

kill "$writer"
wait "$writer" 2>/dev/null || true
for at in "${!pids[@]}"; do
  if [ "${pids[at]}" = "$writer" ]; then unset "pids[at]"; fi
done
for replica in "${replica_ports[@]}"; do until_true "the replica on $replica to have all" has_all "$replica"; done
summary
written=$(ask "$master_port" GET writings)
for replica in "${replica_ports[@]}"; do
  [ "$(ask "$replica" GET writings)" = "$written" ] || give_up "the replica on $replica is not equal to the master"
done
note "all replicas hold all $written writes"
