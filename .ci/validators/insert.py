#!/usr/bin/env python3
"""Runs deploy/live-insert.sh against a real master with two real replicas and a writer.

    insert.py --psyncd BINARY --server REDIS_SERVER --cli REDIS_CLI

The writer writes more a second than the master keeps. Passes when the dry run changes nothing, a psyncd that does not start leaves everything as it was, the insertion and the
way back cost no full resync, and every write that was acknowledged is on the replicas at the end.
"""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading

from live import ROOT, Failed, World, ask, get, until

SCRIPT = os.path.join(ROOT, "deploy/live-insert.sh")


def free_ports(count):
    """Ports that are free now; all are held until the last is found."""
    held = [socket.socket() for _ in range(count)]
    for probe in held:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in held]
    for probe in held:
        probe.close()
    return ports


def at(port, *words):
    with socket.create_connection(("127.0.0.1", port), 5) as link:
        return ask(link, *words)


def info(port, name):
    found = re.search(rf"^{name}:(.*?)\r?$", at(port, "INFO", "everything"), re.MULTILINE)
    return found and found[1]


def answers(port):
    try:
        return at(port, "PING") == "PONG"
    except (OSError, Failed):
        return False


BULK = "v" * 8192


class Writer(threading.Thread):
    """Counts up, and moves on to a new connection when one ends."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.stop, self.acknowledged = port, threading.Event(), 0

    def run(self):
        while not self.stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self.port), 2) as link:
                    while not self.stop.wait(0.002):
                        self.acknowledged = int(ask(link, "INCR", "count"))
                        # More a second than the master's backlog holds.
                        ask(link, "SET", "bulk", BULK)
            except (OSError, Failed, ValueError):
                self.stop.wait(0.01)


def check(world, options):
    port, node_port, admin, one, two = free_ports(5)
    for name, own, *more in (("master", port), ("one", one, "--replicaof", "127.0.0.1", str(port)),
                             ("two", two, "--replicaof", "127.0.0.1", str(port))):
        os.mkdir(os.path.join(world.home, name))
        world.start(name, [options.server, "--port", str(own), "--bind", "127.0.0.1", "--save", "", "--dir",
                           os.path.join(world.home, name), "--repl-diskless-sync-delay", "0", *more])
        until(f"{name} to answer", lambda: answers(own))
    online = lambda number: re.search(r"state=online", info(number, "slave0") or "") and re.search(
        r"state=online", info(number, "slave1") or "")
    until("the replicas to be online", lambda: online(port))
    before = info(port, "sync_full")
    writer = Writer(port)
    writer.start()

    path = os.path.join(world.home, "bin")
    os.mkdir(path)
    os.symlink(options.cli, os.path.join(path, "redis-cli"))
    pid = os.path.join(world.home, "psyncd.pid")
    start = os.path.join(world.home, "start")
    with open(start, "w") as script:
        script.write(f"""#!/bin/sh
{options.psyncd} run --upstream 127.0.0.1:{node_port} --port {port} --admin-bind 127.0.0.1:{admin} \\
  --dir {world.home}/psyncd --log-format logfmt >{world.home}/psyncd.log 2>&1 &
echo $! >{pid}
""")
    os.chmod(start, 0o755)

    def run(*more, fails=False):
        command = [SCRIPT, "--port", str(port), "--node-port", str(node_port), "--admin", f"127.0.0.1:{admin}", *more]
        done = subprocess.run(command, env=dict(os.environ, PATH=path + ":" + os.environ["PATH"]), text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        if (done.returncode != 0) != fails:
            raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def psyncd_is_gone():
        try:
            return get(f"http://127.0.0.1:{admin}/healthz") is None
        except OSError:
            return True

    run("--dry-run", "--", start)
    if info(port, "tcp_port") != str(port) or os.path.exists(pid):
        raise Failed("the dry run changed something")

    for command in ("true", "false"):
        run("--yes", "--wait", "2", "--", command, fails=True)
        if info(port, "tcp_port") != str(port) or answers(node_port):
            raise Failed(f"a psyncd that did not start ({command}) was not undone")

    # These servers have no file to write it into. A Sentinel has to come back through psyncd, so it is sent away.
    sentinel = socket.create_connection(("127.0.0.1", port), 5)
    ask(sentinel, "CLIENT", "SETNAME", "sentinel-0123abcd-cmd")
    said = run("--yes", "--", start)
    try:
        if sentinel.recv(1) != b"":
            raise Failed("a Sentinel was left at the node itself")
        sentinel.close()
        if "could not write that down" not in said:
            raise Failed(f"nothing is said of a node that has no file:\n{said}")
        if info(node_port, "tcp_port") != str(node_port) or "full resyncs of the node since the beginning: 0" not in said:
            raise Failed(f"not as it should be:\n{said}")
        again = run("--yes", "--", start, fails=True)
        if "--rollback" not in again:
            raise Failed(f"a second run is not told from the first:\n{again}")
    finally:
        stop = f"kill $(cat {pid})"
        run("--yes", "--keep-config", "--rollback", "--", "sh", "-c", stop)
    until("psyncd to be gone", psyncd_is_gone)
    until("the replicas to be back", lambda: online(port))

    writer.stop.set()
    writer.join(10)
    for replica in (one, two):
        until("a replica to have every write", lambda: int(at(replica, "GET", "count")) >= writer.acknowledged)
    # psyncd's own attach costs no fork either.
    if info(port, "sync_full") != before:
        raise Failed(f"sync_full went from {before} to {info(port, 'sync_full')}:\n{world.said('master')}")
    for name in ("one", "two"):
        if world.said(name).count("Full resync from master") != 1:
            raise Failed(f"replica {name} was resynced in full:\n{world.said(name)}")
    print(f"inserted and removed under {writer.acknowledged} writes, none lost, without a full resync")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("psyncd", "server", "cli"):
        options.add_argument("--" + name, required=True)
    options = options.parse_args()
    for name in ("psyncd", "server", "cli"):
        setattr(options, name, os.path.abspath(getattr(options, name)))
    world = World()
    try:
        check(world, options)
    except Failed as why:
        print(why, file=sys.stderr)
        return 1
    finally:
        # The script started psyncd, so it is not among the world's processes.
        with contextlib.suppress(OSError, ValueError), open(os.path.join(world.home, "psyncd.pid")) as pid:
            os.kill(int(pid.read()), signal.SIGTERM)
        world.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
