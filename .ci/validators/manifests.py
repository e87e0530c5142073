#!/usr/bin/env python3
"""Checks the deployment files that are for clusters and containers, and loads every configuration in them.

    manifests.py kubernetes | helm | compose SCHEMA | configurations --psyncd BINARY --server REDIS_SERVER
    manifests.py crds       prints the Prometheus operator's objects as JSON, for crds.mjs

kubernetes      every manifest, strictly, against the oldest and the newest Kubernetes
helm            the chart: strict lint, the values schema both ways, what it renders, and the sidecar in a chart that
                depends on it
compose         compose.yaml against the specification's schema, and that the files it mounts are there
configurations  every psyncd.toml, in files and in ConfigMaps, and every container of psyncd with its arguments and
                environment, by a real psyncd; the redis.conf and sentinel.conf by a real server
"""

import argparse
import contextlib
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CHART = os.path.join(ROOT, "deploy/helm/psyncd")
# Native sidecars are on from 1.29.
KUBERNETES = ["1.29", "1.33", "1.37"]
# Their CRDs are in no schema to be had here.
FOREIGN = {"PodMonitor", "PrometheusRule", "RedisReplication", "RedisFailover"}


class Failed(Exception):
    """Says what is wrong."""


def documents(path):
    with open(path) as file:
        return [document for document in yaml.safe_load_all(file) if document]


def manifests():
    """Every object in deploy/kubernetes with the name of its file; values of foreign charts are none."""
    for path in sorted(glob.glob(os.path.join(ROOT, "deploy/kubernetes/**/*.yaml"), recursive=True)):
        for document in documents(path):
            if "kind" in document:
                yield os.path.relpath(path, ROOT), document


def examples_of_values():
    for path in sorted(glob.glob(os.path.join(ROOT, "deploy/kubernetes/examples/*values.yaml"))):
        (values,) = documents(path)
        yield os.path.relpath(path, ROOT), values


def containers(thing):
    """Every container of psyncd anywhere in the document."""
    if isinstance(thing, dict):
        if re.match(r"(.*/)?psyncd[:@]", str(thing.get("image", ""))):
            yield thing
        for value in thing.values():
            yield from containers(value)
    elif isinstance(thing, list):
        for value in thing:
            yield from containers(value)


def check_object(where, document):
    import kubernetes_validate
    name = f"{where}: {document['kind']}/{document['metadata']['name']}"
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            # Said aloud: the schemas know no kind of that name, which a misspelt one looks like, too.
            if document["kind"] not in FOREIGN:
                raise Failed(f"{name}: Kubernetes {version} has no such kind") from None
        except (kubernetes_validate.ValidationError, kubernetes_validate.InvalidSchemaError) as why:
            raise Failed(f"{name}: {why} (Kubernetes {version})") from None


def kubernetes():
    count = 0
    for where, document in manifests():
        check_object(where, document)
        count += document["kind"] not in FOREIGN
    # The containers in foreign objects and values have a schema all the same.
    for where, thing in [*manifests(), *examples_of_values()]:
        if thing.get("kind") in FOREIGN or "kind" not in thing:
            for container in containers(thing):
                where_to = "initContainers" if "restartPolicy" in container else "containers"
                spec = {"containers": [{"name": "x", "image": "x"}]}
                spec[where_to] = spec.get(where_to, []) + [container]
                check_object(where, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "around"}, "spec": spec})
                count += 1
    groups = documents(os.path.join(ROOT, "deploy/prometheus/rules.yml"))[0]["groups"]
    (rule,) = documents(os.path.join(ROOT, "deploy/kubernetes/prometheusrule.yaml"))
    if rule["spec"]["groups"] != groups:
        raise Failed("deploy/kubernetes/prometheusrule.yaml does not have the rules of deploy/prometheus/rules.yml")
    print(f"{count} objects and containers fit Kubernetes {', '.join(KUBERNETES)}")


