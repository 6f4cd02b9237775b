//! Compilation in a process of its own, and what comes of it on disk.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidemill_hostile as hostile;
use tidemill_wasm::*;

use crate::kit::{batch_of, context, engine, null_sink, tight};

struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn service(&self, worker: WorkerCommand, limits: CompileLimits) -> CompileService {
        let digests = FileDigestIndex::open(self.dir.path().join("digests")).unwrap();
        let cache = ArtifactCache::open(self.artifacts(), Arc::new(digests), 1 << 30).unwrap();
        CompileService::new(engine(), worker, limits, cache)
    }

    fn artifacts(&self) -> PathBuf {
        self.dir.path().join("artifacts")
    }

    fn artifact(&self) -> PathBuf {
        let mut files: Vec<_> =
            fs::read_dir(self.artifacts()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        files.remove(0)
    }
}

fn worker() -> WorkerCommand {
    WorkerCommand { program: env!("CARGO_BIN_EXE_tidemill-compile-worker").into(), args: vec![] }
}

/// A worker that can't compile: what needs no compilation still works with it.
fn no_worker() -> WorkerCommand {
    WorkerCommand { program: "/nonexistent/compiler".into(), args: vec![] }
}

fn shell(script: &str) -> WorkerCommand {
    WorkerCommand { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()] }
}

async fn assert_works(compiled: Compiled) {
    let pool = FilterPool::new(compiled, context(), tight(), null_sink(), 1).unwrap();
    assert_eq!(pool.apply(batch_of(3)).await.unwrap().selection, Selection::KeepAll);
}

fn keep_all() -> Bytes {
    hostile::keep_all().into()
}

#[tokio::test]
async fn a_plugin_is_compiled_once() {
    let world = World::new();
    let service = world.service(worker(), CompileLimits::default());
    assert_works(service.compile(keep_all()).await.unwrap()).await;
    assert_works(service.compile(keep_all()).await.unwrap()).await;
    let after_restart = world.service(no_worker(), CompileLimits::default());
    let compiled = after_restart.compile(keep_all()).await.unwrap();
    assert_eq!(compiled.digest(), *blake3::hash(&keep_all()).as_bytes());
    assert_works(compiled).await;
}

#[tokio::test]
async fn a_flipped_bit_is_never_loaded() {
    let world = World::new();
    let service = world.service(worker(), CompileLimits::default());
    service.compile(keep_all()).await.unwrap();
    let good = fs::read(world.artifact()).unwrap();
    let cached_only = world.service(no_worker(), CompileLimits::default());
    for at in 0..24 {
        let mut flipped = good.clone();
        let byte = good.len() / 24 * at + at;
        flipped[byte] ^= 1 << (at % 8);
        // What an attacker with a write to the artifacts could do, or a disk.
        fs::write(world.artifact(), &flipped).unwrap();
        let error = cached_only.compile(keep_all()).await.unwrap_err();
        assert!(matches!(error, CompileError::Worker(_)), "byte {byte} was believed: {error:?}");
        assert_works(service.compile(keep_all()).await.unwrap()).await;
    }
    assert_eq!(fs::read(world.artifact()).unwrap().len(), good.len(), "it was made again");
}

#[tokio::test]
async fn an_artifact_without_a_digest_is_not_loaded() {
    let world = World::new();
    world.service(worker(), CompileLimits::default()).compile(keep_all()).await.unwrap();
    fs::remove_file(world.dir.path().join("digests")).unwrap();
    let error = world.service(no_worker(), CompileLimits::default()).compile(keep_all()).await.unwrap_err();
    assert!(matches!(error, CompileError::Worker(_)));
    assert_works(world.service(worker(), CompileLimits::default()).compile(keep_all()).await.unwrap()).await;
}

#[tokio::test]
async fn the_compilers_own_words_reach_the_uploader() {
    let world = World::new();
    let service = world.service(worker(), CompileLimits::default());
    let error = service.compile(hostile::does_not_validate().into()).await.unwrap_err();
    let CompileError::Failed(reason) = &error else { panic!("{error:?}") };
    assert!(reason.contains("type mismatch"), "{reason}");
    assert!(fs::read_dir(world.artifacts()).unwrap().next().is_none());
}

