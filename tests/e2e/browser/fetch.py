#!/usr/bin/env python3
"""Obtains a headless Chromium for the tests of the status page: fetch.py DIR

Debian's package and what it needs beyond this machine's own packages are unpacked into DIR; nothing is installed into
the system, and it takes no root. What is there already and runs is left alone. Prints the path of a program that starts
the browser. When that cannot be had, says why and exits 1.
"""

import fcntl
import glob
import os
import shutil
import subprocess
import sys
import tempfile

# Letters that look the same wherever the pictures are taken.
PACKAGES = ["chromium-headless-shell", "fonts-inter", "fonts-dejavu-core"]

FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
<dir>{root}/usr/share/fonts</dir><dir>/usr/share/fonts</dir><cachedir>{root}/fontcache</cachedir>
<alias><family>system-ui</family><prefer><family>Inter</family></prefer></alias>
<alias><family>sans-serif</family><prefer><family>Inter</family></prefer></alias>
<alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""

START = """#!/bin/sh
root=$(dirname "$(readlink -f "$0")")
libraries=$root/usr/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH="$libraries:$libraries/pulseaudio" FONTCONFIG_FILE="$root/fonts.conf"
exec "$root/usr/lib/chromium/chromium-headless-shell" "$@"
"""


def run(args, **more):
    done = subprocess.run(args, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          errors="replace", timeout=900, **more)
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no reason given"]
        sys.exit(f"MISSING Chromium: {args[0]} {args[-1]}: " + " / ".join(lines[-3:]))


def runs(start):
    try:
        return "Chromium" in subprocess.run([start, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def obtain(root, scratch):
    print("obtaining a headless Chromium, about 100 MB", file=sys.stderr, flush=True)
    # Lists and downloads of its own, so that neither root nor the system's lock is needed.
    os.makedirs(f"{scratch}/lists/partial")
    os.makedirs(f"{scratch}/cache/archives/partial")
    apt = ["apt-get", "-qq", "-y", "--no-install-recommends", "-o", f"Dir::State::Lists={scratch}/lists",
           "-o", f"Dir::Cache={scratch}/cache", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root",
           "-o", "Acquire::Retries=3", "-o", "Acquire::Languages=none", "-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
           "-o", "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false"]
    run([*apt, "update"])
    # Reinstalled, so that what the system has already is downloaded all the same.
    run([*apt, "--download-only", "--reinstall", "install", *PACKAGES])
    fresh = f"{scratch}/root"
    os.makedirs(fresh)
    for package in sorted(glob.glob(f"{scratch}/cache/archives/*.deb")):
        run(["dpkg-deb", "-x", package, fresh])
    with open(f"{fresh}/fonts.conf", "w") as file:
        file.write(FONTS.format(root=root))
    start = f"{fresh}/chromium"
    with open(start, "w") as file:
        file.write(START)
    os.chmod(start, 0o755)
    if not runs(start):
        told = subprocess.run([start, "--version"], capture_output=True, text=True, timeout=60)
        sys.exit(f"MISSING Chromium: it does not run here: {told.stdout} {told.stderr}")
    shutil.rmtree(root, ignore_errors=True)
    os.rename(fresh, root)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = os.path.abspath(sys.argv[1])
    os.makedirs(os.path.dirname(root), exist_ok=True)
    with open(root + ".lock", "w") as lock:
        # Several tests may want it at once: the first fetches, the others wait.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not runs(f"{root}/chromium"):
            try:
                with tempfile.TemporaryDirectory(prefix=".fetching-", dir=os.path.dirname(root)) as scratch:
                    obtain(root, scratch)
            except (OSError, subprocess.TimeoutExpired) as why:
                sys.exit(f"MISSING Chromium: {why}")
    print(f"{root}/chromium")


if __name__ == "__main__":
    main()
