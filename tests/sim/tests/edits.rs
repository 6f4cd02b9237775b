//! The bugs that are put back by changing the sources: their places must not get lost.

use std::fs;
use std::path::Path;

use tidemill_sim::EDITS;

#[test]
fn each_edit_has_its_place_in_the_sources() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let copy = std::env::temp_dir().join(format!("tidemill-edits-{}", std::process::id()));
    for edit in EDITS {
        for change in edit.changes {
            let copied = copy.join(change.file);
            fs::create_dir_all(copied.parent().unwrap()).unwrap();
            fs::copy(workspace.join(change.file), copied).unwrap();
        }
        edit.make(&copy).unwrap();
        for change in edit.changes {
            let (text, was) =
                [&copy, &workspace].map(|root| fs::read_to_string(root.join(change.file)).unwrap()).into();
            assert_ne!(text, was, "{}", edit.describe);
            assert!(!text.contains(change.before) && text.contains(change.after), "{}", edit.describe);
        }
        assert!(edit.make(&copy).is_err(), "made once: {}", edit.describe);
    }
    fs::remove_dir_all(&copy).unwrap();
}
