//! Logging: one line per event on standard error, in the shape the reader there understands. Text from peers may
//! contain anything, so every value is quoted and escaped: no peer can forge a line, a field or a terminal sequence.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::events::Events;

/// The `log-format` setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Whatever suits standard error.
    Auto,
    /// `ts=… level=… msg=… key=value`.
    Logfmt,
    /// One JSON object per line.
    Json,
    /// For people at a terminal.
    Pretty,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Format::Auto),
            "logfmt" => Ok(Format::Logfmt),
            "json" => Ok(Format::Json),
            "pretty" => Ok(Format::Pretty),
            _ => Err("is no log format".to_owned()),
        }
    }
}

/// The `loglevel` setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Every chunk.
    Trace,
    /// Every decision; Redis's `debug` and `verbose`.
    Debug,
    /// Every change of state; Redis's `notice`.
    Info,
    /// What is degraded; Redis's `warning`.
    Warn,
    /// What a person must act on.
    Error,
}

impl Level {
    fn filter(self) -> LevelFilter {
        match self {
            Level::Trace => LevelFilter::TRACE,
            Level::Debug => LevelFilter::DEBUG,
            Level::Info => LevelFilter::INFO,
            Level::Warn => LevelFilter::WARN,
            Level::Error => LevelFilter::ERROR,
        }
    }

    fn targets(self) -> Targets {
        // Libraries below us log what we say better ourselves.
        Targets::new().with_target("psyncd", self.filter()).with_default(self.filter().min(LevelFilter::WARN))
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "trace" => Ok(Level::Trace),
            "debug" | "verbose" => Ok(Level::Debug),
            "info" | "notice" => Ok(Level::Info),
            "warn" | "warning" => Ok(Level::Warn),
            "error" => Ok(Level::Error),
            _ => Err("is no log level".to_owned()),
        }
    }
}

/// Sends the process's events to standard error from here on, and those of any interest to `events` whatever the level.
/// To be called once.
pub fn init(format: Format, level: Level, events: Events) {
    let shape = match format {
        Format::Auto => Shape::of_stderr(),
        Format::Logfmt => Shape::Logfmt,
        Format::Json => Shape::Json,
        Format::Pretty => Shape::Pretty,
    };
    let (filter, handle) = reload::Layer::new(level.targets());
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = layer(shape, colours, io::stderr).with_filter(filter);
    let ring = events.with_filter(Targets::new().with_target("psyncd", LevelFilter::INFO));
    // Only a second call can fail, and then the first one's choice stands.
    if tracing_subscriber::registry().with(log).with(ring).try_init().is_ok() {
        let _ = SETTER.set(Box::new(move |level| drop(handle.modify(|filter| *filter = level.targets()))));
    }
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let what = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        tracing::error!(event = "panicked", at, what, "panicked");
    }));
}

/// Changes the level. Without effect where [`init`] was not called.
pub fn set_level(level: Level) {
    if let Some(set) = SETTER.get() {
        set(level);
    }
}

/// How to change the level of the process's one log.
static SETTER: OnceLock<Box<dyn Fn(Level) + Send + Sync>> = OnceLock::new();

/// What a line really looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Logfmt,
    /// Logfmt for journald, which keeps time and priority itself (sd-daemon(3)).
    Journal,
    Json,
    Pretty,
}

impl Shape {
    fn of_stderr() -> Shape {
        if io::stderr().is_terminal() {
            Shape::Pretty
        } else if is_journal() {
            Shape::Journal
        } else {
            Shape::Logfmt
        }
    }
}

/// Whether standard error is the stream JOURNAL_STREAM names: the variable is inherited by children whose standard
/// error goes elsewhere (systemd.exec(5)).
fn is_journal() -> bool {
    use std::os::unix::fs::MetadataExt;
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/dev/stderr").is_ok_and(|stderr| *stream == *format!("{}:{}", stderr.dev(), stderr.ino()))
}

fn layer<S, W>(shape: Shape, colours: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // A failed write must stay silent: reporting it on the same closed stream would panic.
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    match shape {
        Shape::Json => layer.json().flatten_event(true).with_target(false).with_span_list(false).boxed(),
        Shape::Pretty => layer.with_ansi(colours).fmt_fields(LineFields).event_format(Line(shape)).boxed(),
        Shape::Logfmt | Shape::Journal => {
            layer.with_ansi(false).fmt_fields(LineFields).event_format(Line(shape)).boxed()
        }
    }
}

/// Formats an event as one line of `key=value`.
struct Line(Shape);

