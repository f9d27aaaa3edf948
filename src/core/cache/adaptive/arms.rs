//! The policies among which the cache chooses, and how it tells which one is ahead.

use super::segments::Shape;

/// A way to use the segments.
struct Arm {
    window_percent: u32,
    margin: u32,
}

/// How many there are.
pub(super) const ARMS: usize = 4;

/// Pure recency, which is where a cache starts: that is what LLM traffic rewards.
pub(super) const RECENCY: usize = 0;

/// Frequency with a margin: for loops and scans. Of the frequencies of two blocks of a loop one
/// may always be a step ahead, and without the margin they would go in and out by turns.
const STEADY: usize = 3;

/// Measured on the traces of DESIGN §5: for every trace and size one of these four reaches the
/// best of exact LRU, moka and theine; any three of them leave one out.
const TABLE: [Arm; ARMS] = [
    Arm { window_percent: 100, margin: 0 },
    Arm { window_percent: 30, margin: 0 },
    Arm { window_percent: 1, margin: 0 },
    Arm { window_percent: 1, margin: 1 },
];

/// How every arm divides `capacity` entries.
pub(super) fn shapes(capacity: u32) -> [Shape; ARMS] {
    TABLE.map(|arm| Shape::new(capacity, arm.window_percent, arm.margin))
}

/// Lookups between two looks at the score.
const EPOCH: u32 = 32;

/// After how many times its shadow's capacity a lookup counts a third only.
const MEMORY: f32 = 10.0;

/// The capacity from which [`MEMORY`] is reckoned at least. Who answers comes in stretches, and
/// what remembers less than one round of a loop takes the arm whose stretch it is for the
/// better one: with 64 a cache of 64 entries changed the policy twice per round of `loop`.
const LEAST_CAPACITY: u32 = 256;

/// The least share of its hits by which an arm must lead.
const LEAD: f32 = 0.01;

/// By how many standard deviations an arm must lead the one that is followed.
///
/// Who is wrong with recency loses little and finds out soon; who is wrong with frequency may
/// lose most of the hits. With three throughout, a bad sample made one process of ten leave
/// recency on the Mooncake trace at 16,384 entries, for 3 to 10 % of the hits.
fn deviations(arm: usize, current: usize) -> f32 {
    match (arm, current) {
        (_, RECENCY) => 5.0,
        (RECENCY, _) => 3.0,
        _ => 4.0,
    }
}

/// What of the score remains when the arm changes: the new one has to prove itself.
const REMAINDER: f32 = 0.5;

/// Which lookups every arm answered, those of late most.
///
/// Two arms are compared by the lookups that only one of them answered, as
/// `McNemar`'s test does ("Note on the sampling error of the difference between
/// correlated proportions", Psychometrika 1947): the many lookups that all arms
/// answer say nothing about which is better. By their sums alone, on the sprite
/// and multi traces noise changed the policy dozens of times.
#[derive(Debug)]
pub(super) struct Score {
    /// Lookups by the set of arms that answered them.
    answered: [f32; 1 << ARMS],
    decay: f32,
    until_look: u32,
}

impl Score {
    pub(super) fn new(capacity: u32) -> Self {
        let mut score = Self { answered: [0.0; 1 << ARMS], decay: 0.0, until_look: EPOCH };
        score.resize(capacity);
        score
    }

    /// Adapts its memory to the capacity of the shadows.
    pub(super) fn resize(&mut self, capacity: u32) {
        self.decay = 1.0 - EPOCH as f32 / (MEMORY * capacity.max(LEAST_CAPACITY) as f32);
    }

    /// Notes which arms answered a lookup; true when it is time to look who leads.
    #[inline]
    pub(super) fn note(&mut self, answered: usize) -> bool {
        self.answered[answered] += 1.0;
        self.until_look -= 1;
        self.until_look == 0
    }

    /// Lookups that only `a` and only `b` answered.
    fn apart(&self, a: usize, b: usize) -> (f32, f32) {
        let mut only = (0.0, 0.0);
        for (set, count) in self.answered.iter().enumerate() {
            match ((set >> a) & 1, (set >> b) & 1) {
                (1, 0) => only.0 += count,
                (0, 1) => only.1 += count,
                _ => {}
            }
        }
        only
    }

    fn hits(&self, arm: usize) -> f32 {
        let sets = self.answered.iter().enumerate();
        sets.filter(|(set, _)| (set >> arm) & 1 == 1).map(|(_, count)| count).sum()
    }

    /// By how many lookups `arm` leads `current`, if that is more than noise.
    fn lead(&self, arm: usize, current: usize, deviations: f32) -> Option<f32> {
        let (ours, theirs) = self.apart(arm, current);
        let lead = ours - theirs;
        let noise = deviations * (ours + theirs).sqrt();
        (lead > 0.0 && lead >= noise && lead > LEAD * self.hits(arm)).then_some(lead)
    }

    /// Which arm to follow from here on.
    pub(super) fn choose(&mut self, current: usize) -> usize {
        let mut best = (current, 0.0);
        for arm in (0..ARMS).filter(|arm| *arm != current) {
            let lead = self.lead(arm, current, deviations(arm, current));
            if let Some(lead) = lead.filter(|lead| *lead > best.1) {
                best = (arm, lead);
            }
        }
        // What recency has left in the cache are bad incumbents, which frequency without a
        // margin spreads over; a few percent of the hits of multi1 hung on this.
        if current == RECENCY && best.0 != RECENCY && self.lead(STEADY, current, 0.0).is_some() {
            best.0 = STEADY;
        }
        let remainder = if best.0 == current { self.decay } else { REMAINDER };
        for count in &mut self.answered {
            *count *= remainder;
        }
        self.until_look = EPOCH;
        best.0
    }
}
