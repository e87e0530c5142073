//! The page before a psyncd of ours that says what no real one would: names that are markup, more replicas than fit, and
//! every kind of mark at once.

use std::sync::Arc;
use std::time::Duration;

use ::psyncd::access::allow::AllowList;
use ::psyncd::admin::hosts::Hosts;
use ::psyncd::admin::{self, Door, Readiness, Source};
use ::psyncd::net::{Network, TokioNetwork};
use serde_json::{Value as Json, json};
use tokio_util::sync::CancellationToken;

use super::assert_no_complaints;
use crate::harness::*;

/// Each would set `owned`, were it ever more than text.
const HOSTILE: [&str; 5] = [
    "<script>window.owned=1</script>",
    "<img src=x onerror=window.owned=1>",
    "\"><svg onload=window.owned=1>",
    "javascript:window.owned=1//",
    "</title></style><iframe srcdoc=x></iframe>\u{202e}${window.owned=1}",
];

struct Liar;

impl Source for Liar {
    fn verdict(&self) -> String {
        String::new()
    }

    fn clients(&self) -> Json {
        json!({ "count": 0, "clients": [] })
    }

    fn metrics(&self) -> String {
        String::new()
    }

    fn status(&self) -> Json {
        let head = 9_000_000_000u64;
        let replicas = (0..64u64).map(|number| {
            let hostile = HOSTILE[number as usize % HOSTILE.len()];
            let (state, grade) = match number % 16 {
                0 => ("snapshot", "busy"),
                1 => ("waiting", "busy"),
                2 => ("online", "bad"),
                3 => ("online", "warn"),
                4 => (hostile, hostile),
                _ => ("online", "ok"),
            };
            let behind = if grade == "ok" { number * 100 } else { number * 60_000_000 };
            json!({
                "replica": format!("{hostile}{number}"), "peer": hostile, "version": hostile, "state": state, "grade": grade,
                "says": hostile, "falls_off_in_seconds": 30.0, "waits_for": null, "queue_position": 3, "priority": null,
                "sent_offset": head, "acked_offset": head - behind, "lag_bytes": behind, "lag_seconds": number as f64 * 1.7,
                "backlog_remaining_bytes": 4_000_000_000u64 - behind, "silent_seconds": 0.4, "attached_seconds": 98765.0,
                "sent_stream_bytes": 1, "sent_snapshot_bytes": 500, "snapshot_bytes": 1000,
            })
        });
        json!({
            "version": HOSTILE[0], "now_unix_ms": 1, "uptime_seconds": 5, "draining": false,
            "verdict": { "grade": "bad", "text": HOSTILE.join(" "), "problems": HOSTILE.map(|text| json!({ "grade": text, "text": text })) },
            "upstream": { "address": HOSTILE[1], "link": HOSTILE[2], "grade": "bad", "down_seconds": 3.0, "silent_seconds": 3.0 },
            "history": { "replid": "a", "ancestors": [{ "replid": "b", "boundary": 8_800_000_000u64 }, { "replid": "c", "boundary": 7_000_000_000u64 }] },
            "backlog": {
                "first_offset": 6_000_000_000u64, "head_offset": head, "used_bytes": 3_000_000_000u64,
                "memory": { "first_offset": 8_700_000_000u64, "used_bytes": 300_000_000, "limit_bytes": 300_000_000, "evicted_bytes": 5 },
                "journal": { "first_offset": 6_000_000_000u64, "head_offset": head, "limit_bytes": 4_000_000_000u64 },
                "coverage_seconds": 7000.0, "bytes_per_second": 431_000.0, "runway_seconds": 9300.0,
            },
            "snapshot": { "ready": { "offset": 8_200_000_000u64, "format": HOSTILE[3], "received_bytes": 7, "length_bytes": 7 }, "arriving": null, "requested": true },
            "max_replicas": 64, "replicas_at_head": 1, "senders": { "sending": 4, "limit": 4, "waiting": 4 },
            "replicas": replicas.collect::<Vec<_>>(),
            "resyncs": { "served": { "full": 3, "partial": 41 }, "averted": { "long_backlog": 7, (HOSTILE[0]): 2 }, "master_forks_averted": {}, "lost_writes_bytes": 0 },
            "clients": 2,
        })
    }

    fn events(&self, after: u64) -> Json {
        let events = HOSTILE.iter().enumerate().map(|(number, text)| {
            json!({ "seq": number + 1, "unix_ms": 1_790_000_000_000u64, "level": text, "message": text, "fields": { (*text): text } })
        });
        json!({ "last_seq": HOSTILE.len(), "events": if after == 0 { events.collect() } else { Vec::new() } })
    }

    fn settings(&self) -> Json {
        json!({ "settings": HOSTILE.map(|text| json!({ "name": text, "value": text, "origin": text })) })
    }

    fn offset(&self, _: Duration) -> Option<u64> {
        None
    }

    fn ready(&self, _: Option<&str>) -> Readiness {
        Readiness::default()
    }
}

/// Serves the lies until dropped.
struct Served {
    address: String,
    stop: CancellationToken,
    _runtime: tokio::runtime::Runtime,
}

