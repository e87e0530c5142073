#!/usr/bin/env python3
"""Renews fuzz/corpus with what real servers say: capture.py PSYNCD SERVERS

PSYNCD is its binary, SERVERS the directory that tests/e2e/servers/fetch.py fills. Everything runs on loopback: a master,
psyncd behind a wiretap, and a replica of the same version behind another one. The corpora are cut from both sides of
both wires, and from psyncd's own journal.
"""
import glob, os, re, signal, socket, struct, subprocess, sys, tempfile, threading, time

PSYNCD, SERVERS = sys.argv[1:3]
CORPUS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")
VERSIONS = ["redis-2.8.17", "redis-5.0.6", "redis-6.2.14", "redis-7.4.1", "redis-8.6.2", "valkey-8.1.1", "valkey-9.1.2"]


def free():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Tap:
    """Forwards one port to another and keeps what passes, by connection: [to the server, to the caller]."""

    def __init__(self, to):
        self.to, self.kept = to, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            caller, _ = self.listener.accept()
            server = socket.create_connection(("127.0.0.1", self.to))
            kept = [bytearray(), bytearray()]
            self.kept.append(kept)
            for a, b, side in ((caller, server, 0), (server, caller, 1)):
                threading.Thread(target=self.copy, args=(a, b, kept[side]), daemon=True).start()

    @staticmethod
    def copy(a, b, kept):
        try:
            while data := a.recv(65536):
                kept += data
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def command(*words):
    words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def ask(port, *lines, wait=0.15):
    """Says lines and returns everything that comes within a moment."""
    with socket.create_connection(("127.0.0.1", port)) as s:
        s.sendall(b"".join(lines))
        s.settimeout(wait)
        out = b""
        try:
            while data := s.recv(65536):
                out += data
        except TimeoutError:
            pass
        return out


def until(what, true):
    for _ in range(300):
        if true():
            return
        time.sleep(0.05)
    raise SystemExit(f"not in time: {what}")


def keep(target, name, data, most=8192):
    if not data:
        return
    os.makedirs(f"{CORPUS}/{target}", exist_ok=True)
    with open(f"{CORPUS}/{target}/{name}", "wb") as f:
        f.write(bytes(data)[:most])


