//! The last things that happened, for the status page and `/api/v1/events`: a bounded ring that is fed by whatever is
//! logged, so that what is shown and what is in the log are the same words.
//!
//! It keeps `info` and above of psyncd itself, whatever the log keeps. By the rule of the log nothing there scales with
//! traffic and nothing is a secret; peers' words may be among the fields, cut to a length.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::wall;

/// Events that are kept; the oldest goes for a new one.
pub const LIMIT_EVENTS: usize = 200;
/// Fields of an event that are kept.
pub const LIMIT_FIELDS: usize = 24;
/// Bytes of the message and of each field that are kept.
pub const LIMIT_TEXT_BYTES: usize = 400;

/// The ring. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Events {
    /// Held for the length of a push or a copy, never across an await.
    ring: Arc<Mutex<Ring>>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The number of the next event; the first is 1.
    next: u64,
    kept: VecDeque<Event>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its number; they rise by one.
    pub seq: u64,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// `error`, `warn` or `info`.
    pub level: &'static str,
    /// What happened: constant words.
    pub message: String,
    /// The facts, as text or numbers, those of the surrounding spans last.
    pub fields: Map<String, Value>,
}

impl Events {
    /// Those after number `after`, oldest first, as a document.
    pub fn after(&self, after: u64) -> Value {
        let ring = self.ring.lock().expect("no one panics holding it");
        let shown = ring.kept.iter().filter(|event| event.seq > after);
        json!({
            "last_seq": ring.next,
            "limit": LIMIT_EVENTS,
            "events": shown.map(|event| json!({
                "seq": event.seq,
                "unix_ms": event.unix_ms,
                "level": event.level,
                "message": event.message,
                "fields": event.fields,
            })).collect::<Vec<_>>(),
        })
    }

    fn push(&self, level: &'static str, facts: Facts) {
        let mut ring = self.ring.lock().expect("no one panics holding it");
        ring.next += 1;
        let seq = ring.next;
        if ring.kept.len() == LIMIT_EVENTS {
            ring.kept.pop_front();
        }
        let Facts { message, fields } = facts;
        ring.kept.push_back(Event { seq, unix_ms: wall::unix_ms(), level, message, fields });
    }
}

/// The facts of a span, kept with it for the events inside.
struct SpanFacts(Map<String, Value>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Events {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut facts = Facts::default();
        attributes.record(&mut facts);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFacts(facts.fields));
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => return,
        };
        let mut facts = Facts::default();
        event.record(&mut facts);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(SpanFacts(fields)) = span.extensions().get() {
                fields.iter().for_each(|(name, value)| facts.keep(name, value.clone()));
            }
        }
        self.push(level, facts);
    }
}

#[derive(Default)]
struct Facts {
    message: String,
    fields: Map<String, Value>,
}

impl Facts {
    fn keep(&mut self, name: &str, value: Value) {
        if self.fields.len() < LIMIT_FIELDS && !self.fields.contains_key(name) {
            self.fields.insert(name.to_owned(), value);
        }
    }
}

impl Visit for Facts {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let causes = std::iter::successors(Some(value), |error| error.source());
        let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        self.record_str(field, &text);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let text = cut(value);
        match field.name() {
            "message" => self.message = text,
            name => self.keep(name, text.into()),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.keep(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.keep(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.keep(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.keep(field.name(), value.into());
    }
}

fn cut(text: &str) -> String {
    if text.len() <= LIMIT_TEXT_BYTES {
        return text.to_owned();
    }
    let end = (0..=LIMIT_TEXT_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    fn kept(events: impl FnOnce()) -> Events {
        let ring = Events::default();
        let subscriber = tracing_subscriber::registry().with(ring.clone());
        tracing::subscriber::with_default(subscriber, events);
        ring
    }

    #[test]
    fn an_event_is_kept_with_its_facts_and_those_around_it() {
        let ring = kept(|| {
            let span = tracing::info_span!("session", replica = "10.0.0.1:6379");
            let _entered = span.enter();
            tracing::warn!(why = "eof", bytes = 5u64, "link lost");
        });
        let shown = ring.after(0);
        let event = &shown["events"][0];
        assert_eq!(
            (&event["level"], &event["message"], &event["seq"]),
            (&"warn".into(), &"link lost".into(), &1.into())
        );
        assert_eq!(event["fields"], json!({ "why": "eof", "bytes": 5, "replica": "10.0.0.1:6379" }));
        assert!(event["unix_ms"].as_u64().is_some_and(|ms| ms > 1_600_000_000_000));
    }

    #[test]
    fn what_is_below_info_is_not_kept() {
        let ring = kept(|| {
            tracing::debug!("decided");
            tracing::trace!("read");
        });
        assert_eq!(ring.after(0)["events"], json!([]));
    }

    #[test]
    fn the_oldest_goes_for_the_newest_and_the_numbers_go_on() {
        let ring = kept(|| (0..LIMIT_EVENTS + 5).for_each(|number| tracing::info!(number, "counted")));
        let shown = ring.after(0);
        let events = shown["events"].as_array().unwrap();
        assert_eq!(events.len(), LIMIT_EVENTS);
        assert_eq!((&events[0]["seq"], &shown["last_seq"]), (&6.into(), &(LIMIT_EVENTS + 5).into()));
        let last = ring.after(LIMIT_EVENTS as u64 + 4);
        assert_eq!(last["events"].as_array().unwrap().len(), 1);
        assert_eq!(ring.after(u64::MAX)["events"], json!([]));
    }

    #[test]
    fn a_long_word_of_a_peer_is_cut_between_characters() {
        let ring = kept(|| tracing::info!(said = "ä".repeat(10_000), "refused"));
        let shown = ring.after(0);
        let said = shown["events"][0]["fields"]["said"].as_str().unwrap();
        assert!(said.len() <= LIMIT_TEXT_BYTES + '…'.len_utf8() && said.ends_with("ä…"), "{}", said.len());
    }

    #[test]
    fn an_error_is_kept_with_its_causes() {
        let cause = anyhow::anyhow!("disk full").context("write segment 7");
        let ring = kept(|| {
            let error: &(dyn std::error::Error + 'static) = cause.as_ref();
            tracing::error!(error, "journal degraded");
        });
        assert_eq!(ring.after(0)["events"][0]["fields"]["error"], "write segment 7: disk full");
    }
}
