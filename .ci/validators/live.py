#!/usr/bin/env python3
"""Lets a real Prometheus watch a real psyncd with two real replicas, and asks it everything the dashboard asks.

    live.py --psyncd BINARY --server REDIS_SERVER --prometheus PROMETHEUS --promtool PROMTOOL

psyncd has all that brings metrics: a journal, a certificate, a replica face. Passes when promtool finds nothing to say
about the metrics page, every expression of every panel gives numbers, every
variable has values, every annotation and every rule can be evaluated, and nothing alerts while all is well.
Everything listens on loopback or on unix sockets in a directory of its own, and is ended by its pid.
"""

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# What Grafana would put in their place, for a Prometheus that scrapes once a second.
VARIABLES = {"$__rate_interval": "10s", "$__range": "25s", "$job": ".*", "$instance": ".*", "$replica": ".*"}
# Long enough for two of the longest of these.
WATCHED_SECONDS = 26


class Failed(Exception):
    """Says in a line or more what is wrong."""


def until(what, attempt, seconds=30):
    """Asks again and again until there is an answer; errors of the network are none."""
    deadline = time.monotonic() + seconds
    last = None
    while time.monotonic() < deadline:
        try:
            answer = attempt()
            if answer:
                return answer
        except OSError as why:
            last = why
        time.sleep(0.1)
    raise Failed(f"waited {seconds} s in vain for: {what}{f' ({last})' if last else ''}")


class Redis:
    """A server on a unix socket, and a connection to it."""

    def __init__(self, world, name, binary, *options):
        self.path = os.path.join(world.home, name + ".sock")
        home = os.path.join(world.home, name)
        os.mkdir(home)
        world.start(name, [binary, "--port", "0", "--unixsocket", self.path, "--dir", home, "--save", "", *options])
        until(f"{name} to answer", lambda: self.ask("PING") == "PONG")

    def ask(self, *words):
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(10)
            link.connect(self.path)
            return ask(link, *words)


def ask(link, *words):
    """One command and its answer, for the answers that are needed here: status, error, number, text."""
    encoded = [word.encode() for word in words]
    link.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
    with link.makefile("rb") as answers:
        line = answers.readline().decode().rstrip("\r\n")
        if line.startswith("-"):
            raise Failed(f"{words[0]}: {line}")
        if line.startswith("$") and line != "$-1":
            return answers.read(int(line[1:]) + 2)[:-2].decode()
        return line[1:]