def rendered():
    """What the chart makes of each of its ci/*.yaml, and of a chart that borrows the sidecar."""
    import helm_python as helm
    for path in sorted(glob.glob(os.path.join(CHART, "ci/*.yaml"))):
        (values,) = documents(path)
        with helm.Chart.load(CHART) as chart:
            for name, text in chart.render(values, name="cache", namespace="prod").items():
                yield f"{os.path.basename(path)} {name}", text
    with tempfile.TemporaryDirectory() as home:
        borrower = os.path.join(home, "borrower")
        shutil.copytree(CHART, os.path.join(borrower, "charts/psyncd"))
        os.mkdir(os.path.join(borrower, "templates"))
        write = {
            "Chart.yaml": "apiVersion: v2\nname: borrower\nversion: 1.0.0\ndependencies:\n- name: psyncd\n  version: 0.1.0\n",
            "values.yaml": "psyncd:\n  relay:\n    enabled: false\n",
            "templates/pod.yaml": """
apiVersion: v1
kind: Pod
metadata: {name: borrower}
spec:
  initContainers:
    {{- include "psyncd.sidecar" (dict "image" "psyncd:0.1.0" "configMap" "config" "journal" "journal" "auth" "auth") | nindent 4 }}
  containers: [{name: server, image: "redis:7.2"}]
  volumes: [{name: config, configMap: {name: borrower}}, {name: journal, emptyDir: {}}, {name: auth, secret: {secretName: x}}]
""",
            "templates/config.yaml": """
apiVersion: v1
kind: ConfigMap
metadata: {name: borrower}
data:
  {{- include "psyncd.sidecar.config" (dict "auth" true "settings" (dict "backlog-disk-size" "8gb" "history-depth" 32)) | nindent 2 }}
""",
        }
        for name, text in write.items():
            with open(os.path.join(borrower, name), "w") as file:
                file.write(text)
        with helm.Chart.load(borrower) as chart:
            made = chart.render({}, name="cache", namespace="prod")
        relay = [name for name, text in made.items() if "/charts/" in name and not name.endswith(".txt") and text.strip()]
        if relay:
            raise Failed(f"a chart that borrows the sidecar gets {relay}, too")
        for name, text in made.items():
            yield f"borrower {name}", text


def rendered_objects():
    for where, text in rendered():
        if not where.endswith(".txt"):
            yield from ((where, document) for document in yaml.safe_load_all(text) if document)


def helm():
    import helm_python
    for path in sorted(glob.glob(os.path.join(CHART, "ci/*.yaml"))):
        (values,) = documents(path)
        report = helm_python.lint(CHART, values, strict=True)
        # Advice, such as to have an icon, is 1.
        findings = [message for message in report["messages"] if message["severity"] > 1]
        if findings or report["errors"]:
            raise Failed(f"lint with {os.path.basename(path)}: {findings} {report['errors']}")
    with helm_python.Chart.load(CHART) as chart:
        for wrong in ({"upstream": "no-port"}, {"port": 1}, {"config": {"dir": "/elsewhere"}}, {"image": {"digest": "latest"}}):
            with contextlib.suppress(helm_python.HelmError):
                chart.validate_schema(wrong)
                raise Failed(f"the values schema lets {wrong} pass")
        with contextlib.suppress(helm_python.HelmError):
            chart.render({}, name="cache", namespace="prod")
            raise Failed("a relay without an upstream is rendered")
    count = 0
    for where, document in rendered_objects():
        check_object(where, document)
        if document["kind"] == "PrometheusRule" and "https://example.com/psyncd/deploy/RUNBOOK.md#psyncddown" not in json.dumps(document):
            raise Failed(f"{where}: the runbook's address is not put in front")
        count += 1
    for name in ("files/rules.yml",):
        with open(os.path.join(CHART, name)) as copy, open(os.path.join(ROOT, "deploy/prometheus/rules.yml")) as rules:
            if copy.read() != rules.read():
                raise Failed(f"deploy/helm/psyncd/{name} is not deploy/prometheus/rules.yml: copy it")
    print(f"lint is content, the schema refuses what it should, {count} rendered objects fit Kubernetes")


