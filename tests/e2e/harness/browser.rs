//! A real headless Chromium, driven over two pipes by the DevTools protocol: no port, no driver program, no library.
//!
//! It is what `PSYNCD_CHROMIUM` names, or one on the machine, or what `browser/fetch.py` obtains into `target/browser`.
//! One that cannot be had fails the test; nothing is skipped in silence.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::servers::target_directory;
use super::wait::wait_at_most;

/// Longest the browser may take for one thing on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A page in a browser of its own.
pub struct Browser {
    process: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    next: u64,
    session: Option<String>,
    /// What the console said that is a warning or worse, exceptions included.
    pub complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

/// How the page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub width: u32,
    pub height: u32,
    pub scheme: &'static str,
}

/// A desk by day.
pub const WIDE_LIGHT: View = View { width: 1280, height: 900, scheme: "light" };
/// A telephone at night.
pub const NARROW_DARK: View = View { width: 390, height: 844, scheme: "dark" };

impl Browser {
    /// Opens the page and waits until it has been loaded.
    #[track_caller]
    pub fn open(address: &str, view: View) -> Browser {
        let profile = tempfile::tempdir().expect("a temporary directory can be made");
        let mut command = Command::new("setpriv");
        // The browser reads orders on descriptor 3 and answers on 4; standard library pipes are 0 and 1.
        command.args([
            "--pdeathsig",
            "KILL",
            "/bin/sh",
            "-c",
            "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1",
            "sh",
        ]);
        command.arg(chromium()).args(["--headless", "--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars"]);
        // Tests run as root in containers, where its sandbox and shared memory are not to be had.
        command.args(["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().expect("setpriv starts");
        let to = process.stdin.take().expect("piped");
        let mut answers = BufReader::new(process.stdout.take().expect("piped"));
        let (send, from) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while answers.read_until(0, &mut message).is_ok_and(|count| count > 0) {
                message.pop();
                if serde_json::from_slice(&message).is_ok_and(|value: Value| send.send(value).is_err()) {
                    return;
                }
                message.clear();
            }
        });
        let complaints = Vec::new();
        let mut browser = Browser { process, to, from, next: 0, session: None, complaints, _profile: profile };
        let targets = browser.call("Target.getTargets", json!({}));
        let targets = targets["targetInfos"].as_array().expect("there are targets");
        let page = targets.iter().find(|target| target["type"] == "page").expect("it has a page");
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach)["sessionId"].as_str().map(str::to_owned);
        browser.session = session;
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, json!({}));
        }
        browser.look(view);
        browser.call("Page.navigate", json!({ "url": address }));
        browser.wait_for("the page is loaded", "document.readyState === 'complete' && location.href !== 'about:blank'");
        browser
    }

    /// Looks at it in another way.
    #[track_caller]
    pub fn look(&mut self, View { width, height, scheme }: View) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features);
        // The second of two frames is drawn with it.
        self.eval("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))");
    }

    /// The value of a JavaScript expression in the page; promises are awaited.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The value of an expression that is a text.
    #[track_caller]
    pub fn text(&mut self, expression: &str) -> String {
        let value = self.eval(expression);
        value.as_str().unwrap_or_else(|| panic!("{expression} is {value}")).to_owned()
    }

    /// What a person reads in the elements of a selector.
    #[track_caller]
    pub fn read(&mut self, selector: &str) -> String {
        self.text(&format!("[...document.querySelectorAll({selector:?})].map(e => e.textContent).join('\\n')"))
    }

    /// Waits until a condition holds in the page.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, condition: &str) {
        wait_at_most(PATIENCE, what, || match self.eval(condition) {
            Value::Bool(true) => Ok(()),
            other => Err(format!("{condition} is {other}; verdict: {}", self.read("#verdict"))),
        });
    }

    /// Presses a key that is not a letter.
    pub fn press(&mut self, key: &str) {
        let code = json!({ "Tab": 9, "Enter": 13 })[key].clone();
        for kind in ["keyDown", "keyUp"] {
            let text = if key == "Enter" && kind == "keyDown" { "\r" } else { "" };
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Roles and names as a screen reader is told them.
    #[track_caller]
    pub fn accessibility(&mut self) -> Vec<(String, String)> {
        let tree = self.call("Accessibility.getFullAXTree", json!({}));
        let word = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        let nodes = tree["nodes"].as_array().expect("a tree has nodes").iter();
        nodes.filter(|node| node["ignored"] != true).map(|node| (word(&node["role"]), word(&node["name"]))).collect()
    }

    /// Keeps a picture of the whole page under `target/screenshots`.
    #[track_caller]
    pub fn picture(&mut self, name: &str) -> PathBuf {
        let height = self.eval("Math.ceil(document.documentElement.getBoundingClientRect().height)");
        let width = self.eval("innerWidth");
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let taken = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let data = self.call("Page.captureScreenshot", taken)["data"].as_str().expect("base64").to_owned();
        let folder = target_directory().join("screenshots");
        std::fs::create_dir_all(&folder).expect("target can be written");
        let path = folder.join(name).with_extension("png");
        std::fs::write(&path, BASE64.decode(data.as_bytes()).expect("base64")).expect("target can be written");
        path
    }

    /// One order and its result.
    #[track_caller]
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut order = json!({ "id": id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            order["sessionId"] = json!(session);
        }
        let mut bytes = order.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap_or_else(|why| panic!("{method}: the browser is gone: {why}"));
        let begun = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let message = self.from.recv_timeout(left).unwrap_or_else(|why| panic!("{method}: no answer: {why}"));
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.listen(&message);
        }
    }

    fn listen(&mut self, message: &Value) {
        let facts = &message["params"];
        let complains = match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => facts["type"] != "log" && facts["type"] != "info",
            Some("Log.entryAdded") => facts["entry"]["level"] == "error" || facts["entry"]["level"] == "warning",
            _ => false,
        };
        if complains {
            self.complaints.push(facts.to_string());
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The program, found or fetched once.
fn chromium() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let on_path = |name: &str| {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
        };
        let named = std::env::var_os("PSYNCD_CHROMIUM").map(PathBuf::from);
        let names = ["chromium-headless-shell", "chromium", "google-chrome"];
        named.or_else(|| names.into_iter().find_map(on_path)).unwrap_or_else(fetch)
    })
}

fn fetch() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/browser/fetch.py");
    let mut fetch = Command::new("python3");
    fetch.arg(&script).arg(target_directory().join("browser")).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = fetch.output().unwrap_or_else(|why| panic!("{}: python3 is needed: {why}", script.display()));
    assert!(
        output.status.success(),
        "no Chromium could be had (see above); name one in PSYNCD_CHROMIUM. The status page is not tested without one"
    );
    PathBuf::from(String::from_utf8(output.stdout).expect("fetch.py prints text").trim_end())
}