class World:
    """The directory and the processes, gone when it ends."""

    def __init__(self):
        self.home = tempfile.mkdtemp(prefix="psyncd-live-")
        self.processes = []

    def start(self, name, command):
        log = open(os.path.join(self.home, name + ".log"), "w")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def said(self, name):
        with open(os.path.join(self.home, name + ".log"), errors="replace") as log:
            return log.read()

    def end(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
        shutil.rmtree(self.home, ignore_errors=True)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


class Prometheus:
    """One that scrapes psyncd every second and has our rules."""

    def __init__(self, world, binary, target):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = os.path.join(world.home, "prometheus.json")
        with open(config, "w") as file:
            # JSON is YAML.
            json.dump({
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [os.path.join(ROOT, "deploy/prometheus/rules.yml")],
                "scrape_configs": [{"job_name": "psyncd", "static_configs": [{"targets": [target]}]}],
            }, file)
        self.url = f"http://127.0.0.1:{port}"
        world.start("prometheus", [binary, f"--config.file={config}", f"--storage.tsdb.path={world.home}/tsdb",
                                   f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"])
        until("Prometheus to be ready", lambda: get(self.url + "/-/ready"))

    def api(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            return json.loads(get(url))["data"]
        except urllib.error.HTTPError as error:
            raise Failed(json.loads(error.read())["error"]) from None

    def numbers(self, expression):
        """The values of an instant query, those that are no number left out."""
        samples = self.api("query", query=expression)["result"]
        return [sample for sample in samples if not math.isnan(float(sample["value"][1]))]


def filled(text):
    """The expression as Grafana would send it."""
    for name in sorted(VARIABLES, key=len, reverse=True):
        text = text.replace(name, VARIABLES[name])
    if "$" in text:
        raise Failed(f"unknown variable in {text}")
    return text


def writer(port, stop):
    """A client whose connections come and go."""
    while not stop.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as link:
            for number in range(100):
                ask(link, "SET", f"key:{number}", "v" * 200)
                if stop.wait(0.005):
                    return


def check_page(url, promtool):
    page = get(url)
    done = subprocess.run([promtool, "check", "metrics"], input=page, text=True, capture_output=True, timeout=30)
    if done.returncode != 0 or done.stdout.strip() or done.stderr.strip():
        raise Failed(f"promtool check metrics:\n{done.stdout}{done.stderr}")
    return {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE ")}


def check_dashboard(prometheus):
    """Every expression and variable; gives back how many, and what is wrong."""
    with open(os.path.join(ROOT, "dashboards/psyncd.json")) as file:
        page = json.load(file)
    wrong, count = [], 0
    for panel in page["panels"]:
        for target in panel.get("targets", []):
            count += 1
            try:
                if not prometheus.numbers(filled(target["expr"])):
                    wrong.append(f"panel {panel['title']!r}: nothing for {target['expr']}")
            except Failed as why:
                wrong.append(f"panel {panel['title']!r}: {why} in {target['expr']}")
    for annotation in page["annotations"]["list"]:
        if "expr" in annotation:
            count += 1
            try:
                # Most of the time there is nothing to note.
                prometheus.numbers(filled(annotation["expr"]))
            except Failed as why:
                wrong.append(f"annotation {annotation['name']!r}: {why}")
    for variable in page["templating"]["list"]:
        if variable["type"] == "query":
            count += 1
            wanted = re.fullmatch(r"label_values\((.+), (\w+)\)", filled(variable["query"]["query"]))
            if not wanted:
                wrong.append(f"variable {variable['name']}: not of the form label_values(metric, label)")
            elif not prometheus.api(f"label/{wanted[2]}/values", **{"match[]": wanted[1]}):
                wrong.append(f"variable {variable['name']} has no values")
    return count, wrong


def check_rules(prometheus):
    wrong, count = [], 0
    for group in prometheus.api("rules")["groups"]:
        for rule in group["rules"]:
            count += 1
            if rule["health"] != "ok":
                wrong.append(f"rule {rule['name']}: {rule['health']} {rule.get('lastError', '')}")
            if rule["type"] == "alerting" and rule["state"] != "inactive":
                wrong.append(f"alert {rule['name']} is {rule['state']} while all is well: {rule['alerts']}")
            if rule["type"] == "recording" and not prometheus.numbers(rule["name"]):
                wrong.append(f"recording rule {rule['name']} records nothing")
    return count, wrong


def certificate(world):
    """Makes one; gives back its file and that of its key."""
    files = [os.path.join(world.home, name) for name in ("tls.crt", "tls.key")]
    made = subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                           "-days", "365", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
                           "-out", files[0], "-keyout", files[1]], text=True, capture_output=True, timeout=30)
    if made.returncode != 0:
        raise Failed(f"openssl: {made.stderr}")
    return files


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def watch(world, options):
    home, (cert, key) = os.path.join(world.home, "psyncd"), certificate(world)
    master = Redis(world, "master", options.server, "--repl-diskless-sync-delay", "0")
    world.start("psyncd", [options.psyncd, "run", "--upstream", f"unix:{master.path}", "--port", "0", "--admin-bind",
                           "127.0.0.1:0", "--dir", home, "--log-format", "logfmt", "--tls-port", free_port(),
                           "--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no",
                           "--replica-port", free_port(), "--snapshot-min-interval", "0s"])
    started = until("psyncd to start", lambda: re.search(r"psyncd started.*", world.said("psyncd")))[0].replace('"', "")
    port, admin = (int(re.search(rf"{field}=\S*:(\d+)", started)[1]) for field in ("listen", "admin"))
    url = f"http://127.0.0.1:{admin}/metrics"
    until("psyncd to stream", lambda: "psyncd_upstream_link_up 1" in get(url))

    stop = threading.Event()
    client = threading.Thread(target=writer, args=(port, stop), daemon=True)
    client.start()
    # The servers have no ports; what they announce tells them apart.
    replicas = [Redis(world, name, options.server, "--replicaof", "127.0.0.1", str(port), "--replica-announce-port", number)
                for name, number in (("one", "7001"), ("two", "7002"))]
    until("two replicas to be online", lambda: 'psyncd_replicas{state="online"} 2' in get(url))
    prometheus = Prometheus(world, options.prometheus, f"127.0.0.1:{admin}")
    until("Prometheus to know psyncd", lambda: prometheus.numbers("psyncd_build_info"))
    # Behind a first scrape and within the last VARIABLES["$__range"].
    time.sleep(WATCHED_SECONDS / 2)
    # A snapshot is fetched and one more replica is sent it; one comes back from a lost link: there is one of each to see.
    refreshed = subprocess.run([options.psyncd, "snapshot", "refresh", "--dir", home], text=True, capture_output=True, timeout=30)
    if refreshed.returncode != 0:
        raise Failed(f"psyncd snapshot refresh: {refreshed.stdout}{refreshed.stderr}")
    Redis(world, "three", options.server, "--replicaof", "127.0.0.1", str(port), "--replica-announce-port", "7003")
    replicas[0].ask("CLIENT", "KILL", "TYPE", "master")
    until("it to be back", lambda: re.search(r'resyncs_total\{kind="partial",reason="replid"\} [1-9]', get(url)))
    time.sleep(WATCHED_SECONDS / 2)

    try:
        names = check_page(url, options.promtool)
        print(f"promtool check metrics: {len(names)} metrics, nothing to say")
        expressions, wrong = check_dashboard(prometheus)
        rules, more = check_rules(prometheus)
        wrong += more
    finally:
        stop.set()
        client.join(10)
    if wrong:
        raise Failed("\n".join(wrong))
    print(f"{expressions} expressions and variables of the dashboard have values; {rules} rules evaluate, none alerts")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("psyncd", "server", "prometheus", "promtool"):
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