def crds():
    found = [document for _, document in manifests()] + [document for _, document in rendered_objects()]
    json.dump([document for document in found if document["kind"] in ("PodMonitor", "PrometheusRule")], sys.stdout)


def compose(schema):
    import jsonschema
    with open(schema) as file:
        schema = json.load(file)
    home = os.path.join(ROOT, "deploy/compose")
    (page,) = documents(os.path.join(home, "compose.yaml"))
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft7Validator)(schema)
    wrong = [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(page)]
    files = [config["file"] for config in page["configs"].values()]
    for name, service in page["services"].items():
        mounts = [volume.split(":")[0] for volume in service.get("volumes", [])]
        files += [mount for mount in mounts if mount.startswith(".")]
        wrong += [f"{name}: there is no volume {mount}" for mount in mounts
                  if not mount.startswith(".") and mount not in page["volumes"]]
        wrong += [f"{name}: there is no config {config['source']}" for config in service.get("configs", [])
                  if config["source"] not in page["configs"]]
        others = [*service.get("depends_on", []), *re.findall(r"^service:(.+)", service.get("network_mode", ""))]
        wrong += [f"{name}: there is no service {other}" for other in others if other not in page["services"]]
        if "build" in service:
            files += [os.path.join(service["build"]["context"], service["build"]["dockerfile"])]
    wrong += [f"there is no {file}" for file in files if not os.path.exists(os.path.join(home, file))]
    if wrong:
        raise Failed("\n".join(wrong))
    print(f"{len(page['services'])} services fit the Compose specification, {len(files)} files they name are there")


class Loader:
    """Has a real psyncd look at configurations, as the container would with its secrets in place."""

    def __init__(self, psyncd, home):
        self.psyncd, self.home, self.count = psyncd, home, 0
        self.secret = os.path.join(home, "masterauth")
        with open(self.secret, "w") as file:
            file.write("secret\n")
        os.chmod(self.secret, 0o400)

    def run(self, where, arguments, env=None):
        done = subprocess.run([self.psyncd, "check-config", *arguments], env={"PATH": os.environ["PATH"], **(env or {})},
                              capture_output=True, text=True, timeout=30)
        # A warning is a mistake, too, in a file that others copy.
        if done.returncode != 0 or "warn" in (done.stdout + done.stderr).lower():
            raise Failed(f"{where}: psyncd check-config ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        self.count += 1
        self.check_reach(where, arguments, env)

    def check_reach(self, where, arguments, env):
        """Who copies a file that listens for other hosts must not find that protected mode refuses them all."""
        done = subprocess.run([self.psyncd, "check-config", "--print", *arguments], env={"PATH": os.environ["PATH"], **(env or {})},
                              capture_output=True, text=True, timeout=30)
        given = dict(re.findall(r'^([a-z-]+) = "?([^"\n]*?)"?  # ', done.stdout, re.MULTILINE))
        protections = ("masterauth", "masterauth-file", "allow-replicas")
        if given["bind"] != "127.0.0.1" and given["protected-mode"] == "yes" and not any(name in given for name in protections):
            raise Failed(f"{where}: it listens at {given['bind']}, and protected mode refuses every other host")

    def text(self, where, text):
        # A file to copy says how the password is named, in a comment.
        text = re.sub(r'(?:# ?)?(masterauth-file = )".*"', rf'\1"{self.secret}"', text)
        path = os.path.join(self.home, "psyncd.toml")
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o400)
        self.run(where, ["--config", path])
        os.remove(path)

    def document(self, where, thing):
        """ConfigMaps and containers."""
        if isinstance(thing, dict) and thing.get("kind") == "ConfigMap":
            for key, text in thing["data"].items():
                if key.endswith(".toml"):
                    self.text(f"{where} {key}", text)
        for container in containers(thing):
            arguments = list(container.get("args") or container.get("command") or ["run"])
            if arguments[0] != "run":
                raise Failed(f"{where}: a container runs {arguments}")
            env = container.get("env", [])
            env = {entry["name"]: entry.get("value", "secret") for entry in env}
            unknown = [argument for argument in arguments[1:] if argument.startswith("--") and argument != "--config"]
            if "--config" in arguments and not unknown:
                if arguments[arguments.index("--config") + 1] != "/etc/psyncd/psyncd.toml":
                    raise Failed(f"{where}: no configuration is mounted at {arguments}")
                # What it names is checked by itself.
                self.run(f"{where}: environment", [], {"PSYNCD_UPSTREAM": "127.0.0.1:1", **env})
            else:
                self.run(f"{where}: arguments and environment", arguments[1:], env)


