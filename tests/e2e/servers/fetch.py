#!/usr/bin/env python3
"""Obtains the real Redis and Valkey servers that psyncd is tested against.

    fetch.py [--tier core|old|all] [--check] DIR [NAME...]

Makes DIR/NAME/bin/redis-server for every server of the tier (default: core) or for the named ones, as
catalog.json beside this file lists them, and prints one line `NAME VERSION RDB PATH` for each. What is there
and runs is left alone. With --check nothing is fetched. Exit status 0 when every one of them is there.

It never installs anything into the system, never starts a service and needs no root: wheels come from pip, packages
from apt-get with an own state directory, and both are only unpacked. These binaries are for tests and go into no release.

How a binary is made to run on a machine that is not the one it was built for is its `runtime`:
  host       as it is
  trixie     through Debian 13's own loader and libraries, unpacked into DIR/.runtime/trixie
  openssl11  with OpenSSL 1.1 in front of the system's libraries, from DIR/.runtime/openssl11
A wheel is pinned by its digest. Debian signs its packages and only fixes bugs within a suite, so of those
just MAJOR.MINOR must be the one in the name.
"""

import argparse
import concurrent.futures
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
GLIBC_OF_WHEELS = ["manylinux2010", "manylinux2014", "manylinux_2_17", "manylinux_2_28", "manylinux_2_31", "manylinux_2_39"]
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Unobtainable(Exception):
    """Says in one line why a server cannot be had."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(args, why, cwd=None, env=None, seconds=600):
    try:
        done = subprocess.run(args, cwd=cwd, env=env, timeout=seconds, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
    except FileNotFoundError:
        raise Unobtainable(f"{why}: {args[0]} is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise Unobtainable(f"{why}: no answer within {seconds} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        told = [line for line in lines if re.match(r"(E:|Err|ERROR|error)", line.strip())] or lines or ["no reason given"]
        raise Unobtainable(f"{why}: {told[-1].strip()}")
    return done.stdout


class Pip:
    """Downloads one file of one release and checks that it is the one that was pinned."""

    def __init__(self, scratch):
        self.scratch = scratch

    def wheel(self, want):
        where = ["--only-binary=:all:", "--implementation", "cp", "--python-version", want["python"]]
        for tag in GLIBC_OF_WHEELS:
            where += ["--platform", tag + "_x86_64"]
        return self._download(want, where)

    def source(self, want):
        return self._download(want, ["--no-binary=:all:"])

    def _download(self, want, where):
        into = tempfile.mkdtemp(dir=self.scratch)
        quiet = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_ROOT_USER_ACTION="ignore")
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", into, *where, want["release"]],
            f"pip download {want['release']}", env=quiet)
        (path,) = glob.glob(os.path.join(into, "*"))
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        if digest != want["sha256"]:
            raise Unobtainable(f"{os.path.basename(path)} has the digest {digest}, not the pinned one")
        return path


class Debian:
    """One suite at a time, each with package lists of its own, so that the candidate is always the suite's."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.ready = {}
        self.lock = threading.Lock()

    def unpack(self, suite, packages, into):
        with self.lock:
            if suite not in self.ready:
                self.ready[suite] = self._lists(suite)
        config = self.ready[suite]
        downloads = tempfile.mkdtemp(dir=self.scratch)
        run(["apt-get", "-qq", "download", *packages], f"apt-get download {' '.join(packages)} of {suite}",
            cwd=downloads, env=config)
        for package in sorted(glob.glob(os.path.join(downloads, "*.deb"))):
            run(["dpkg-deb", "-x", package, into], f"unpack {os.path.basename(package)}")

    def _lists(self, suite):
        archive = self._archive()
        if not os.path.exists(KEYRING):
            raise Unobtainable("the Debian archive's keyring is not on this machine (package debian-archive-keyring)")
        home = os.path.join(self.scratch, "apt-" + suite)
        for folder in ("lists/partial", "cache/archives/partial"):
            os.makedirs(os.path.join(home, folder))
        files = {
            "sources": f"deb [arch=amd64 signed-by={KEYRING}] {archive} {suite} main\n",
            "status": "",
            "conf": "".join(f'{key} "{value}";\n' for key, value in {
                "Dir::Etc::sourcelist": f"{home}/sources", "Dir::Etc::sourceparts": "/dev/null",
                "Dir::State": home, "Dir::State::lists": f"{home}/lists", "Dir::State::status": f"{home}/status",
                "Dir::Cache": f"{home}/cache", "APT::Architecture": "amd64",
                # The sandbox user could not write into a directory of ours.
                "APT::Sandbox::User": "root",
                "Acquire::Languages": "none", "Acquire::Retries": "3",
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
                "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
            }.items()),
        }
        for name, text in files.items():
            with open(os.path.join(home, name), "w") as file:
                file.write(text)
        config = dict(os.environ, APT_CONFIG=os.path.join(home, "conf"), LC_ALL="C")
        say(f"reading Debian's package list of {suite}")
        run(["apt-get", "-qq", "update"], f"apt-get update of {suite}", env=config)
        return config

    @staticmethod
    def _archive():
        """The Debian archive that this machine's own sources name, be it a mirror."""
        for path in sorted(glob.glob("/etc/apt/sources.list.d/*.sources")) + ["/etc/apt/sources.list"] + \
                sorted(glob.glob("/etc/apt/sources.list.d/*.list")):
            if os.path.isfile(path):
                with open(path, errors="replace") as file:
                    for line in file:
                        found = re.search(r"\S+://\S+/debian/?(?=\s|$)", line)
                        if found and not line.lstrip().startswith("#"):
                            return found.group(0)
        raise Unobtainable("this machine's apt sources name no Debian archive")


