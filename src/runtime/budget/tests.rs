use std::fs;
use std::path::Path;

use super::*;
use crate::core::budget::{PERIODS, Period, Shortfall, Span};

const HOUR: Millis = 3_600_000;

/// A directory that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ferrogate-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("money.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn config(path: &Path) -> Config {
    let (budget, timezone) = ("llm".to_owned(), "UTC".to_owned());
    let busy = Duration::from_millis(250);
    Config { path: path.to_owned(), busy, budget, timezone, max_keys: 3 }
}

fn opened(config: Config) -> Arc<BudgetFile> {
    let file = BudgetFile::new(config).unwrap();
    file.enter().unwrap().open().unwrap();
    file
}

fn terms(hour: Millis, limit: u64) -> Terms {
    let span = Span { start: hour * HOUR, end: (hour + 1) * HOUR };
    Terms {
        limits: [Some(limit), None, None, None],
        spans: [span; PERIODS],
        thresholds: [None; PERIODS],
        hard: true,
    }
}

fn holder(key: &[u8]) -> Holder {
    Holder::new("llm", Some(&Key::new(key)), "somebody")
}

fn reserve(
    file: &BudgetFile,
    key: &[u8],
    hour: Millis,
    amount: u64,
) -> Result<Result<Entry, Shortfall>, Away> {
    let terms = terms(hour, 1_000);
    file.enter()?.with(&holder(key), hour * HOUR, &terms, |account| {
        account.reserve(&terms, amount, &mut Vec::new())
    })
}

fn used(file: &BudgetFile, key: &[u8], hour: Millis) -> u64 {
    let account = file.enter().unwrap().look(&holder(key), &terms(hour, 1_000)).unwrap();
    account.cells[Period::Hour as usize].used
}

#[test]
fn two_connections_spend_from_one_account() {
    let folder = Folder::new("budget-two");
    let [one, other] = [0, 1].map(|_| opened(config(&folder.file())));
    assert!(reserve(&one, b"k", 1, 600).unwrap().is_ok());
    assert_eq!(reserve(&other, b"k", 1, 500).unwrap().unwrap_err().used, 600);
    let entry = reserve(&other, b"k", 1, 400).unwrap().unwrap();
    let terms = terms(1, 1_000);
    let settle = |account: &mut Account| account.settle(&terms, &entry, 150, &mut Vec::new());
    one.enter().unwrap().with(&holder(b"k"), HOUR, &terms, settle).unwrap();
    assert_eq!((used(&one, b"k", 1), used(&other, b"k", 1)), (750, 750));
    drop((one, other));
    assert_eq!(used(&opened(config(&folder.file())), b"k", 1), 750);
}

#[test]
fn a_full_file_forgets_nobody_who_has_spent_and_does_not_go_back() {
    let folder = Folder::new("budget-full");
    let file = opened(config(&folder.file()));
    for key in [b"a", b"b", b"c"] {
        reserve(&file, key, 1, 10).unwrap().unwrap();
    }
    assert_eq!(reserve(&file, b"d", 1, 10), Err(Away::Full(2 * HOUR)));
    reserve(&file, b"d", 2, 10).unwrap().unwrap();
    assert_eq!(file.enter().unwrap().keys(), Ok(1));
    // "a" has been forgotten: whoever comes from the past is told where the present is.
    assert_eq!(reserve(&file, b"a", 1, 10), Err(Away::Behind(2 * HOUR)));
    assert_eq!(file.enter().unwrap().reset(None), Ok(true));
    reserve(&file, b"a", 1, 10).unwrap().unwrap();
}

#[test]
fn calendars_do_not_mix() {
    let folder = Folder::new("budget-calendars");
    let _file = opened(config(&folder.file()));
    let other = Config { timezone: "Asia/Tokyo".into(), ..config(&folder.file()) };
    let refused = BudgetFile::new(other).unwrap().enter().unwrap().open();
    assert!(matches!(refused, Err(OpenError::Unfit(_))), "{refused:?}");
}

#[test]
fn what_the_file_was_not_told_is_paid_with_the_next_request() {
    let folder = Folder::new("budget-owed");
    let file = opened(config(&folder.file()));
    let over = reserve(&file, b"k", 1, 100).unwrap().unwrap();
    let under = reserve(&file, b"k", 1, 100).unwrap().unwrap();
    let away = folder.0.join("away");
    fs::rename(folder.file(), &away).unwrap();
    assert!(matches!(reserve(&file, b"k", 1, 1), Err(Away::Failed(_))));
    let inside = file.enter().unwrap();
    inside.owe(&holder(b"k"), &over, 130);
    inside.owe(&holder(b"k"), &under, 60);
    assert_eq!((inside.owed(), file.failures()), (2, 1));
    drop(inside);
    fs::rename(&away, folder.file()).unwrap();
    reserve(&file, b"other", 1, 1).unwrap().unwrap();
    assert_eq!((file.enter().unwrap().owed(), used(&file, b"k", 1)), (0, 190));
}

#[test]
fn a_locked_file_is_not_touched_for_a_second_but_to_settle_up() {
    let folder = Folder::new("budget-locked");
    let file = opened(config(&folder.file()));
    let entry = reserve(&file, b"k", 1, 100).unwrap().unwrap();
    let other = Connection::open(folder.file()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(reserve(&file, b"k", 1, 100), Err(Away::Locked));
    // As if that had just been.
    file.slot.lock().locked_until[Aim::Write as usize] = Nanos::MAX;
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(reserve(&file, b"k", 1, 100), Err(Away::Locked));
    assert_eq!(file.failures(), 1);
    assert_eq!(used(&file, b"k", 1), 100);
    file.enter().unwrap().owe(&holder(b"k"), &entry, 30);
    file.close(Duration::from_secs(1));
    drop(file);
    assert_eq!(used(&opened(config(&folder.file())), b"k", 1), 30);
}

#[test]
fn a_fork_closes_the_file_and_it_is_opened_again() {
    let folder = Folder::new("budget-fork");
    let file = opened(config(&folder.file()));
    reserve(&file, b"k", 1, 100).unwrap().unwrap();
    file.quiesce();
    assert!(file.slot.lock().connection.is_none());
    reserve(&file, b"k", 1, 100).unwrap().unwrap();
    assert_eq!(used(&file, b"k", 1), 200);
    file.close(Duration::from_secs(1));
    assert_eq!(reserve(&file, b"k", 1, 100), Err(Away::Ended));
}

#[test]
fn a_broken_file_is_not_opened() {
    let folder = Folder::new("budget-broken");
    let file = opened(config(&folder.file()));
    for key in 0..3_u8 {
        reserve(&file, &[key], 1, 100).unwrap().unwrap();
    }
    file.close(Duration::from_secs(1));
    drop(file);
    let mut bytes = fs::read(folder.file()).unwrap();
    assert!(bytes.len() > 8_192, "{}", bytes.len());
    bytes[4_096..].fill(0xA5);
    fs::write(folder.file(), &bytes).unwrap();
    let refused = BudgetFile::new(config(&folder.file())).unwrap().enter().unwrap().open();
    assert!(refused.is_err());
}