def server_accepts(server, path, home, mode):
    """Starts a real server with the file, on a port of its own and with nobody to talk to."""
    with open(path) as file:
        text = re.sub(r"\d+\.\d+\.\d+\.\d+ 6379", "127.0.0.1 1", file.read())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = tempfile.mkdtemp(dir=home)
    config = os.path.join(place, "server.conf")
    with open(config, "w") as file:
        text = re.sub(r"^dir .*", f"dir {place}", text, flags=re.MULTILINE)
        file.write(re.sub(r"^port \d+", f"port {port}", text, flags=re.MULTILINE))
    process = subprocess.Popen([server, config, *mode, "--bind", "127.0.0.1"], cwd=place, text=True, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = ""
    try:
        for line in process.stdout:
            said += line
            if "eady to accept connections" in line or "+monitor master" in line:
                return
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    raise Failed(f"{os.path.relpath(path, ROOT)}: the server ended:\n{said}")


def configurations(psyncd, server):
    with tempfile.TemporaryDirectory() as home:
        loader, server = Loader(os.path.abspath(psyncd), home), os.path.abspath(server)
        for path in sorted(glob.glob(os.path.join(ROOT, "deploy/**/*.toml"), recursive=True)):
            with open(path) as file:
                loader.text(os.path.relpath(path, ROOT), file.read())
        (page,) = documents(os.path.join(ROOT, "deploy/compose/compose.yaml"))
        loader.document("compose.yaml", page["services"])
        for where, document in [*manifests(), *examples_of_values(), *rendered_objects()]:
            loader.document(where, document)
        if loader.count < 10:
            raise Failed(f"only {loader.count} configurations were found")
        node = os.path.join(ROOT, "deploy/compose/redis.conf")
        server_accepts(server, node, home, [])
        server_accepts(server, os.path.join(ROOT, "deploy/compose/sentinel.conf"), home, ["--sentinel"])
        text = next(d["data"]["redis.conf"] for _, d in manifests() if d["kind"] == "ConfigMap" and "redis.conf" in d["data"])
        secret = os.path.join(home, "auth.conf")
        with open(secret, "w") as file:
            file.write("requirepass x\nmasterauth x\n")
        conf = os.path.join(home, "redis.conf")
        with open(conf, "w") as file:
            file.write(text.replace("/etc/redis-auth/auth.conf", secret))
        server_accepts(server, conf, home, [])
        print(f"{loader.count} configurations are loaded by psyncd, 3 by a Redis")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=["kubernetes", "helm", "crds", "compose", "configurations"])
    options.add_argument("schema", nargs="?")
    options.add_argument("--psyncd")
    options.add_argument("--server")
    options = options.parse_args()
    arguments = {"compose": [options.schema], "configurations": [options.psyncd, options.server]}.get(options.what, [])
    try:
        globals()[options.what](*arguments)
    except Failed as why:
        print(why, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
