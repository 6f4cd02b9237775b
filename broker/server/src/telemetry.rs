//! Metrics of the process, in Prometheus' text format.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Bounds of latency histograms, in seconds.
const LATENCY_SECONDS: [f64; 12] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// How often samples are folded into their histograms: until then each takes memory.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Folds samples into histograms until it is dropped.
pub(crate) async fn upkeep(recorder: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        recorder.run_upkeep();
    }
}

/// The process's recorder: installed by the first broker of the process, shared by all.
pub(crate) fn recorder() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER
        .get_or_init(|| {
            let builder = PrometheusBuilder::new();
            let builder = builder
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &LATENCY_SECONDS)
                .unwrap_or_else(|_| PrometheusBuilder::new());
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            // Another recorder in this process keeps its place; then this handle renders nothing.
            if metrics::set_global_recorder(recorder).is_err() {
                tracing::debug!("the process has a metrics recorder already");
            }
            handle
        })
        .clone()
}
