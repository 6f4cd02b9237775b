//! A filter's call into WebAssembly, beside the same filter natively.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tidemill_bench_filter::keeps;
use tidemill_client::{BatchBuilder, BuilderOptions, RecordBatch, Timestamp};
use tidemill_cluster_tests::{plugins, tidemill_binary};
use tidemill_hosting::{
    BatchPlace, Filter, Hosting, HostingConfig, Kept, Lane, PluginKind, PluginPlan, WorkerCommand,
};
use tidemill_protocol::record_batch::BatchLimits;

use super::{Bench, Family, Measured};
use crate::Outcome;
use crate::legs::{Leg, Sample, interleave};
use crate::report::Row;
use crate::work::Values;

const RECORD_BYTES: usize = 100;
const RECORDS: usize = 1_000;
/// Batches that are filtered in turn.
const BATCHES: usize = 64;
/// Of the first bytes' 256 values, those below this pass: about 1 %.
const BELOW: u8 = 3;
const PLUGIN: &str = "bench-filter";
/// Batches between two looks at the clock.
const BATCHES_PER_LOOK: usize = 16;

pub(crate) const CALL: Family = Family {
    name: "wasm",
    about: "a filter in WebAssembly, beside the same filter natively",
    by_default: true,
    seconds: |scale| scale.seconds(2),
    disk_bytes: |_| 1 << 30,
    run: |bench| call(bench).boxed(),
};

async fn call(bench: Bench) -> Outcome<Measured> {
    let leg = bench.scale.leg;
    let filter = &filter(bench.dir.join("hosting")).await?;
    let batches = &batches()?;
    same_answers(filter, batches).await?;
    let legs = [
        Leg::new("WebAssembly", move |_| async move {
            let (begun, mut count) = (Instant::now(), 0_u64);
            while begun.elapsed() < leg {
                for batch in batches.iter().cycle().take(BATCHES_PER_LOOK) {
                    std::hint::black_box(in_wasm(filter, batch).await?);
                    count += RECORDS as u64;
                }
            }
            Ok(Sample::of("Wasm ns", begun.elapsed().as_nanos() as f64 / count as f64))
        }),
        Leg::new("native", move |_| async move {
            let (begun, mut count) = (Instant::now(), 0_u64);
            while begun.elapsed() < leg {
                for batch in batches.iter().cycle().take(BATCHES_PER_LOOK) {
                    std::hint::black_box(native(batch)?);
                    count += RECORDS as u64;
                }
            }
            Ok(Sample::of("native ns", begun.elapsed().as_nanos() as f64 / count as f64))
        }),
    ];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let row = "Wasm filter, 100 B records in batches of 1,000: ns per record over native";
    let over = runs.each(|of| of("Wasm ns") - of("native ns"))?;
    Ok(Measured { rows: vec![Row::at_most(row, "ns", 25.0, over)], notes: runs.notes() })
}

/// The filter as a broker has it: compiled in a child process, under its limits, polled where it is called.
async fn filter(dir: PathBuf) -> Outcome<Filter> {
    std::fs::create_dir_all(&dir)?;
    let hosting = Hosting::start(HostingConfig {
        artifacts_dir: dir.join("artifacts"),
        digests_file: dir.join("artifact-digests"),
        worker: WorkerCommand { program: tidemill_binary()?, args: vec!["compile-worker".into()] },
        call_time: Duration::from_millis(200),
        task_call_time: Duration::from_secs(10),
        memory_bytes_max: 1 << 30,
        compile_time: Duration::from_secs(120),
        compile_memory_bytes_max: 4 << 30,
        component_bytes_max: 64 << 20,
        log_bytes_max: 1 << 20,
        clock: Arc::new(|| Timestamp::new(1_700_000_000_000)),
    })?;
    let upload = hosting.check_upload(plugins::component(PLUGIN)?.into()).await?;
    let plan = PluginPlan {
        deployment: PLUGIN.to_owned(),
        deployment_id: None,
        digest: upload.digest,
        kind: PluginKind::Filter,
        config: BTreeMap::from([("below".to_owned(), BELOW.to_string())]),
        topics: vec!["bench".to_owned()],
        targets: Vec::new(),
        memory_bytes_max: 64 << 20,
    };
    Ok(hosting.filter(&plan).await?)
}

fn batches() -> Outcome<Vec<RecordBatch>> {
    let mut values = Values::new(RECORD_BYTES);
    let mut builder = BatchBuilder::new(BuilderOptions::default());
    let mut batches = Vec::new();
    for _ in 0..BATCHES {
        for number in 0..RECORDS {
            let timestamp = Timestamp::new(1_700_000_000_000 + i64::try_from(number)?);
            builder.append(timestamp, None, Some(values.next()), [])?;
        }
        batches.push(builder.build_batch()?);
    }
    Ok(batches)
}

/// From a stored batch to what goes on, through the plugin.
async fn in_wasm(filter: &Filter, batch: &RecordBatch) -> Outcome<Kept> {
    let place = BatchPlace { topic: 0, partition: 0 };
    let outcome = filter.apply(batch, place, Timestamp::new(1_700_000_000_000), Lane::Subscribe).await;
    Ok(outcome.map_err(|failure| failure.message)?.kept)
}

/// From a stored batch to what goes on, without a plugin.
fn native(batch: &RecordBatch) -> Outcome<Kept> {
    let records = batch.records(&BatchLimits::default())?;
    let mut bits = [0_u8; RECORDS.div_ceil(8)];
    for record in &records {
        let record = record?;
        if keeps(record.value, BELOW) {
            bits[record.ordinal as usize / 8] |= 1 << (record.ordinal % 8);
        }
    }
    let kept = records.filter(&bits, records.header().attributes.compression)?;
    Ok(kept.map_or(Kept::None, |batch| Kept::Some(batch.bytes().clone())))
}

/// A comparison of different things would say nothing.
async fn same_answers(filter: &Filter, batches: &[RecordBatch]) -> Outcome<()> {
    for batch in batches {
        if in_wasm(filter, batch).await? != native(batch)? {
            return Err("the filter answers otherwise in WebAssembly than natively".into());
        }
    }
    Ok(())
}
