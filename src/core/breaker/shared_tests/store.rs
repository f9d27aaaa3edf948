//! What the script of `runtime::redis::breakers` does, in nanoseconds.

use crate::core::breaker::{Answer, Report, SPAN, Want, Word};
use crate::core::clock::{Nanos, SECOND};

/// What it keeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    pub(super) generation: u64,
    word: Option<Word>,
    until: i64,
    by: Option<(usize, u64)>,
    pub(super) holder: Option<usize>,
    held: Nanos,
    wanted: Option<Nanos>,
    born: Option<Nanos>,
}

impl Store {
    fn tell(&mut self, generation: u64, word: Word, by: Option<(usize, u64)>, now: Nanos) {
        let left = if let Word::Open { left, .. } = word { left } else { 0 };
        let (word, until, born) = (Some(word), now as i64 + left, self.born);
        *self = Self { generation, word, until, by, born, ..Self::default() };
    }

    pub(super) fn carry_out(
        &mut self,
        me: usize,
        report: &Report,
        probe: Nanos,
        now: Nanos,
    ) -> Answer {
        let forgot = self.generation < report.basis && report.word.is_some();
        let mut taken = false;
        if let (Some(change), Some(word)) = (report.change, report.word) {
            let mine = Some((me, change.number));
            let mut holds = self.generation <= report.basis;
            if !holds && self.by != mine {
                let opens = matches!(word, Word::Open { .. });
                let by_hand = !opens && word != Word::Closed;
                holds = now - change.age > self.generation && (change.firm || opens);
                let ruled = matches!(self.word, Some(Word::ForcedOpen | Word::Disabled));
                let rests = matches!(self.word, Some(Word::Open { .. })) && self.until > now as i64;
                holds &= !(!by_hand && ruled || opens && rests);
            }
            taken = holds || self.by == mine;
            if self.by != mine && holds {
                self.tell(now.max(self.generation + 1).max(report.basis + 1), word, mine, now);
            }
        } else if let Some(word) = report.word {
            if forgot {
                self.tell(report.basis, word, None, now);
            } else if self.generation == 0 && report.lease == Want::Ask {
                self.tell(now, word, None, now);
            }
        }
        if forgot {
            self.born = Some(now);
        }
        let open = matches!(self.word, Some(Word::Open { .. }));
        let mut lease = false;
        match report.lease {
            Want::Ask | Want::Keep => {
                let current = self.generation == report.basis || taken;
                if !open && self.generation > 0 && self.generation <= report.basis {
                    self.generation = report.basis + 1;
                } else if open && current && self.until <= now as i64 {
                    let told = self.born.is_none_or(|born| born + SPAN <= now);
                    let free = self.held <= now && (report.lease == Want::Keep || told);
                    if self.holder == Some(me) || free {
                        lease = true;
                        (self.holder, self.held) = (Some(me), now + SPAN + probe);
                    } else if self.holder != Some(me) {
                        self.wanted = Some(now);
                    }
                }
            }
            Want::Back if self.holder == Some(me) => {
                (self.holder, self.held, self.wanted) = (None, 0, None);
            }
            Want::Back | Want::Nothing => {}
        }
        let word = self.word.map(|word| match word {
            Word::Open { relapses, .. } => Word::Open { left: self.until - now as i64, relapses },
            other => other,
        });
        let recent = self.wanted.is_some_and(|at| now - at < 2 * SECOND);
        Answer {
            generation: self.generation,
            word,
            taken,
            lease,
            probed: self.held > now,
            wanted: self.holder == Some(me) && recent,
        }
    }
}
