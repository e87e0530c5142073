#!/usr/bin/env python3
"""Points redis_exporter at a master and at a psyncd in front of it: who looks through psyncd sees the same.

    exporter.py --psyncd BINARY --server REDIS_SERVER --exporter REDIS_EXPORTER

Fails for a series that is there on one side only, and for a value that differs though it stood still on the master
before and after, but for those of the replicas: through psyncd they are those behind it as well as the master's own,
with the addresses they announce, and psyncd's own link is none. What differs is printed.
"""

import argparse
import re
import socket
import sys
import time

from live import Failed, World, ask, get, until

# Announced by the replicas behind psyncd, and by the one that follows the master directly.
BEHIND = [("10.77.0.1", "7001"), ("replica-2.example", "7002")]
DIRECT = ("10.77.0.3", "7003")
# Of the exporter itself, or of what it costs to look.
ITS_OWN = re.compile(r"(go_|process_|promhttp_|redis_exporter_|redis_.*_scrape)")
# Which replicas there are is what psyncd changes.
OF_REPLICAS = re.compile(r"redis_connected_slave(s$|_)")
SERIES = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? (\S+)$")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """A server on a port of loopback."""

    def __init__(self, world, name, binary, *options):
        self.port = free_port()
        world.start(name, [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", world.home, "--dbfilename",
                           f"{name}.rdb", "--save", "", *options])
        until(f"{name} to answer", lambda: self.ask("PING") == "PONG")

    def ask(self, *words):
        with socket.create_connection(("127.0.0.1", self.port), 10) as link:
            return ask(link, *words)

    def offset(self):
        return int(re.search(r"master_repl_offset:(\d+)", self.ask("INFO", "replication"))[1])


class Exporter:
    """One that looks at that port."""

    def __init__(self, world, name, binary, port):
        listen = free_port()
        self.url = f"http://127.0.0.1:{listen}/metrics"
        world.start(name, [binary, "-redis.addr", f"redis://127.0.0.1:{port}", "-web.listen-address", f"127.0.0.1:{listen}"])
        until(f"{name} to look", lambda: "\nredis_up 1" in get(self.url))

    def look(self):
        """Every series of the server with its value."""
        series = {}
        for line in get(self.url).splitlines():
            found = SERIES.match(line)
            if found and not ITS_OWN.match(found[1]):
                series[found[1], found[2] or ""] = found[3]
        return series


def compared(before, passed, after):
    """What differs and must not, and what may."""
    wrong, expected = [], []
    for key in sorted(before.keys() | passed.keys() | after.keys()):
        name = key[0] + key[1]
        here, there = before.get(key), passed.get(key)
        if OF_REPLICAS.match(key[0]):
            if here != there:
                expected.append(f"{name}: {here} at the master, {there} through psyncd")
        elif here is None and after.get(key) is None:
            wrong.append(f"{name} is there only through psyncd")
        elif there is None and here is not None and after.get(key) is not None:
            wrong.append(f"{name} is not there through psyncd")
        elif here == after.get(key) and here is not None and here != there:
            wrong.append(f"{name}: {here} at the master, {there} through psyncd")
    return wrong, expected


def check_replicas(passed, offset):
    wrong = []
    if passed.get(("redis_connected_slaves", "")) != "3":
        wrong.append(f"redis_connected_slaves is {passed.get(('redis_connected_slaves', ''))}, and there are 3")
    for metric in ("redis_connected_slave_offset_bytes", "redis_connected_slave_lag_seconds"):
        rows = {key[1]: float(value) for key, value in passed.items() if key[0] == metric}
        if len(rows) != 3:
            wrong.append(f"{metric} has {len(rows)} replicas: {rows}")
        for ip, port in [*BEHIND, DIRECT]:
            here = [value for labels, value in rows.items()
                    if f'slave_ip="{ip}"' in labels and f'slave_port="{port}"' in labels and 'slave_state="online"' in labels]
            if len(here) != 1:
                wrong.append(f"{metric} has no online replica {ip}:{port}: {rows}")
            elif metric.endswith("offset_bytes") and here[0] != offset:
                wrong.append(f"{ip}:{port} is at {offset}, and {metric} is {here[0]}")
            elif metric.endswith("lag_seconds") and here[0] > 2:
                wrong.append(f"{ip}:{port} speaks every second, and {metric} is {here[0]}")
    return wrong


def watch(world, options):
    # Nothing may move by itself while values are compared: no PING in the stream.
    master = Node(world, "master", options.server, "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "3600")
    port = free_port()
    world.start("psyncd", [options.psyncd, "run", "--upstream", f"127.0.0.1:{master.port}", "--port", str(port),
                           "--admin-bind", "127.0.0.1:0", "--log-format", "logfmt"])
    until("psyncd to start", lambda: "psyncd started" in world.said("psyncd"))
    for number in range(100):
        master.ask("SET", f"key:{number}", "value")
    announced = [(*BEHIND[0], port), (*BEHIND[1], port), (*DIRECT, master.port)]
    replicas = [Node(world, f"replica{own}", options.server, "--replicaof", "127.0.0.1", str(to), "--replica-announce-ip", ip,
                     "--replica-announce-port", own) for ip, own, to in announced]
    until("the replicas to be online", lambda: all(r.offset() == master.offset() > 0 for r in replicas))
    direct, passed = Exporter(world, "direct", options.exporter, master.port), Exporter(world, "passed", options.exporter, port)
    # The first look is a command the server had not counted before.
    for exporter in (direct, passed, direct):
        exporter.look()

    def attempt():
        before, through, after = direct.look(), passed.look(), direct.look()
        wrong, expected = compared(before, through, after)
        wrong += check_replicas(through, float(master.offset()))
        return before, through, wrong, expected

    # The acknowledgements of the last write are on their way for a second; what is still wrong then is wrong.
    for _ in range(10):
        before, through, wrong, expected = attempt()
        if not wrong:
            break
        time.sleep(0.5)
    print("\n".join(f"differs, as it should: {line}" for line in expected))
    if wrong:
        raise Failed("\n".join(wrong))
    print(f"{len(through)} series through psyncd, {len(before)} at the master: the same but for {len(expected)} of the replicas")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("psyncd", "server", "exporter"):
        options.add_argument("--" + name, required=True)
    options = options.parse_args()
    world = World()
    try:
        watch(world, options)
    except Failed as why:
        print(why, file=sys.stderr)
        print("\n".join(world.said("psyncd").splitlines()[-10:]), file=sys.stderr)
        return 1
    finally:
        world.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