class Shelf:
    """The directory of the servers. Whatever appears in it under its final name is whole."""

    def __init__(self, root, scratch, catalog):
        self.root, self.catalog, self.scratch = root, catalog, scratch
        self.pip, self.debian = Pip(scratch), Debian(scratch)
        self.runtime_locks = {name: threading.Lock() for name in catalog["runtimes"]}

    def version(self, name):
        """What the server in that directory says it is, if it runs at all."""
        try:
            told = subprocess.run([self.path(name), "--version"], capture_output=True, text=True, timeout=30).stdout
        except (OSError, subprocess.TimeoutExpired):
            return None
        found = re.search(r"\bv=([0-9.]+)", told)
        return found and found.group(1)

    def path(self, name):
        return os.path.join(self.root, name, "bin", "redis-server")

    def has(self, server):
        return self._is_wanted(server, self.version(server["name"]))

    @staticmethod
    def _is_wanted(server, version):
        wanted = server["name"].split("-")[1]
        if version is None:
            return False
        if "debian" in server:
            return version.split(".")[:2] == wanted.split(".")[:2]
        return version == wanted

    def obtain(self, server):
        if self.has(server):
            return
        say(f"obtaining {server['name']}")
        if server["runtime"] != "host":
            self._obtain_runtime(server["runtime"])
        unpacked = self._unpack(server)
        # A sibling of the final place, because the start scripts find the runtime by a relative path.
        staging = f".new-{server['name']}"
        shutil.rmtree(os.path.join(self.root, staging), ignore_errors=True)
        self._lay_out(server, unpacked, os.path.join(self.root, staging))
        version = self.version(staging)
        if not self._is_wanted(server, version):
            raise Unobtainable(f"the server from the package says version {version}")
        final = os.path.join(self.root, server["name"])
        shutil.rmtree(final, ignore_errors=True)
        os.rename(os.path.join(self.root, staging), final)

    def _unpack(self, what):
        into = tempfile.mkdtemp(dir=self.scratch)
        if "wheel" in what:
            with zipfile.ZipFile(self.pip.wheel(what["wheel"])) as wheel:
                members = wheel.namelist()
                # These wheels carry far more than a server.
                tools = what.get("tools", {}).values()
                wanted = [m for m in members if m in tools or m.startswith(what.get("directory", "\0"))]
                wheel.extractall(into, wanted)
        elif "source" in what:
            with tarfile.open(self.pip.source(what["source"])) as archive:
                archive.extractall(into)
            (into,) = glob.glob(os.path.join(into, "*"))
            make = os.path.join(into, what["source"]["make"])
            # The archive carries objects of its packer's machine.
            run(["make", "-C", make, "distclean"], f"clean the sources of {what['name']}")
            # Written before compilers stopped merging tentative definitions (-fcommon).
            run(["make", "-C", make, "-j2", "MALLOC=libc", "CFLAGS=-O1 -w -fcommon -std=gnu99"], f"compile {what['name']}")
        else:
            debian = what["debian"]
            self.debian.unpack(debian["suite"], debian.get("packages") or [debian["package"]], into)
        return into

    def _lay_out(self, server, unpacked, place):
        os.makedirs(os.path.join(place, "bin"))
        runtime = server["runtime"]
        for tool, inside in server["tools"].items():
            binary = os.path.join(unpacked, inside)
            if not os.path.isfile(binary):
                raise Unobtainable(f"the package has no {inside}")
            start = os.path.join(place, "bin", tool)
            if runtime != "host":
                os.makedirs(os.path.join(place, "libexec"), exist_ok=True)
                with open(start, "w") as script:
                    script.write(self._start_script(runtime, tool))
                os.chmod(start, 0o755)
                start = os.path.join(place, "libexec", tool)
            shutil.copyfile(binary, start)
            os.chmod(start, 0o755)

    def _start_script(self, runtime, tool):
        loader = self.catalog["runtimes"][runtime].get("loader")
        # exec, so that the pid is the server's own. The binaries look at their own name to know what they are.
        start = f'exec "$libraries/{loader}" --argv0 {tool} --library-path "$libraries" "$home/libexec/{tool}" "$@"' if loader \
            else f'LD_LIBRARY_PATH=$libraries exec "$home/libexec/{tool}" "$@"'
        return ('#!/bin/sh\nhome=$(dirname "$(dirname "$(readlink -f "$0")")")\n'
                f'libraries=$(dirname "$home")/.runtime/{runtime}\n{start}\n')

    def _obtain_runtime(self, name):
        place = os.path.join(self.root, ".runtime", name)
        with self.runtime_locks[name]:
            if os.path.isdir(place):
                return
            what = self.catalog["runtimes"][name]
            unpacked = self._unpack(what)
            staging = tempfile.mkdtemp(dir=self.scratch)
            for folder, _, files in os.walk(unpacked):
                for file in files:
                    if ".so" in file and os.path.exists(os.path.join(folder, file)):
                        shutil.copy(os.path.join(folder, file), os.path.join(staging, file))
            for start, alias in what.get("alias", {}).items():
                (library,) = glob.glob(os.path.join(staging, start + "*"))
                os.symlink(os.path.basename(library), os.path.join(staging, alias))
            if "loader" in what:
                os.chmod(os.path.join(staging, what["loader"]), 0o755)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.rename(staging, place)


