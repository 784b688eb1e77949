//! What is asked for when the metrics are read.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Values of one moment.
#[derive(Debug, Default)]
pub struct Readings {
    families: Vec<Readout>,
}

/// All values of one name.
#[derive(Debug)]
struct Readout {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    values: Vec<(Vec<(&'static str, String)>, f64)>,
}

impl Readings {
    /// Adds a value that goes up and down.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        value: f64,
    ) {
        self.add(MetricType::Gauge, (name, help), labels, value);
    }

    /// Adds a value that only grows while the process lives; `_total` is put behind its name.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        value: f64,
    ) {
        self.add(MetricType::Counter, (name, help), labels, value);
    }

    fn add(
        &mut self,
        kind: MetricType,
        (name, help): (&'static str, &'static str),
        labels: &[(&'static str, &str)],
        value: f64,
    ) {
        let labels = labels
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        match self.families.iter_mut().find(|family| family.name == name) {
            Some(family) => family.values.push((labels, value)),
            None => self.families.push(Readout {
                name,
                help,
                kind,
                values: vec![(labels, value)],
            }),
        }
    }
}

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Readout {
            name,
            help,
            kind,
            values,
        } in &self.families
        {
            let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
            for (labels, value) in values {
                let metric = family.encode_family(labels)?;
                if matches!(kind, MetricType::Counter) {
                    ConstCounter::new(*value).encode(metric)?;
                } else {
                    ConstGauge::new(*value).encode(metric)?;
                }
            }
        }
        Ok(())
    }
}