def capture(version, dir):
    binary = next(p for p in glob.glob(f"{SERVERS}/{version}/bin/*-server"))
    processes, sides = [], {}

    def serve(port, *more):
        own = tempfile.mkdtemp(dir=dir)
        args = [binary, "--port", str(port), "--dir", own, "--save", "", "--repl-diskless-sync-delay", "0", *more]
        if version == "redis-2.8.17":
            args = [a for a in args if a not in ("--repl-diskless-sync-delay", "0")]
        processes.append(subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until(f"{version} answers", lambda: connects(port) and ask(port, b"PING\r\n").startswith(b"+PONG"))
        return port

    try:
        master = serve(free())
        ask(master, *[command("SET", f"key:{n}", "v" * n) for n in range(8)], command("HSET", "h", "a", "1"))
        up = Tap(master)
        port, journal = free(), tempfile.mkdtemp(dir=dir)
        processes.append(subprocess.Popen(
            [PSYNCD, "run", "--upstream", f"127.0.0.1:{up.port}", "--port", str(port), "--admin-bind", "none",
             "--dir", journal, "--segment-size", "64kb", "--loglevel", "warning"], stdout=subprocess.DEVNULL))
        until("psyncd answers", lambda: connects(port) and ask(port, b"PING\r\n").startswith(b"+PONG"))
        down = Tap(port)
        replica = serve(free())
        ask(replica, command("SLAVEOF", "127.0.0.1", down.port))
        until("the replica is there", lambda: b"master_link_status:up" in ask(replica, command("INFO", "replication")))
        # A stream with everything in it that matters to its scanner.
        ask(master, command("SELECT", 3), command("SET", "a", b"\x00\r\n*3\r\n$"), command("MULTI"),
            command("INCR", "n"), command("LPUSH", "l", "1", "2"), command("EXEC"), command("WAIT", 1, 50),
            command("EVAL", "redis.call('set',KEYS[1],'x') return 1", 1, "k"), command("SETEX", "e", 100, "x" * 200),
            command("DEL", "a"), wait=0.4)
        time.sleep(1.2)
        clients = [b"INFO\r\n", command("INFO", "replication"), command("ROLE"), command("HELLO", "3"),
                   command("MULTI") + command("INFO", "replication") + command("SET", "a", "b") + command("EXEC"),
                   b'SET a "b\\x00c"\r\nGET a\r\nROLE\r\n', command("HELLO", 3) + command("INFO", "replication") + command("ROLE"),
                   command("CLIENT", "SETNAME", "x") + command("PING") + command("SUBSCRIBE", "__sentinel__:hello")]
        for n, said in enumerate(clients):
            answer = ask(master, said)
            keep("pipeline", f"{version}-{n}", said + b"\0" + answer)
            keep("commands", f"{version}-client-{n}", said)
            keep("replies", f"{version}-{n}", answer)
        for n, said in enumerate([command("INFO", "replication"), command("ROLE"), command("INFO")]):
            keep("rewrite", f"{version}-{n}", ask(master, said))
            keep("replies", f"{version}-replica-{n}", ask(replica, said))
        for n, (said, answered) in enumerate(up.kept):
            keep("commands", f"{version}-up-{n}", said, 2048)
            if b"PSYNC" in said.upper():
                keep("master", f"{version}-up-{n}", answered)
                if (at := answered.find(b"+FULLRESYNC")) >= 0:
                    rdb = bytes(answered[answered.index(b"\n", at) + 1:])
                    keep("rdb", f"{version}-up-{n}", rdb)
                    header, payload = rdb.lstrip(b"\n").split(b"\r\n", 1)
                    mark = header[5:] if header.startswith(b"$EOF:") else None
                    keep("stream", f"{version}-up-{n}", payload.split(mark, 1)[1] if mark else payload[int(header[1:]):])
        for n, (said, answered) in enumerate(down.kept):
            keep("replica", f"{version}-down-{n}", said, 2048)
            keep("commands", f"{version}-down-{n}", said, 2048)
            if (at := answered.find(b"+FULLRESYNC")) >= 0:
                at = answered.index(b"\n", at) + 1
                keep("rdb", f"{version}-down-{n}", answered[at:])
        for n, file in enumerate(sorted(glob.glob(f"{journal}/journal-*.seg"))[:2]):
            keep("segment", f"{version}-{n}", open(file, "rb").read(), 65536)
        if version == "redis-7.4.1":
            directories(master, processes, dir)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def directories(master, processes, dir):
    """What a psyncd leaves that is killed, ended and started again, with a failover in between: small whole journals."""
    journal, port = tempfile.mkdtemp(dir=dir), free()

    def run():
        process = subprocess.Popen(
            [PSYNCD, "run", "--upstream", f"127.0.0.1:{master}", "--port", str(port), "--admin-bind", "none",
             "--dir", journal, "--segment-size", "64kb", "--loglevel", "warning"], stdout=subprocess.DEVNULL)
        processes.append(process)
        until("psyncd answers", lambda: connects(port) and ask(port, b"PING\r\n").startswith(b"+PONG"))
        until("psyncd streams", lambda: b"psyncd_upstream_link:streaming" in ask(port, command("INFO", "psyncd")))
        return process

    for turn in range(4):
        process = run()
        ask(master, *[command("SET", f"turn:{turn}:{n}", "v" * n) for n in range(4)], wait=0.4)
        if turn == 2:
            # The same data under another id, and the id of before as its second.
            ask(master, command("SLAVEOF", "127.0.0.1", "1"), command("SLAVEOF", "NO", "ONE"), command("CLIENT", "KILL", "TYPE", "replica"))
            time.sleep(1.5)
            ask(master, command("SET", "after", "1"), wait=0.4)
        time.sleep(1.2)
        process.send_signal(signal.SIGKILL if turn % 2 else signal.SIGTERM)
        process.wait()
        found, mended = b"", b""
        for path in sorted(glob.glob(f"{journal}/journal-*.seg") + glob.glob(f"{journal}/psyncd.state")):
            name, data = os.path.basename(path), open(path, "rb").read()[:65535]
            kind, serial = (3, 0) if name == "psyncd.state" else (0, int(name[8:24], 16))
            found += struct.pack("<BBH", kind, serial, len(data)) + data
            # With its checksums put right, what a fuzzer changes in it is looked at.
            mended += struct.pack("<BBH", kind or 2, serial, len(data)) + data
        keep("journal", f"turn-{turn}", found, 65536)
        keep("journal", f"mended-{turn}", mended, 65536)


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    except OSError:
        return False


def configurations():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    example = open(f"{root}/deploy/psyncd.example.toml").read()
    keep("config", "example", example.encode(), 1 << 20)
    bare = [line[1:] for line in example.splitlines() if re.match(r"#?[a-z-]+ = ", line) and line.startswith("#")]
    keep("config", "bare", "\n".join(['upstream = "127.0.0.1:1"'] + bare).encode(), 1 << 20)
    for n, line in enumerate(bare):
        if n % 6 == 0:
            keep("config", f"some-{n}", ("upstream = \"[::1]:7000\"\n" + "\n".join(bare[n:n + 3])).encode())
    keep("config", "secret", b'upstream = "unix:/run/r.sock"\nmasterauth = "hunter2"\nmasteruser = "u"\nport = 7\n')


with tempfile.TemporaryDirectory() as dir:
    for version in VERSIONS:
        capture(version, dir)
configurations()
for target in sorted(os.listdir(CORPUS)):
    files = glob.glob(f"{CORPUS}/{target}/*")
    print(f"{target:10} {len(files):4} files {sum(map(os.path.getsize, files)):8} bytes")