impl Served {
    fn start() -> Served {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TokioNetwork::default().listen("127.0.0.1:0".parse().unwrap())).unwrap();
        let address = format!("http://{}/", listener.local());
        let stop = CancellationToken::new();
        runtime.spawn(admin::serve(
            Door::Public(listener, AllowList::default(), Hosts::default(), None),
            Arc::new(Liar),
            stop.clone(),
        ));
        Served { address, stop, _runtime: runtime }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[track_caller]
fn open(served: &Served, view: View) -> Browser {
    let mut browser = Browser::open(&served.address, view);
    browser.wait_for("all is drawn", "document.querySelectorAll('#replicas tbody tr').length === 64 && document.querySelectorAll('#config tbody tr').length === 5");
    browser
}

#[test]
fn names_that_are_markup_stay_words() {
    let served = Served::start();
    let mut browser = open(&served, WIDE_LIGHT);
    for place in ["#verdict-line", "#problems", "#replicas", "#snapshot", "#averted", "#events", "#config", "#topology"]
    {
        let seen = browser.read(place);
        assert!(HOSTILE.iter().any(|text| seen.contains(&text[..12])), "{place}: {seen}");
    }
    let shown = HOSTILE[4].replace('\u{202e}', "\u{fffd}");
    assert!(browser.read("#events").contains(&shown), "whole, but for what would turn the words after it");
    assert!(!browser.read("body").contains('\u{202e}'));
    assert_eq!(browser.eval("typeof window.owned"), "undefined");
    let foreign = "[...document.querySelectorAll('*')].filter(e => ['script', 'img', 'iframe'].includes(e.localName) || [...e.attributes].some(a => a.name.startsWith('on'))).length";
    assert_eq!(browser.eval(foreign), 1, "the page's own script is the only one");
    assert_no_complaints(&browser);
    // Were the page ever to forget itself, the browser would not let it.
    let forgets =
        "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'done' } catch (why) { return why.name } })()";
    assert_eq!(browser.eval(forgets), "TypeError");
    let runs = "(() => { const s = document.createElement('div'); try { s.setAttribute('onclick', 'window.owned=1') } catch {} document.body.append(s); s.click(); return typeof window.owned })()";
    assert_eq!(browser.eval(runs), "undefined");
}

#[test]
fn everything_fits_and_can_be_told_from_its_ground_on_any_screen() {
    let served = Served::start();
    let mut browser = open(&served, WIDE_LIGHT);
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (820, "light"), (390, "dark"), (320, "light")] {
        browser.look(View { width, height: 900, scheme });
        assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth"), true, "{width} {scheme}");
        let faint = browser.eval(CONTRAST);
        assert_eq!(faint, json!([]), "text of too little contrast at {width} {scheme}");
        browser.picture(&format!("crowded-{width}-{scheme}"));
    }
    assert_no_complaints(&browser);
}

/// Texts whose contrast with what is behind them is below 4.5 to 1 (WCAG 2, criterion 1.4.3).
const CONTRAST: &str = r"(() => {
    const numbers = text => text.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const ground = e => { for (; e; e = e.parentElement) {
        const c = numbers(getComputedStyle(e).backgroundColor);
        if (c.length === 3 || c[3] === 1) return c;
    } return [255, 255, 255]; };
    const faint = new Set();
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const e = walk.currentNode.parentElement;
        if (!walk.currentNode.textContent.trim() || ['SCRIPT', 'NOSCRIPT', 'title'].includes(e.tagName) || !e.getClientRects().length) continue;
        const style = getComputedStyle(e), ink = light(numbers(e.namespaceURI.endsWith('svg') ? style.fill : style.color)), paper = light(ground(e));
        const ratio = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
        if (ratio < 4.5) faint.add(e.tagName + '.' + (e.getAttribute('class') ?? '') + ' ' + ratio.toFixed(2));
    }
    return [...faint];
})()";

#[test]
fn the_page_can_be_heard_and_used_without_a_mouse() {
    let served = Served::start();
    let mut browser = open(&served, WIDE_LIGHT);
    browser.press("Tab");
    assert_eq!(browser.text("document.activeElement.textContent"), "Skip to the status");
    let mut reached = Vec::new();
    for _ in 0..9 {
        browser.press("Tab");
        reached.push(
            browser.text("document.activeElement.getAttribute('aria-labelledby') ?? document.activeElement.localName"),
        );
        if reached.last().is_some_and(|at| at == "summary") {
            break;
        }
    }
    assert_eq!(reached, ["h-replicas", "h-events", "summary"], "what scrolls can be reached");
    browser.press("Enter");
    assert_eq!(browser.eval("document.getElementById('config').open"), true);

    let heard = browser.accessibility();
    let has = |role: &str, name: &str| heard.iter().any(|(r, n)| r == role && n.contains(name));
    for (role, name) in [
        ("banner", ""),
        ("main", ""),
        ("contentinfo", ""),
        ("heading", "psyncd"),
        ("heading", "Offset ruler"),
        ("region", "Verdict"),
        ("status", ""),
        ("table", ""),
        ("columnheader", "Until it falls off"),
        ("rowheader", HOSTILE[0]),
        ("image", "From offset 6000000000 to 9000000000"),
        ("progressbar", "Sending to "),
        ("region", "Topology"),
    ] {
        assert!(has(role, name), "{role} {name:?} is missing in {heard:?}");
    }
    assert!(!browser.read("#spoken").is_empty());
    let live = "document.getElementById('spoken').getAttribute('aria-live')";
    assert_eq!(browser.text(live), "polite");
    // Numbers change every second; they are not spoken again for that.
    browser.eval("window.said = 0; new MutationObserver(() => window.said++).observe(document.getElementById('spoken'), { childList: true })");
    browser.wait_for("two more answers have come", "(p => { window.beats ??= new Set(); window.beats.add(p.textContent); return window.beats.size > 2 })(document.getElementById('pulse'))");
    assert_eq!(browser.eval("window.said"), 0);
    // On a small screen the table is a list of cards, and still a table to those who hear it.
    browser.look(NARROW_DARK);
    assert!(browser.accessibility().iter().any(|(role, name)| role == "columnheader" && name == "Lag"));
    assert_no_complaints(&browser);
}
