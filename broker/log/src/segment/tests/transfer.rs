//! Handing segments to another broker.

use super::super::frame::HEAD_BYTES;
use super::*;

fn transfer(pin: &SegmentPin, end: SegmentEnd, to: &Arc<SegmentFiles>, dir: &str) -> SegmentImport {
    let mut import = SegmentImport::begin(to, dir, KEY, CONFIG, end).unwrap();
    let mut chunk = vec![0; 777];
    loop {
        let at = import.received().unwrap();
        let count = pin.read_raw(end.base_offset, at, &mut chunk).unwrap();
        if count == 0 {
            return import;
        }
        import.write(at, &chunk[..count]).unwrap();
    }
}

#[test]
fn a_replica_made_from_pinned_segments_is_the_same() {
    let (storage, store) = fresh();
    let batches = fill(&store, 0, 100);
    let ends = store.sync().unwrap();
    let pin = store.pin(&ends).unwrap();
    // What is appended afterwards is not part of it.
    store.append(&[batch(300, 1, 1, 500)]).unwrap();

    let other = MemoryStorage::new();
    let files = files_on(other.clone());
    let segments = pin.ends().map(|end| transfer(&pin, *end, &files, "staging").finish().unwrap()).collect();
    let imported = PartitionEnds { segments };
    assert_eq!(imported, ends);
    other.create_dir_all(Path::new(DIR)).unwrap();
    for entry in other.list(Path::new("staging")).unwrap() {
        other.rename(&Path::new("staging").join(&entry.name), &Path::new(DIR).join(&entry.name)).unwrap();
    }
    let replica = open_at(&files, imported.clone()).unwrap();
    assert_eq!(read_all(&replica, 0, 900).unwrap(), joined(&batches));
    let replica_pin = replica.pin(&imported).unwrap();
    for end in &ends.segments {
        let base = end.base_offset;
        assert_eq!(pin.digest(base).unwrap(), replica_pin.digest(base).unwrap());
    }
    let sealed = ends.segments[0].base_offset.get();
    assert_eq!(storage.contents(&log_path(sealed)), other.contents(&log_path(sealed)));
}

#[test]
fn what_was_damaged_on_the_way_is_not_taken() {
    let (_, store) = fresh();
    fill(&store, 0, 30);
    let ends = store.sync().unwrap();
    let pin = store.pin(&ends).unwrap();
    for at in [3, 50, 100, 700] {
        let files = files_on(MemoryStorage::new());
        let mut import = transfer(&pin, ends.segments[0], &files, "staging");
        import.write(at, b"?").unwrap();
        assert!(matches!(import.finish(), Err(ReadError::Damaged(_))), "byte {at}");
    }
    let files = files_on(MemoryStorage::new());
    let end = SegmentEnd { digest: 1, ..ends.segments[0] };
    let Err(ReadError::Damaged(damage)) = transfer(&pin, end, &files, "staging").finish() else { panic!() };
    assert_eq!(damage.fault, FrameFault::OtherContents);
    let mut import = SegmentImport::begin(&files, "staging", KEY, CONFIG, end).unwrap();
    assert!(import.write(end.bytes - 1, b"ab").is_err(), "bytes beyond the described end");
}

#[test]
fn what_was_checked_while_it_came_is_checked_again_where_it_is_written_again() {
    let (_, store) = fresh();
    fill(&store, 0, 30);
    let ends = store.sync().unwrap();
    let pin = store.pin(&ends).unwrap();
    let end = ends.segments[0];
    let mut whole = vec![0; usize::try_from(end.bytes).unwrap()];
    assert_eq!(pin.read_raw(end.base_offset, 0, &mut whole).unwrap(), whole.len());
    for at in [0, 50, whole.len() / 2] {
        let files = files_on(MemoryStorage::new());
        let mut import = SegmentImport::begin(&files, "staging", KEY, CONFIG, end).unwrap();
        // Damaged where it was sound, and sound again where it was damaged: each is found as it is last.
        import.write(0, &whole).unwrap();
        import.write(at as u64, &[!whole[at]]).unwrap();
        let rest = at + 1;
        import.write(rest as u64, &whole[rest..]).unwrap();
        import.write(at as u64, &whole[at..]).unwrap();
        assert!(import.finish().is_ok_and(|found| found == end), "byte {at}");
    }
    for piece in [1, HEAD_BYTES - 1, HEAD_BYTES + 1, whole.len()] {
        let files = files_on(MemoryStorage::new());
        let mut import = SegmentImport::begin(&files, "staging", KEY, CONFIG, end).unwrap();
        for (number, bytes) in whole.chunks(piece).enumerate() {
            import.write((number * piece) as u64, bytes).unwrap();
        }
        // Resumed by somebody who has checked nothing of it.
        drop(import);
        let import = SegmentImport::begin(&files, "staging", KEY, CONFIG, end).unwrap();
        assert_eq!(import.received().unwrap(), end.bytes);
        assert!(import.finish().is_ok_and(|found| found == end), "pieces of {piece} bytes");
    }
}
