//! Components that nothing names any more go; one that is being uploaded does not.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidemill_hostile as hostile;
use tidemill_hosting::*;

use crate::kit::*;

/// Names of what lies in a directory of the artifacts.
fn files(room: &Room, directory: &str) -> Vec<String> {
    let entries =
        std::fs::read_dir(room.directory.path().join("artifacts").join(directory)).expect("it is there");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
    names.sort();
    names
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn what_nothing_names_goes_with_what_was_compiled_of_it() {
    let room = Room::new();
    let (kept, gone) = (room.plugin(hostile::keep_all()).await, room.plugin(hostile::relay()).await);
    let unfinished = format!("{}.new", hex(&[7; 32]));
    std::fs::write(room.directory.path().join("artifacts/components").join(&unfinished), b"x")
        .expect("written");
    assert_eq!((files(&room, "components").len(), files(&room, "compiled").len()), (3, 2));
    let named = HashSet::from([kept.digest]);
    assert_eq!(room.hosting.let_go(|| None).await.expect("read"), 0, "who does not know does not name");
    assert_eq!(room.hosting.let_go(move || Some(named.clone())).await.expect("removed"), 2);
    assert_eq!(files(&room, "components"), [format!("{}.wasm", hex(&kept.digest))]);
    let compiled = files(&room, "compiled");
    assert!(compiled.len() == 1 && compiled[0].starts_with(&hex(&kept.digest)), "{compiled:?}");
    room.hosting.filter(&kept).await.expect("it opens");
    let lost = PluginPlan { kind: PluginKind::Consumer, ..gone };
    let error = room.hosting.validate(&lost).await.expect_err("it is gone");
    assert!(error.to_string().contains("upload the plugin again"), "{error}");
    // And it may come again.
    let again = room.plugin(hostile::relay()).await;
    assert_eq!(again.digest, lost.digest);
    room.hosting.validate(&lost).await.expect("it is there");
}

#[tokio::test]
async fn what_is_being_uploaded_stays_until_it_can_be_named() {
    let room = Room::new();
    let digest = room.plugin(hostile::keep_all()).await.digest;
    let none = || Some(HashSet::new());
    let (first, second) =
        (room.hosting.hold(digest).await.expect("held"), room.hosting.hold(digest).await.expect("held"));
    drop(first);
    assert_eq!(room.hosting.let_go(none).await.expect("read"), 0, "another upload of the same holds it");
    assert_eq!(files(&room, "components").len(), 1);
    drop(second);
    assert_eq!(room.hosting.let_go(none).await.expect("removed"), 1, "nobody holds it any more");
    assert!(files(&room, "components").is_empty());

    // Registered between two looks at what is named: it is asked again before anything goes.
    let digest = room.plugin(hostile::relay()).await.digest;
    let looks = AtomicUsize::new(0);
    let registered = move || match looks.fetch_add(1, Ordering::Relaxed) {
        0 => Some(HashSet::new()),
        _ => Some(HashSet::from([digest])),
    };
    assert_eq!(room.hosting.let_go(registered).await.expect("read"), 0);
    assert_eq!(room.hosting.let_go(none).await.expect("removed"), 1);
}
