//! The metrics page, written anew at every scrape from what the components know: gauges are read, not kept up to
//! date, and counters live with those who count (see [`crate::counters`]). There are no statics and no registry, so two
//! daemons in one process do not mix and a replica that left leaves no series behind.
//!
//! ```
//! use psyncd::metrics::Exposition;
//! let mut page = Exposition::new();
//! page.gauge("psyncd_backlog_limit_bytes", "Bytes the backlog may hold.").with(&[("tier", "memory")], 1024u64);
//! assert!(page.render().ends_with("psyncd_backlog_limit_bytes{tier=\"memory\"} 1024\n"));
//! ```

use std::time::{Duration, SystemTime};

use prometheus::TextEncoder;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto;

use crate::counters::{Counter, CounterSet, Histogram, Label};

/// The metrics page while it is being written.
#[derive(Debug, Default)]
pub struct Exposition {
    families: Vec<proto::MetricFamily>,
}

/// One metric while its samples are being written.
#[derive(Debug)]
pub struct Family<'a> {
    family: &'a mut proto::MetricFamily,
}

/// The labels of one sample.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

impl Exposition {
    /// An empty page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a metric that may rise and fall.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.start(name, help, proto::MetricType::GAUGE)
    }

    /// Starts a metric that only rises; its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.start(name, help, proto::MetricType::COUNTER)
    }

    /// Starts a distribution.
    pub fn histogram(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.start(name, help, proto::MetricType::HISTOGRAM)
    }

    /// Adds `process_*`: memory, file descriptors, threads, processor time.
    pub fn process(&mut self) {
        self.families.extend(ProcessCollector::for_self().collect());
    }

    /// The page in Prometheus's text format, version 0.0.4. Metrics without a sample are left out.
    pub fn render(mut self) -> String {
        self.families.retain(|family| !family.get_metric().is_empty());
        TextEncoder::new().encode_to_string(&self.families).expect("named families with samples can be written")
    }

    fn start(&mut self, name: &'static str, help: &'static str, kind: proto::MetricType) -> Family<'_> {
        debug_assert!(name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')), "{name} is no metric name");
        debug_assert_eq!(
            name.ends_with("_total"),
            kind == proto::MetricType::COUNTER,
            "{name}: counters end in _total"
        );
        debug_assert!(!self.families.iter().any(|family| family.name() == name), "{name} is written twice");
        let mut family = proto::MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        self.families.push(family);
        Family { family: self.families.last_mut().expect("it was just pushed") }
    }
}

impl Family<'_> {
    /// Adds the only sample of a metric without labels.
    pub fn value(self, value: impl Amount) -> Self {
        self.with(&[], value)
    }

    /// Adds a sample. One whose labels are already there is left out, because Prometheus would refuse the whole page
    /// for the sake of two replicas that announce the same address.
    pub fn with(self, labels: Labels<'_>, value: impl Amount) -> Self {
        let mut metric = proto::Metric::default();
        match self.family.get_field_type() {
            proto::MetricType::COUNTER => {
                let mut counter = proto::Counter::default();
                counter.set_value(value.amount());
                metric.set_counter(counter);
            }
            proto::MetricType::GAUGE => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value.amount());
                metric.set_gauge(gauge);
            }
            kind => unreachable!("{kind:?} takes no plain value"),
        }
        self.push(labels, metric)
    }

    /// Adds a counter.
    pub fn count(self, labels: Labels<'_>, counter: &Counter) -> Self {
        self.with(labels, counter.get())
    }

    /// Adds every member of a set, zeros included, under one label.
    pub fn each<L: Label>(self, label: &'static str, set: &CounterSet<L>) -> Self {
        self.each_by(set, |member| [(label, member.as_str())])
    }

    /// Adds every member of a set under labels of its own: the way to have two labels without their nonsensical
    /// combinations.
    pub fn each_by<L: Label, const N: usize>(
        self,
        set: &CounterSet<L>,
        labels: impl Fn(L) -> [(&'static str, &'static str); N],
    ) -> Self {
        set.iter().fold(self, |family, (member, count)| family.with(&labels(member), count))
    }

    /// Adds one sample for each label value, as `value` tells it.
    pub fn per<L: Label, A: Amount>(self, label: &'static str, value: impl Fn(L) -> A) -> Self {
        L::ALL.iter().fold(self, |family, member| family.with(&[(label, member.as_str())], value(*member)))
    }

    /// Adds a state set: 1 for the state that holds, 0 for each other.
    pub fn state<L: Label>(self, label: &'static str, current: L) -> Self {
        self.per(label, |member: L| member.index() == current.index())
    }

    /// Adds a distribution.
    pub fn distribution(self, labels: Labels<'_>, histogram: &Histogram) -> Self {
        let read = histogram.read();
        let mut sample = proto::Histogram::default();
        sample.set_sample_count(read.count);
        sample.set_sample_sum(read.sum.as_secs_f64());
        let buckets = read.cumulative.into_iter().map(|(bound, count)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        });
        sample.set_bucket(buckets.collect());
        let mut metric = proto::Metric::default();
        metric.set_histogram(sample);
        self.push(labels, metric)
    }

    fn push(self, labels: Labels<'_>, mut metric: proto::Metric) -> Self {
        let same = |other: &proto::Metric| {
            other.get_label().len() == labels.len()
                && other
                    .get_label()
                    .iter()
                    .zip(labels)
                    .all(|(pair, (name, value))| pair.name() == *name && pair.value() == *value)
        };
        if self.family.get_metric().iter().any(same) {
            return self;
        }
        let pairs = labels.iter().map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        metric.set_label(pairs.collect());
        self.family.mut_metric().push(metric);
        self
    }
}

