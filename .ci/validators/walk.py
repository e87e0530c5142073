#!/usr/bin/env python3
"""Follows README, "Put it in front of a running master", as a stranger would, command by command.

    walk.py --psyncd BINARY --server REDIS_SERVER --cli REDIS_CLI --prometheus PROMETHEUS

The commands are read from README and run as they stand there, but for the ports, for a folder that stands for /, and for
sudo, systemctl and systemd-sysusers, which are stand-ins: systemctl starts what the installed unit says. A master with a
password, two replicas and a writer are there before. Passes when psyncd stands before the master afterwards, Prometheus with
the scrape configuration and the rules of deploy/prometheus sees it and alerts of nothing, no replica and no master has
seen a full resync, and the way back leaves all as it was.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

from insert import BULK, Writer, free_ports
from live import ROOT, Failed, World, ask, until

SECTION = "## Put it in front of a running master"
PASSWORD = "a password of the master"
# What a stranger would not type here: psyncd is built already, and the second way is not taken.
SKIPPED = ("cargo build", "redis-cli -h replica-1", "sudo systemctl start psyncd")


def commands():
    """Every line of the section's shell blocks, without its comment."""
    with open(os.path.join(ROOT, "README.md")) as file:
        section = file.read().split(SECTION + "\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+# .*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(SKIPPED)]


class Stage:
    """A machine: a folder for its files, ports for its services, and programs that stand for those of the system."""

    def __init__(self, world, options):
        self.root, self.psyncd = os.path.join(world.home, "root"), options.psyncd
        self.port, self.node_port, self.admin, *self.replicas = free_ports(5)
        self.pid = os.path.join(world.home, "psyncd.pid")
        self.bin = os.path.join(self.root, "usr/bin")
        os.makedirs(self.bin)
        os.makedirs(os.path.join(self.root, "var/lib/psyncd"), mode=0o700)
        os.symlink(options.cli, os.path.join(self.bin, "redis-cli"))
        self.program("sudo", 'exec "$@"')
        self.program("systemd-sysusers", "exit 0")
        # The group is made by systemd-sysusers, which nobody but root can ask.
        self.program("install", 'for word; do shift; case $word in -g) skip=1 ;; *) [ "$skip" ] || set -- "$@" "$word"; skip= ;; esac; done\n'
                                f'exec {shutil.which("install")} "$@"')
        self.program("systemctl", f"""case "$1 $2" in
  'daemon-reload ') exit 0 ;;
  'start psyncd')
    start=$(sed -n 's/^ExecStart=//p' {self.root}/etc/systemd/system/psyncd.service | sed 's# /# {self.root}/#g; s#^/#{self.root}/#')
    $start >{world.home}/psyncd.log 2>&1 &
    echo $! >{self.pid} ;;
  'stop psyncd') kill "$(cat {self.pid})" ;;
  *) echo "systemctl: $*" >&2; exit 1 ;;
esac""")

    def program(self, name, text):
        path = os.path.join(self.bin, name)
        with open(path, "w") as file:
            file.write(f"#!/bin/sh\n{text}\n")
        os.chmod(path, 0o755)

    def here(self, text):
        """As it is on this machine: files in the folder, services at the ports."""
        text = re.sub(r'(^|[\s="])/(?=(usr|etc|var)/)', rf"\1{self.root}/", text)
        for number, own in (("6379", self.port), ("6380", self.node_port), ("9379", self.admin)):
            text = re.sub(rf"(?<!\d){number}(?!\d)", str(own), text)
        # Nothing here is for other hosts.
        return text.replace("0.0.0.0", "127.0.0.1").replace("target/release/psyncd", self.psyncd)

    def run(self, line, stdin="y\n"):
        env = dict(os.environ, PATH=f"{self.bin}:{os.environ['PATH']}", REDISCLI_AUTH=PASSWORD,
                   PSYNCD_CONFIG=os.path.join(self.root, "etc/psyncd/psyncd.toml"))
        command = self.here(line)
        # The script's own defaults are the ports of README.
        command = command.replace("live-insert.sh", f"live-insert.sh --port {self.port} --node-port {self.node_port} "
                                                    f"--admin 127.0.0.1:{self.admin}")
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, text=True, input=stdin, timeout=120,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise Failed(f"README says\n    {line}\nwhich ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def edit(self):
        """Step 2: what is installed is edited for a master with a password."""
        with open(os.path.join(self.root, "etc/psyncd/password"), "w") as file:
            file.write(PASSWORD + "\n")
        path = os.path.join(self.root, "etc/psyncd/psyncd.toml")
        with open(path) as file:
            text = file.read()
        wanted = '# masterauth-file = "/etc/psyncd/password"'
        if wanted not in text:
            raise Failed(f"deploy/single/psyncd.toml has no line {wanted}")
        os.chmod(path, 0o640)
        with open(path, "w") as file:
            file.write(self.here(text.replace(wanted, wanted[2:])))


class Client(Writer):
    """A writer that names the password."""

    def run(self):
        while not self.stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self.port), 2) as link:
                    ask(link, "AUTH", PASSWORD)
                    while not self.stop.wait(0.002):
                        self.acknowledged = int(ask(link, "INCR", "count"))
                        ask(link, "SET", "bulk", BULK)
            except (OSError, Failed, ValueError):
                self.stop.wait(0.01)


