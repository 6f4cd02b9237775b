//! What every storage must do, and what a crash may take.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use super::*;

fn p(path: &str) -> &Path {
    Path::new(path)
}

fn behaves_like_a_file_system(storage: &dyn Storage) {
    storage.create_dir_all(p("a/b")).unwrap();
    assert_eq!(storage.open(p("a/x"), OpenMode::WRITE).err().unwrap().kind(), io::ErrorKind::NotFound);
    let file = storage.open(p("a/b/x"), OpenMode::CREATE_NEW).unwrap();
    assert_eq!(
        storage.open(p("a/b/x"), OpenMode::CREATE_NEW).err().unwrap().kind(),
        io::ErrorKind::AlreadyExists
    );
    file.write_all_at(3, b"middle").unwrap();
    let (first, second) = (b"one".to_vec(), b"two".to_vec());
    file.write_all_vectored_at(9, &mut [IoSlice::new(&first), IoSlice::new(&[]), IoSlice::new(&second)])
        .unwrap();
    assert_eq!(file.size().unwrap(), 15);
    let mut bytes = [9; 15];
    file.read_exact_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"\0\0\0middleonetwo");
    assert_eq!(file.read_exact_at(1, &mut bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(file.read_at(100, &mut bytes).unwrap(), 0);
    file.set_len(4).unwrap();
    file.allocate(100).unwrap();
    assert_eq!(file.size().unwrap(), 100);
    file.sync_data().unwrap();
    file.start_writeback(0, 100).unwrap();
    file.advise_dont_need(0, 0).unwrap();
    storage.rename(p("a/b/x"), p("a/y")).unwrap();
    storage.sync_dir(p("a")).unwrap();
    storage.sync_dir(p("")).unwrap();
    storage.sync_all().unwrap();
    let names: Vec<_> =
        storage.list(p("a")).unwrap().into_iter().map(|e| (e.name, e.is_dir, e.len)).collect();
    assert_eq!(names, [("b".to_owned(), true, 0), ("y".to_owned(), false, 100)]);
    storage.remove(p("a/y")).unwrap();
    storage.remove_dir_all(p("a")).unwrap();
    storage.remove_dir_all(p("a")).unwrap();
    assert!(storage.list(p("")).unwrap().is_empty());
    assert!(storage.free_space().unwrap().free <= storage.free_space().unwrap().total);
    assert_eq!(
        storage.open(p("../out"), OpenMode::CREATE).err().unwrap().kind(),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(storage.open(p("/out"), OpenMode::CREATE).err().unwrap().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn disk_behaves() {
    let dir = tempfile::tempdir().unwrap();
    behaves_like_a_file_system(&DiskStorage::new(dir.path().join("new")).unwrap());
}

#[test]
fn memory_behaves() {
    behaves_like_a_file_system(&MemoryStorage::new());
}

#[test]
fn faulty_behaves_until_told_otherwise() {
    behaves_like_a_file_system(&FaultyStorage::new(Arc::new(MemoryStorage::new())));
}

fn synced_file(storage: &MemoryStorage, bytes: &[u8]) -> Arc<dyn StorageFile> {
    let file = storage.open(p("f"), OpenMode::CREATE).unwrap();
    file.write_all_at(0, bytes).unwrap();
    file.sync_data().unwrap();
    storage.sync_dir(p("")).unwrap();
    file
}

#[test]
fn a_crash_keeps_what_was_synced_and_may_lose_the_rest() {
    let storage = MemoryStorage::new();
    let file = synced_file(&storage, &[1; 2048]);
    file.write_all_at(1024, &[2; 2048]).unwrap();
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let bytes = storage.crash(seed).contents(p("f")).unwrap();
        assert_eq!(bytes[..1024], [1; 1024]);
        outcomes.insert(bytes);
    }
    assert!(outcomes.len() > 10, "all, nothing, and many torn forms; saw {}", outcomes.len());
    assert!(outcomes.iter().any(|bytes| bytes.len() == 2048 && bytes[1024..] == [1; 1024]));
    assert!(outcomes.iter().any(|bytes| bytes.len() == 3072 && bytes[1024..] == [2; 2048]));
    file.sync_data().unwrap();
    for seed in 0..50 {
        assert_eq!(storage.crash(seed).contents(p("f")).unwrap()[1024..], [2; 2048]);
    }
}

#[test]
fn a_kill_keeps_every_write() {
    let storage = MemoryStorage::new();
    synced_file(&storage, b"old").write_all_at(0, b"new").unwrap();
    let after = storage.kill();
    assert_eq!(after.contents(p("f")).unwrap(), b"new");
    assert!((0..50).any(|seed| after.crash(seed).contents(p("f")).unwrap() == b"old"));
}

#[test]
fn names_need_their_directory_synced() {
    let storage = MemoryStorage::new();
    synced_file(&storage, b"x");
    storage.rename(p("f"), p("g")).unwrap();
    let renamed = |seed| storage.crash(seed).contents(p("g")).is_some();
    assert!((0..50).any(renamed) && !(0..50).all(renamed));
    assert!((0..50).all(|seed| {
        let after = storage.crash(seed);
        after.contents(p("g")).is_some() != after.contents(p("f")).is_some()
    }));
    storage.sync_dir(p("")).unwrap();
    assert!((0..50).all(renamed));
}

#[test]
fn a_directory_that_is_made_anew_is_another() {
    let storage = MemoryStorage::new();
    let make = |name: &str, bytes: &[u8]| {
        storage.create_dir_all(p("d")).unwrap();
        let file = storage.open(&p("d").join(name), OpenMode::CREATE).unwrap();
        file.write_all_at(0, bytes).unwrap();
        file.sync_data().unwrap();
        storage.sync_dir(p("d")).unwrap();
    };
    make("old", b"x");
    make("both", b"x");
    storage.sync_dir(p("")).unwrap();
    // The removal becomes durable only with what comes after it.
    storage.remove_dir_all(p("d")).unwrap();
    make("both", b"y");
    make("new", b"y");
    storage.sync_dir(p("")).unwrap();
    for seed in 0..50 {
        let after = storage.crash(seed);
        assert_eq!(after.contents(p("d/both")).as_deref(), Some(&b"y"[..]), "seed {seed}");
        assert_eq!(after.contents(p("d/new")).as_deref(), Some(&b"y"[..]), "seed {seed}");
        assert_eq!(after.contents(p("d/old")), None, "seed {seed}");
    }
}

#[test]
fn direct_files_insist_on_alignment() {
    let storage = MemoryStorage::new();
    let file = storage.open(p("f"), OpenMode::CREATE.with_direct(true)).unwrap();
    let mut buffer = AlignedBuffer::zeroed(4096);
    buffer.fill(7);
    file.write_all_at(4096, &buffer).unwrap();
    assert!(file.write_all_at(1, &buffer).is_err());
    assert!(file.write_all_at(0, &buffer[1..]).is_err());
    file.read_exact_at(4096, &mut buffer).unwrap();
    assert!(MemoryStorage::new().without_direct().open(p("f"), OpenMode::CREATE.with_direct(true)).is_err());
}

#[test]
fn direct_io_works_on_a_real_disk_or_is_refused_at_open() {
    let dir = tempfile::tempdir().unwrap();
    let storage = DiskStorage::new(dir.path()).unwrap();
    match storage.open(p("f"), OpenMode::CREATE.with_direct(true)) {
        Ok(file) => {
            let mut buffer = AlignedBuffer::zeroed(8192);
            buffer.fill(3);
            file.write_all_at(4096, &buffer).unwrap();
            file.sync_data().unwrap();
            buffer.fill(0);
            file.read_exact_at(4096, &mut buffer).unwrap();
            assert!(buffer.iter().all(|byte| *byte == 3));
        }
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidInput),
    }
}

#[test]
fn faults_strike_the_chosen_call_once() {
    let memory = MemoryStorage::new();
    let storage = FaultyStorage::new(Arc::new(memory.clone()));
    let file = storage.open(p("f"), OpenMode::CREATE).unwrap();
    storage.on_nth(Some(Call::Write), 2, Effect::ShortWrite(2));
    file.write_all_at(0, b"....").unwrap();
    assert!(!storage.has_struck());
    assert_eq!(file.write_all_at(0, b"abcd").unwrap_err().raw_os_error(), Some(5));
    assert_eq!(memory.contents(p("f")).unwrap(), b"ab..");
    file.write_all_at(2, b"cd").unwrap();
    storage.on_nth(Some(Call::Read), 1, Effect::FlipBit(8));
    let mut bytes = [0; 4];
    file.read_exact_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"accd");
    storage.on_nth(None, 1, Effect::DiskFull);
    assert!(is_disk_full(&file.set_len(0).unwrap_err()));
    storage.on_nth(None, 2, Effect::Halt);
    file.sync_data().unwrap();
    assert!(file.sync_data().is_err() && storage.list(p("")).is_err());
    storage.heal();
    assert!(file.sync_data().is_ok());
    assert_eq!(storage.count(Call::Write), 3);
}