/// What can be the value of a sample. Times become seconds, truths 1 and 0.
pub trait Amount {
    /// The value itself.
    fn amount(self) -> f64;
}

impl Amount for f64 {
    fn amount(self) -> f64 {
        self
    }
}

// Prometheus has floats only; above 2^53 the last bits of an offset are lost to it.
impl Amount for u64 {
    fn amount(self) -> f64 {
        self as f64
    }
}

impl Amount for usize {
    fn amount(self) -> f64 {
        self as f64
    }
}

impl Amount for bool {
    fn amount(self) -> f64 {
        f64::from(u8::from(self))
    }
}

impl Amount for Duration {
    fn amount(self) -> f64 {
        self.as_secs_f64()
    }
}

impl Amount for SystemTime {
    fn amount(self) -> f64 {
        self.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::label! {
        /// Two words.
        enum Kind {
            /// One.
            Stream = "stream",
            /// Other.
            Snapshot = "snapshot",
        }
    }

    #[test]
    fn a_page_reads_as_prometheus_expects() {
        let received = CounterSet::<Kind>::new();
        received.add(Kind::Stream, 7);
        let mut page = Exposition::new();
        page.counter("psyncd_upstream_received_bytes_total", "Bytes received.").each("kind", &received);
        page.gauge("psyncd_link_state", "The state.").state("state", Kind::Snapshot);
        page.gauge("psyncd_wait_seconds", "A time.").value(Duration::from_millis(1500));
        assert_eq!(
            page.render(),
            "# HELP psyncd_upstream_received_bytes_total Bytes received.\n\
             # TYPE psyncd_upstream_received_bytes_total counter\n\
             psyncd_upstream_received_bytes_total{kind=\"stream\"} 7\n\
             psyncd_upstream_received_bytes_total{kind=\"snapshot\"} 0\n\
             # HELP psyncd_link_state The state.\n\
             # TYPE psyncd_link_state gauge\n\
             psyncd_link_state{state=\"stream\"} 0\n\
             psyncd_link_state{state=\"snapshot\"} 1\n\
             # HELP psyncd_wait_seconds A time.\n\
             # TYPE psyncd_wait_seconds gauge\n\
             psyncd_wait_seconds 1.5\n"
        );
    }

    #[test]
    fn two_labels_come_from_one_enum() {
        let mut page = Exposition::new();
        let set = CounterSet::<Kind>::new();
        page.counter("psyncd_resyncs_total", "Resyncs.")
            .each_by(&set, |why| [("kind", "full"), ("reason", why.as_str())]);
        assert!(page.render().contains("psyncd_resyncs_total{kind=\"full\",reason=\"stream\"} 0\n"));
    }

    #[test]
    fn a_distribution_is_cumulative_and_ends_at_infinity() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        for millis in [50, 100, 500, 5000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut page = Exposition::new();
        page.histogram("psyncd_resync_duration_seconds", "Times.").distribution(&[("kind", "full")], &histogram);
        let page = page.render();
        for line in [
            "psyncd_resync_duration_seconds_bucket{kind=\"full\",le=\"0.1\"} 2",
            "psyncd_resync_duration_seconds_bucket{kind=\"full\",le=\"1\"} 3",
            "psyncd_resync_duration_seconds_bucket{kind=\"full\",le=\"+Inf\"} 4",
            "psyncd_resync_duration_seconds_sum{kind=\"full\"} 5.65",
            "psyncd_resync_duration_seconds_count{kind=\"full\"} 4",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
        }
    }

    #[test]
    fn a_metric_without_samples_is_left_out() {
        let mut page = Exposition::new();
        page.gauge("psyncd_replica_online", "None is there.");
        assert_eq!(page.render(), "");
    }

    #[test]
    fn the_same_labels_twice_make_one_sample() {
        let mut page = Exposition::new();
        page.gauge("psyncd_replica_online", "Twins.")
            .with(&[("replica", "a:1")], 1u64)
            .with(&[("replica", "a:1")], 0u64);
        assert_eq!(page.render().matches("a:1").count(), 1);
    }

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut page = Exposition::new();
        page.gauge("psyncd_replica_online", "Odd.").with(&[("replica", "a\"} 9\nb\\")], true);
        assert!(page.render().ends_with("psyncd_replica_online{replica=\"a\\\"} 9\\nb\\\\\"} 1\n"));
    }

    #[test]
    fn the_process_is_on_the_page() {
        let mut page = Exposition::new();
        page.process();
        assert!(page.render().contains("process_resident_memory_bytes "));
    }
}
