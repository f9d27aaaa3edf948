//! A running sum of money or time that does not drift.

/// Neumaier's compensated sum (Neumaier 1974, "Rundungsfehleranalyse einiger
/// Verfahren zur Summation endlicher Summen").
///
/// Plain addition loses a cent in a hundred million calls of 0.0001 USD; this
/// carries the rounding error of every addition in a second float. All addends
/// here are ≥ 0, so the result is within one unit in the last place of the
/// true sum for up to 2⁵⁰ of them, in whatever order the threads came. A sum
/// beyond the largest float stays there instead of turning into infinity.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExactSum {
    sum: f64,
    lost: f64,
}

impl ExactSum {
    /// Adds a finite `value`.
    pub fn add(&mut self, value: f64) {
        let next = self.sum + value;
        if !next.is_finite() {
            *self = Self { sum: f64::MAX.copysign(next), lost: 0.0 };
            return;
        }
        // The larger operand survives the addition whole; the smaller one's
        // lost low bits are what comes back by subtracting in this order.
        self.lost += if self.sum.abs() >= value.abs() {
            (self.sum - next) + value
        } else {
            (value - next) + self.sum
        };
        self.sum = next;
    }

    /// The sum so far.
    #[must_use]
    pub fn value(&self) -> f64 {
        let total = self.sum + self.lost;
        if total.is_finite() { total } else { self.sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_million_tenths_of_a_cent_are_a_thousand_dollars() {
        let mut sum = ExactSum::default();
        let mut naive = 0.0;
        for _ in 0..1_000_000 {
            sum.add(0.001);
            naive += 0.001;
        }
        assert_eq!(sum.value().to_bits(), 1000.0_f64.to_bits());
        assert_ne!(f64::to_bits(naive), 1000.0_f64.to_bits(), "the naive sum drifts");
    }

    #[test]
    fn a_sum_beyond_the_largest_float_stays_finite() {
        let mut sum = ExactSum::default();
        sum.add(f64::MAX);
        sum.add(f64::MAX);
        sum.add(1.0);
        assert_eq!(sum.value().to_bits(), f64::MAX.to_bits());
    }

    proptest! {
        #![proptest_config(crate::core::cases(256, 10_000))]

        /// Micro-dollars are integers: their exact sum is known.
        #[test]
        fn sums_are_right_to_the_last_place(micros in prop::collection::vec(0u64..1_000_000_000_000, 0..500)) {
            let mut sum = ExactSum::default();
            for m in &micros {
                sum.add(*m as f64 * 0.5);
            }
            let exact = micros.iter().map(|m| u128::from(*m)).sum::<u128>() as f64 * 0.5;
            prop_assert!((sum.value() - exact).abs() <= exact * f64::EPSILON);
        }

        /// The order of arrival does not show beyond the last place.
        #[test]
        fn order_does_not_matter(values in prop::collection::vec(0.0f64..1e12, 1..200)) {
            let (mut there, mut back) = (ExactSum::default(), ExactSum::default());
            for v in &values { there.add(*v); }
            for v in values.iter().rev() { back.add(*v); }
            prop_assert!((there.value() - back.value()).abs() <= there.value() * f64::EPSILON);
        }
    }
}
