use super::*;

const DAY: Millis = 86_400_000;

fn day(number: i64) -> Span {
    Span { start: number * DAY, end: (number + 1) * DAY }
}

/// Terms with a limit a day, and one a month if there is one.
fn terms(at: i64, daily: u64, monthly: Option<u64>) -> Terms {
    let month = Span { start: at / 30 * 30 * DAY, end: (at / 30 + 1) * 30 * DAY };
    Terms {
        limits: [None, Some(daily), None, monthly],
        spans: [Span::default(), day(at), Span::default(), month],
        thresholds: [None; PERIODS],
        hard: true,
    }
}

fn used(account: &Account, period: Period) -> u64 {
    account.cells[period as usize].used
}

#[test]
fn several_limits_hold_together_or_not_at_all() {
    let (mut account, news) = (Account::new(1), &mut Vec::new());
    let terms = terms(3, 100, Some(120));
    account.reserve(&terms, 90, news).unwrap();
    let short = account.reserve(&terms, 40, news).unwrap_err();
    // Both are short; the month resets last.
    assert_eq!((short.period, short.limit, short.used), (Period::Month, 120, 90));
    assert_eq!((used(&account, Period::Day), used(&account, Period::Month)), (90, 90));
    assert_eq!(account.left(&terms), 10);
}

#[test]
fn what_is_spent_out_grants_nothing_more_however_little() {
    let (mut account, news) = (Account::new(1), &mut Vec::new());
    let terms = terms(3, 100, None);
    account.reserve(&terms, 100, news).unwrap();
    assert_eq!(account.reserve(&terms, 0, news).unwrap_err().refusal, Refusal::Exceeded);
    assert_eq!(account.reserve(&terms, 101, news).unwrap_err().refusal, Refusal::TooLarge);
}

#[test]
fn a_new_period_begins_at_zero_and_the_old_one_does_not_come_back() {
    let (mut account, news) = (Account::new(1), &mut Vec::new());
    account.reserve(&terms(3, 100, Some(300)), 100, news).unwrap();
    account.reserve(&terms(4, 100, Some(300)), 80, news).unwrap();
    // The clock has gone back a day: the day that is spent is the one that counts.
    assert!(account.reserve(&terms(3, 100, Some(300)), 30, news).is_err());
    account.reserve(&terms(3, 100, Some(300)), 20, news).unwrap();
    assert_eq!((used(&account, Period::Day), used(&account, Period::Month)), (100, 200));
}

#[test]
fn a_settlement_goes_back_where_it_came_from_and_over_use_counts_now() {
    let (mut account, news) = (Account::new(1), &mut Vec::new());
    let [first, second] = [3, 4].map(|at| terms(at, 100, Some(300)));
    let under = account.reserve(&first, 60, news).unwrap();
    let over = account.reserve(&first, 40, news).unwrap();
    account.settle(&second, &under, 10, news);
    assert_eq!((used(&account, Period::Day), used(&account, Period::Month)), (0, 50));
    account.settle(&second, &over, 45, news);
    assert_eq!((used(&account, Period::Day), used(&account, Period::Month)), (5, 55));
}

#[test]
fn a_settlement_of_what_was_reset_takes_nothing_from_others() {
    let (mut account, news) = (Account::new(1), &mut Vec::new());
    let terms = terms(3, 100, None);
    let old = account.reserve(&terms, 60, news).unwrap();
    account = Account::new(2);
    account.reserve(&terms, 50, news).unwrap();
    account.settle(&terms, &old, 0, news);
    assert_eq!(used(&account, Period::Day), 50);
    account.settle(&terms, &old, 70, news);
    assert_eq!(used(&account, Period::Day), 60);
}

#[test]
fn a_limit_that_came_later_counts_what_is_settled() {
    let (mut account, news) = (Account::new(1), &mut Vec::new());
    let entry = account.reserve(&terms(3, 100, None), 60, news).unwrap();
    let both = terms(3, 100, Some(300));
    account.settle(&both, &entry, 30, news);
    // What was reserved before there was a month is not in it, and does not come out of it.
    assert_eq!((used(&account, Period::Day), used(&account, Period::Month)), (30, 0));
}

#[test]
fn each_thing_is_told_once_a_period() {
    let (mut account, news) = (Account::new(1), &mut Vec::new());
    let mut terms = terms(3, 100, None);
    terms.thresholds[Period::Day as usize] = Some(80);
    account.reserve(&terms, 79, news).unwrap();
    assert!(news.is_empty());
    account.reserve(&terms, 1, news).unwrap();
    account.reserve(&terms, 21, news).unwrap_err();
    account.reserve(&terms, 21, news).unwrap_err();
    account.spend(&terms, 500, news);
    let told: Vec<_> = news.iter().map(|news| (news.exceeded, news.used)).collect();
    assert_eq!(told, [(false, 80), (true, 80)]);
    terms.spans[Period::Day as usize] = day(4);
    account.spend(&terms, 101, news);
    assert_eq!(news.len(), 4);
}

#[test]
fn soft_terms_refuse_nothing() {
    let (mut account, news) = (Account::new(1), &mut Vec::new());
    let terms = Terms { hard: false, ..terms(3, 100, None) };
    for _ in 0..3 {
        account.reserve(&terms, 500, news).unwrap();
    }
    assert_eq!((used(&account, Period::Day), news.len(), account.left(&terms)), (1_500, 1, 0));
}

#[test]
fn sums_stop_at_what_a_store_can_hold() {
    let (mut account, news) = (Account::new(1), &mut Vec::new());
    let terms = terms(3, 100, None);
    account.spend(&terms, u64::MAX, news);
    account.spend(&terms, u64::MAX, news);
    assert_eq!(used(&account, Period::Day), MOST);
}

#[test]
fn a_full_table_forgets_nobody_who_has_spent() {
    let (mut table, news) = (Table::new(3), &mut Vec::new());
    let today = terms(3, 100, None);
    for key in 0..3 {
        table.with(&key, 3 * DAY, |a| a.spend(&today, 50, news)).unwrap();
    }
    let full = table.with(&9, 3 * DAY + 1, |a| a.spend(&today, 50, news)).unwrap_err();
    assert_eq!(full.until, 4 * DAY);
    assert!((0..3).all(|key| used(&table.look(&key, &today), Period::Day) == 50));
    // Whose turn comes again counts for tomorrow.
    let tomorrow = terms(4, 100, None);
    table.with(&1, 4 * DAY, |a| a.spend(&tomorrow, 1, news)).unwrap();
    table.with(&9, 4 * DAY, |a| a.spend(&tomorrow, 2, news)).unwrap();
    assert_eq!(table.len(), 2);
    assert_eq!(used(&table.look(&1, &tomorrow), Period::Day), 1);
}

#[test]
fn who_has_spent_nothing_takes_no_room() {
    let (mut table, news) = (Table::new(1), &mut Vec::new());
    let terms = terms(3, 100, None);
    for key in 0..5 {
        let short = table.with(&key, 3 * DAY, |a| a.reserve(&terms, 101, news)).unwrap();
        assert_eq!(short.unwrap_err().refusal, Refusal::TooLarge);
        let entry = table.with(&key, 3 * DAY, |a| a.reserve(&terms, 50, news)).unwrap().unwrap();
        assert!(table.with(&9, 3 * DAY, |a| a.spend(&terms, 1, news)).is_err());
        table.with(&key, 3 * DAY, |a| a.settle(&terms, &entry, 0, news)).unwrap();
    }
    assert!(table.is_empty());
}