#[tokio::test]
async fn what_is_no_plugin_does_not_reach_the_compiler() {
    let world = World::new();
    let service = world.service(no_worker(), CompileLimits::default());
    for component in [hostile::not_wasm(), hostile::wrong_world(), hostile::filter_that_emits()] {
        let error = service.compile(component.into()).await.unwrap_err();
        assert!(matches!(error, CompileError::Invalid(_)), "{error:?}");
    }
    let small =
        world.service(no_worker(), CompileLimits { component_bytes_max: 100, ..CompileLimits::default() });
    let bytes = keep_all().len();
    assert_eq!(
        small.compile(keep_all()).await.unwrap_err(),
        CompileError::TooLarge { bytes, bytes_max: 100 }
    );
}

#[tokio::test]
async fn a_compiler_without_memory_fails_alone() {
    let world = World::new();
    let limits = CompileLimits { memory_bytes_max: 1 << 20, ..CompileLimits::default() };
    let error = world.service(worker(), limits).compile(keep_all()).await.unwrap_err();
    assert!(matches!(error, CompileError::Failed(_)), "{error:?}");
}

#[tokio::test]
async fn a_compiler_that_hangs_is_killed() {
    let world = World::new();
    let note = world.dir.path().join("pid");
    let hangs = shell(&format!("echo $$ > {}; exec /bin/sleep 600", note.display()));
    let limits = CompileLimits { time: Duration::from_secs(2), ..CompileLimits::default() };
    let service = world.service(hangs, limits);
    assert_eq!(service.compile(keep_all()).await.unwrap_err(), CompileError::TimedOut { limit_ms: 2000 });
    let pid = fs::read_to_string(note).unwrap().trim().to_owned();
    for _ in 0..1000 {
        let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if status.is_empty() || status.contains(") Z ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("process {pid} is still there");
}

#[tokio::test]
async fn a_compiler_that_crashes_or_lies_is_noticed() {
    let world = World::new();
    let crash = world.service(shell("/bin/cat > /dev/null; kill -SEGV $$"), CompileLimits::default());
    let error = crash.compile(keep_all()).await.unwrap_err();
    assert!(matches!(&error, CompileError::Failed(reason) if reason.contains("signal")), "{error:?}");

    let nonsense = world.service(shell("/bin/cat"), CompileLimits::default());
    let error = nonsense.compile(keep_all()).await.unwrap_err();
    assert!(matches!(&error, CompileError::Worker(reason) if reason.contains("another engine")), "{error:?}");

    let limits = CompileLimits { artifact_bytes_max: 1000, ..CompileLimits::default() };
    let error = world.service(worker(), limits).compile(keep_all()).await.unwrap_err();
    assert!(matches!(&error, CompileError::Failed(reason) if reason.contains("larger than")), "{error:?}");
}

#[tokio::test]
async fn several_uploads_of_one_component_compile_it_once() {
    let world = World::new();
    let count = world.dir.path().join("count");
    let real = worker().program;
    let counted = shell(&format!("echo x >> {}; exec {}", count.display(), real.display()));
    let service = world.service(counted, CompileLimits::default());
    let all = futures::future::join_all((0..4).map(|_| service.compile(keep_all()))).await;
    for compiled in all {
        assert_works(compiled.unwrap()).await;
    }
    assert_eq!(fs::read_to_string(count).unwrap().lines().count(), 1);
}

#[tokio::test]
async fn slow_uploads_hold_nobody_up() {
    let world = World::new();
    world.service(worker(), CompileLimits::default()).compile(keep_all()).await.unwrap();
    let (busy, real) = (world.dir.path().join("busy"), worker().program);
    // The first compilation never ends.
    let first_hangs = shell(&format!(
        "/bin/mkdir {} 2> /dev/null && exec /bin/sleep 600; exec {}",
        busy.display(),
        real.display()
    ));
    let service = world.service(first_hangs, CompileLimits::default());
    let uploading = service.clone();
    let slow = tokio::spawn(async move { uploading.compile_upload(hostile::keep_even().into()).await });
    while !busy.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let soon = Duration::from_secs(20);
    let cached = tokio::time::timeout(soon, service.compile_upload(keep_all())).await;
    assert_works(cached.expect("what is in the cache needs no turn").unwrap()).await;
    let opened = tokio::time::timeout(soon, service.compile(hostile::redact_first().into())).await;
    opened.expect("what is opened does not wait for uploads").unwrap();
    assert!(!slow.is_finished());
    slow.abort();
}
