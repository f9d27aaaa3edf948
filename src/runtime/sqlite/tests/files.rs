//! Files that are broken, strange, replaced.

use super::*;

#[test]
fn a_broken_file_is_moved_aside_and_said_so() {
    let folder = Folder::new();
    std::fs::write(folder.file(), b"no base ".repeat(1024)).unwrap();
    let one = side(&folder.file());
    one.set("a", "1", None, &[]);
    assert_eq!(one.get("a").as_deref(), Some("1"));
    assert_eq!(one.figure("recoveries"), 1);
    let said = one.notices.take();
    assert!(said.len() == 1 && said[0].contains("is broken"), "{said:?}");
    let aside = std::fs::read_dir(&folder.0).unwrap().flatten();
    assert_eq!(aside.filter(|one| one.path().to_string_lossy().contains("corrupt")).count(), 1);
}

#[test]
fn strangers_files_and_other_versions_are_refused_and_left_alone() {
    let folder = Folder::new();
    let theirs = Connection::open(folder.file()).unwrap();
    theirs.execute_batch("CREATE TABLE users(name)").unwrap();
    drop(theirs);
    let before = std::fs::read(folder.file()).unwrap();
    let refused = try_side(config(&folder.file()), ManualClock::starting_at(0));
    assert!(matches!(refused.map(drop), Err(OpenError::Unfit(why)) if why.contains("somebody")));
    assert_eq!(std::fs::read(folder.file()).unwrap(), before);

    let ours = folder.0.join("ours.db");
    side(&ours).set("a", "1", None, &[]);
    let versioned = Connection::open(&ours).unwrap();
    versioned.pragma_update(None, "user_version", 99).unwrap();
    drop(versioned);
    let refused = try_side(config(&ours), ManualClock::starting_at(0));
    assert!(matches!(refused.map(drop), Err(OpenError::Unfit(why)) if why.contains("99")));
}

#[test]
fn a_file_that_was_replaced_is_noticed() {
    let folder = Folder::new();
    let (one, other) = (side(&folder.file()), side(&folder.file()));
    one.set("a", "1", None, &[]);
    assert_eq!(other.get("a").as_deref(), Some("1"));
    other.near.put(&place("a"), Body::of(b"1"[..].into()), NEVER, boxed(&[]));
    std::fs::rename(folder.file(), folder.0.join("gone.db")).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(folder.0.join(format!("cache.db{suffix}")));
    }
    eventually(|| other.near.find(place("a").id()).is_none());
    eventually(|| one.get("a").is_none() && other.get("a").is_none());
    one.set("b", "2", None, &[]);
    assert_eq!(other.get("b").as_deref(), Some("2"));
}

#[test]
fn a_new_connection_to_another_file_takes_the_others_along() {
    // Without waiting for the watcher's look at the path.
    let folder = Folder::new();
    let one = side(&folder.file());
    one.set("a", "1", None, &[]);
    std::fs::rename(folder.file(), folder.0.join("gone.db")).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(folder.0.join(format!("cache.db{suffix}")));
    }
    drop(one.tier.0.connect().unwrap());
    one.set("b", "2", None, &[]);
    assert_eq!(side(&folder.file()).get("b").as_deref(), Some("2"));
}