def main():
    with open(os.path.join(HERE, "catalog.json")) as file:
        catalog = json.load(file)
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--tier", choices=["core", "old", "all"], default="core")
    asked.add_argument("--check", action="store_true", help="only say what is there")
    asked.add_argument("dir")
    asked.add_argument("name", nargs="*", choices=[[], *(s["name"] for s in catalog["servers"])], metavar="NAME")
    asked = asked.parse_args()
    servers = [s for s in catalog["servers"] if (s["name"] in asked.name if asked.name else asked.tier in (s["tier"], "all"))]

    root = os.path.abspath(asked.dir)
    missing = {}
    if asked.check:
        shelf = Shelf(root, None, catalog)
        missing = {s["name"]: "not there" for s in servers if not shelf.has(s)}
    else:
        os.makedirs(root, exist_ok=True)
        with open(os.path.join(root, ".lock"), "w") as lock:
            # Several test binaries and the demo may want the same directory at once: the first fetches, the others wait.
            fcntl.flock(lock, fcntl.LOCK_EX)
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=root) as scratch:
                shelf = Shelf(root, scratch, catalog)
                with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
                    running = {pool.submit(shelf.obtain, server): server["name"] for server in servers}
                    for done in concurrent.futures.as_completed(running):
                        try:
                            done.result()
                        except Unobtainable as why:
                            missing[running[done]] = str(why)
                        except Exception as why:  # an unforeseen failure is told like any other, and fails like any other
                            missing[running[done]] = f"{type(why).__name__}: {why}"

    for server in servers:
        if server["name"] in missing:
            say(f"MISSING {server['name']}: {missing[server['name']]}")
        else:
            print(server["name"], shelf.version(server["name"]), server["rdb"], shelf.path(server["name"]), flush=True)
    if missing:
        say(f"{len(missing)} of {len(servers)} servers could not be had for {root}.\n"
            "It takes python3 with pip, apt-get and dpkg-deb, and registries that answer (PyPI and a Debian archive); "
            "the oldest servers also take make and a C compiler.\n"
            "Where that cannot be, lay them out by hand as NAME/bin/redis-server in a directory and name it in TEST_SERVERS.")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