impl<S> FormatEvent<S, LineFields> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, LineFields>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (name, priority, colour) = match *event.metadata().level() {
            tracing::Level::ERROR => ("error", 3, "31"),
            tracing::Level::WARN => ("warn", 4, "33"),
            tracing::Level::INFO => ("info", 6, "32"),
            tracing::Level::DEBUG => ("debug", 7, "34"),
            tracing::Level::TRACE => ("trace", 7, "35"),
        };
        match self.0 {
            Shape::Pretty if out.has_ansi_escapes() => {
                out.write_str("\x1b[2m")?;
                SystemTime.format_time(&mut out)?;
                write!(out, "\x1b[0m \x1b[{colour}m{name:>5}\x1b[0m ")?;
                write!(out, "\x1b[1m{}\x1b[0m", Escaped(&fields.message))?;
            }
            Shape::Pretty => {
                SystemTime.format_time(&mut out)?;
                write!(out, " {name:>5} {}", Escaped(&fields.message))?;
            }
            Shape::Journal => write!(out, "<{priority}>level={name} msg={}", Quoted(&fields.message))?,
            Shape::Logfmt | Shape::Json => {
                out.write_str("ts=")?;
                SystemTime.format_time(&mut out)?;
                write!(out, " level={name} msg={}", Quoted(&fields.message))?;
            }
        }
        out.write_str(&fields.rest)?;
        for span in ctx.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<LineFields>>() {
                out.write_str(fields)?;
            }
        }
        out.write_char('\n')
    }
}

/// Formats a span's fields the way [`Line`] formats an event's.
struct LineFields;

impl<'w> FormatFields<'w> for LineFields {
    fn format_fields<R: RecordFields>(&self, mut out: Writer<'w>, record: R) -> fmt::Result {
        let mut fields = Fields::default();
        record.record(&mut fields);
        out.write_str(&fields.rest)
    }
}

/// The message, and ` key=value` for each other field.
#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        self.record_str(field, &text);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(self.rest, " {}={}", field.name(), Quoted(value));
        }
    }
}

/// A value, in quotes if it would be misread without.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| !c.is_whitespace() && !matches!(c, '"' | '=' | '\\') && !is_unsafe(c);
        if !self.0.is_empty() && self.0.chars().all(plain) {
            return f.write_str(self.0);
        }
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                _ => write_safely(f, c)?,
            }
        }
        f.write_char('"')
    }
}

/// A text without quotes, on one line and without terminal sequences.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| write_safely(f, c))
    }
}

fn write_safely(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    match c {
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        c if is_unsafe(c) => write!(f, "\\u{:04x}", u32::from(c)),
        c => f.write_char(c),
    }
}

/// Characters that move the cursor, end the line for some reader, or turn the text around them.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn logged(shape: Shape, colours: bool, events: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::registry().with(layer(shape, colours, move || writer.clone()));
        tracing::subscriber::with_default(subscriber, events);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn under_the_journal_a_line_has_a_priority_and_no_time() {
        let line = logged(Shape::Journal, false, || tracing::warn!(replica = "10.0.0.1:6379", bytes = 5, "link lost"));
        assert_eq!(line, "<4>level=warn msg=\"link lost\" replica=10.0.0.1:6379 bytes=5\n");
    }

    #[test]
    fn logfmt_begins_with_the_time() {
        let line = logged(Shape::Logfmt, false, || tracing::info!(ready = true, "started"));
        assert!(line.starts_with("ts=20") && line.ends_with("Z level=info msg=started ready=true\n"), "{line}");
    }

    #[test]
    fn no_value_can_forge_a_line_a_field_or_a_colour() {
        let text = "x\nlevel=error \"a\\b\"\u{1b}[31m\u{202e}";
        let line = logged(Shape::Journal, false, || tracing::info!(said = text, none = "", "refused"));
        assert_eq!(
            line,
            "<6>level=info msg=refused said=\"x\\nlevel=error \\\"a\\\\b\\\"\\u001b[31m\\u202e\" none=\"\"\n"
        );
        let line = logged(Shape::Pretty, false, || tracing::info!("{text}"));
        assert_eq!(line.matches('\n').count(), 1);
        assert!(!line.contains('\u{1b}'));
    }

    #[test]
    fn the_fields_of_surrounding_spans_are_on_the_line() {
        let line = logged(Shape::Journal, false, || {
            let outer = tracing::info_span!("session", replica = "a b");
            let _entered = outer.enter();
            tracing::info!(why = "eof", "session ended");
        });
        assert_eq!(line, "<6>level=info msg=\"session ended\" why=eof replica=\"a b\"\n");
    }

    #[test]
    fn an_error_is_logged_with_its_causes() {
        let cause = anyhow::anyhow!("disk full").context("write segment 7");
        let line = logged(Shape::Journal, false, || {
            let error: &(dyn std::error::Error + 'static) = cause.as_ref();
            tracing::error!(error, "journal degraded");
        });
        assert!(line.contains("error=\"write segment 7: disk full\""), "{line}");
    }

    #[test]
    fn json_is_one_object_per_line() {
        let line = logged(Shape::Json, false, || tracing::info!(said = "a\nb", "refused"));
        let value: serde_json::Value = serde_json::from_str(line.trim_end()).unwrap();
        assert_eq!(
            (&value["message"], &value["said"], &value["level"]),
            (&"refused".into(), &"a\nb".into(), &"INFO".into())
        );
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn levels_take_redis_words_and_the_usual_ones() {
        for (text, level) in
            [("debug", Level::Debug), ("verbose", Level::Debug), ("notice", Level::Info), ("warning", Level::Warn)]
        {
            assert_eq!(text.parse(), Ok(level));
        }
        assert!("loud".parse::<Level>().is_err());
    }
}
