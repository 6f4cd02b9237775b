//! What the tests share: an engine, batches, a sink and a task's host that write down what they are told.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tidemill_wasm::*;

pub(crate) const HEADERS_NONE: [u8; 1] = [0];

pub(crate) fn engine() -> Engine {
    static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
        Engine::new(EngineConfig { instances_max: 64, ..EngineConfig::default() }).expect("an engine")
    });
    ENGINE.clone()
}

pub(crate) fn compiled(component: &[u8]) -> Compiled {
    engine().compile_here(component).expect("it compiles")
}

/// Bounds that a test of a misbehaving plugin does not wait long for.
pub(crate) fn tight() -> PluginLimits {
    PluginLimits {
        memory_bytes_max: 8 << 20,
        call_time: Duration::from_millis(20),
        init_time: Duration::from_millis(50),
        answer_bytes_max: 4 << 20,
        emitted_bytes_per_call_max: 1 << 20,
        written_bytes_per_call_max: 1 << 20,
        timers_per_call_max: 100,
        ..PluginLimits::task()
    }
}

/// Records with these keys (`None` is null) and the value `value`, and no headers.
pub(crate) fn batch(keys: &[Option<&str>]) -> Batch {
    let mut data = b"value".to_vec();
    data.extend(HEADERS_NONE);
    let mut index = Vec::new();
    for (ordinal, key) in (0u32..).zip(keys) {
        let (at, length) = match key {
            None => (0, LENGTH_NULL),
            Some(key) => {
                let at = data.len() as u32;
                data.extend_from_slice(key.as_bytes());
                (at, key.len() as u32)
            }
        };
        for word in [at, length, 0, 5, 5, 1, ordinal, ordinal * 10] {
            index.extend_from_slice(&word.to_le_bytes());
        }
    }
    Batch {
        topic: 0,
        partition: 3,
        base_offset: 100,
        base_timestamp: 1_700_000_000_000,
        now: 1_700_000_000_500,
        data: Bytes::from(data),
        index: Bytes::from(index),
    }
}

pub(crate) fn batch_of(records: usize) -> Batch {
    batch(&vec![Some("key"); records])
}

#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) lines: Mutex<Vec<(LogLevel, String)>>,
    pub(crate) dropped: Mutex<u32>,
    pub(crate) counts: Mutex<Vec<(String, u64)>>,
}

impl GuestSink for Notes {
    fn enabled(&self, level: LogLevel) -> bool {
        level > LogLevel::Debug
    }

    fn log(&self, level: LogLevel, message: &str) {
        self.lines.lock().push((level, message.to_owned()));
    }

    fn lines_dropped(&self, count: u32) {
        *self.dropped.lock() += count;
    }

    fn count(&self, name: &str, value: u64) {
        self.counts.lock().push((name.to_owned(), value));
    }
}

pub(crate) fn null_sink() -> Arc<dyn GuestSink> {
    Arc::new(NullSink)
}

pub(crate) fn context() -> Context {
    Context {
        deployment: "test".to_owned(),
        topics: vec!["plays".to_owned()],
        targets: vec!["top-songs".to_owned()],
        config: vec![("key".to_owned(), "värde".to_owned())],
    }
}

pub(crate) fn filter(component: &[u8], limits: PluginLimits) -> FilterPool {
    FilterPool::new(compiled(component), context(), limits, null_sink(), 4).expect("a filter")
}

pub(crate) fn partitioner(component: &[u8], limits: PluginLimits) -> PartitionerPool {
    PartitionerPool::new(compiled(component), context(), limits, null_sink()).expect("a partitioner")
}

/// What a task did.
#[derive(Default)]
pub(crate) struct Effects {
    pub(crate) emitted: Vec<(u32, Records)>,
    pub(crate) state: std::collections::BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) timers: Vec<(Vec<u8>, i64)>,
    /// If set, reads fail with this.
    pub(crate) broken: Option<String>,
    /// If set, reads never come back.
    pub(crate) stuck: bool,
}

/// A task's host in memory.
#[derive(Clone, Default)]
pub(crate) struct MemoryHost(pub(crate) Arc<Mutex<Effects>>);

impl TaskHost for MemoryHost {
    fn emit(&mut self, target: u32, records: Records) -> Result<EmitAnswer, HostError> {
        if target > 0 {
            return Ok(EmitAnswer::NoSuchTarget);
        }
        self.0.lock().emitted.push((target, records));
        Ok(EmitAnswer::Taken)
    }

    fn read_state(&mut self, keys: Blobs, bytes_max: usize) -> BoxFuture<'_, Result<ReadAnswer, HostError>> {
        let effects = Arc::clone(&self.0);
        async move {
            tokio::task::yield_now().await;
            if effects.lock().stuck {
                std::future::pending::<()>().await;
            }
            let effects = effects.lock();
            if let Some(broken) = &effects.broken {
                return Err(HostError::Broker(broken.clone()));
            }
            let mut values = Blobs::new();
            for key in keys.iter().flatten() {
                assert!(values.push(effects.state.get(key).map(Vec::as_slice)));
                if values.data_bytes() > bytes_max {
                    return Ok(ReadAnswer::TooLarge);
                }
            }
            Ok(ReadAnswer::Values(values))
        }
        .boxed()
    }

    fn write_state(&mut self, keys: Blobs, values: Blobs, _ttl_ms: u64) -> Result<WriteAnswer, HostError> {
        let mut effects = self.0.lock();
        for (key, value) in keys.iter().flatten().zip(values.iter()) {
            match value {
                Some(value) => effects.state.insert(key.to_vec(), value.to_vec()),
                None => effects.state.remove(key),
            };
        }
        Ok(WriteAnswer::Taken)
    }

    fn scan_state(
        &mut self,
        start: Vec<u8>,
        _end: Option<Vec<u8>>,
        bounds: ScanBounds,
    ) -> BoxFuture<'_, Result<ScanAnswer, HostError>> {
        let mut page = StatePage::default();
        for (key, value) in self.0.lock().state.range(start..) {
            let bytes = page.keys.data_bytes() + page.values.data_bytes();
            page.more = bytes >= bounds.bytes_max || page.keys.len() >= bounds.entries_max as usize;
            if page.more {
                break;
            }
            assert!(page.keys.push(Some(key)) && page.values.push(Some(value)));
        }
        page.read_bytes = page.keys.data_bytes() + page.values.data_bytes();
        async { Ok(ScanAnswer::Page(page)) }.boxed()
    }

    fn set_timer(&mut self, key: Vec<u8>, at: i64) -> Result<(), HostError> {
        self.0.lock().timers.push((key, at));
        Ok(())
    }

    fn cancel_timer(&mut self, key: Vec<u8>) -> Result<(), HostError> {
        self.0.lock().timers.retain(|(set, _)| *set != key);
        Ok(())
    }
}

pub(crate) async fn task(
    component: &[u8],
    limits: PluginLimits,
    host: &MemoryHost,
) -> Result<ConsumerInstance, CallError> {
    let host = Box::new(host.clone());
    ConsumerInstance::start(compiled(component), context(), limits, null_sink(), host).await
}

/// CPU time of this thread, on which a test's calls run.
pub(crate) fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