def at(port, *words):
    with socket.create_connection(("127.0.0.1", port), 5) as link:
        ask(link, "AUTH", PASSWORD)
        return ask(link, *words)


def info(port, name):
    found = re.search(rf"^{name}:(.*?)\r?$", at(port, "INFO", "everything"), re.MULTILINE)
    return found and found[1]


def both_online(port):
    return all("state=online" in (info(port, f"slave{number}") or "") for number in (0, 1))


def servers(world, stage, server):
    for name, port, *more in (("master", stage.port), *(
            (f"replica-{number}", port, "--replicaof", "127.0.0.1", str(stage.port)) for number, port in enumerate(stage.replicas, 1))):
        home = os.path.join(world.home, name)
        os.mkdir(home)
        conf = os.path.join(home, "redis.conf")
        open(conf, "w").close()
        world.start(name, [server, conf, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", home, "--requirepass",
                           PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0", *more])
        until(f"{name} to answer", lambda: is_up(port))
    at(stage.port, "EVAL", "for i = 1, 20000 do redis.call('SET', 'key:' .. i, string.rep('v', 100)) end", "0")
    until("the replicas to be online", lambda: both_online(stage.port))


def is_up(port):
    try:
        return at(port, "PING") == "PONG"
    except (OSError, Failed):
        return False


def watched(world, stage, prometheus):
    """Step 6: the files of deploy/prometheus beside each other, with this machine's port and less patience."""
    home = os.path.join(world.home, "prometheus-etc")
    os.mkdir(home)
    shutil.copy(os.path.join(ROOT, "deploy/prometheus/rules.yml"), home)
    with open(os.path.join(ROOT, "deploy/prometheus/scrape.yml")) as file:
        text = stage.here(file.read())
    config = os.path.join(home, "prometheus.yml")
    with open(config, "w") as file:
        file.write(re.sub(r"_interval: 15s", "_interval: 1s", text))
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    world.start("prometheus", [prometheus, f"--config.file={config}", f"--storage.tsdb.path={world.home}/tsdb",
                               f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"])

    def api(path):
        with urllib.request.urlopen(f"{url}/api/v1/{path}", timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def targets():
        active = api("targets")["activeTargets"]
        return active if active and all(target["health"] == "up" for target in active) else None

    def rules():
        found = [rule for group in api("rules")["groups"] for rule in group["rules"]]
        return found if found and all(rule["health"] == "ok" for rule in found) else None

    count = len(until("every target of Prometheus to be up", targets))
    found = until("every rule to be evaluated", rules)
    loud = [rule["name"] for rule in found if rule["type"] == "alerting" and rule["state"] != "inactive"]
    if loud:
        raise Failed(f"while all is well these alert: {loud}")
    return count, sum(rule["type"] == "alerting" for rule in found)


def walk(world, options):
    stage = Stage(world, options)
    servers(world, stage, options.server)
    full = info(stage.port, "sync_full")
    writer = Client(stage.port)
    writer.start()
    way_back, said, edited = [], "", False
    for line in commands():
        if "--rollback" in line:
            way_back.append(line)
            continue
        # Step 2 stands between installing and asking.
        if not edited and "psyncd check-config" in line:
            stage.edit()
            edited = True
        said += stage.run(line)
    if not edited or not way_back:
        raise Failed(f"README's section {SECTION!r} has no psyncd check-config or no --rollback any more")
    if f"sync_full:{full}" not in said:
        raise Failed(f"sync_full is no longer {full}:\n{said}")
    if info(stage.node_port, "tcp_port") != str(stage.node_port) or not both_online(stage.port):
        raise Failed(f"psyncd is not in front of the master:\n{said}")
    stage.run("psyncd check --dir /var/lib/psyncd --max-lag 10 --min-replicas 2")
    targets, alerts = watched(world, stage, options.prometheus)
    for line in way_back:
        stage.run(line)
    until("the replicas to be back", lambda: both_online(stage.port))
    writer.stop.set()
    writer.join(10)
    for replica in stage.replicas:
        until("a replica to have every write", lambda: int(at(replica, "GET", "count")) >= writer.acknowledged)
    if info(stage.port, "sync_full") != full:
        raise Failed(f"sync_full went from {full} to {info(stage.port, 'sync_full')} on the way back")
    for name in ("replica-1", "replica-2"):
        if world.said(name).count("Full resync from master") != 1:
            raise Failed(f"{name} was resynced in full:\n{world.said(name)}")
    print(f"{len(commands())} commands of README, there and back under {writer.acknowledged} writes: no full resync, "
          f"{targets} target up, {alerts} alerts silent")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("psyncd", "server", "cli", "prometheus"):
        options.add_argument("--" + name, required=True)
    options = options.parse_args()
    for name in ("psyncd", "server", "cli", "prometheus"):
        setattr(options, name, os.path.abspath(getattr(options, name)))
    world = World()
    try:
        walk(world, options)
    except Failed as why:
        print(why, file=sys.stderr)
        return 1
    finally:
        # systemctl started psyncd, so it is not among the world's processes.
        try:
            with open(os.path.join(world.home, "psyncd.pid")) as pid:
                os.kill(int(pid.read()), signal.SIGTERM)
        except (OSError, ValueError):
            pass
        world.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
