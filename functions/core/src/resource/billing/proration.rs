//! What is given back of a period that ends early. Amounts are in the currency's smallest unit, as Stripe counts them (cents; yen),
//! moments in seconds since 1970.

/// A period that a charge pays for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period {
    /// When it begins.
    pub(super) start: i64,
    /// When it ends.
    pub(super) end: i64,
}

/// What is left of a payment for a period that ends at `moment` instead: its share of the seconds that are not used any more,
/// rounded to the nearest unit, a half upwards, which is to the customer's advantage.
pub(super) fn unused(paid: i64, period: Period, moment: i64) -> i64 {
    let Period { start, end } = period;
    if end <= start || paid <= 0 {
        return 0;
    }
    let left = i128::from(end) - i128::from(moment.clamp(start, end));
    let length = i128::from(end) - i128::from(start);
    let share = (2 * i128::from(paid) * left + length) / (2 * length);
    // No more than `paid`, which is an i64.
    i64::try_from(share).unwrap_or(paid)
}

/// What is still to be refunded of a charge: the unused share, and never more than was paid and not given back before.
pub(super) fn due(paid: i64, given_back: i64, period: Period, moment: i64) -> i64 {
    unused(paid, period, moment).min(paid - given_back).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn days(count: i64) -> Period {
        Period { start: 1_700_000_000, end: 1_700_000_000 + count * DAY }
    }

    #[test]
    fn months_of_every_length_are_shared_by_the_second() {
        for (length, used, expected) in [
            // 29.00 for a month
            (28, 7, 2175),
            (29, 7, 2200),
            (30, 7, 2223),
            (31, 7, 2245),
            (30, 15, 1450),
            (31, 30, 94),
            (365, 1, 2892),
        ] {
            let period = days(length);
            assert_eq!(unused(2900, period, period.start + used * DAY), expected, "{used} of {length} days");
        }
    }

    #[test]
    fn at_its_ends_all_is_left_and_nothing() {
        let period = days(30);
        assert_eq!(unused(19_900, period, period.start), 19_900);
        assert_eq!(unused(19_900, period, period.end), 0);
        // Clocks differ: a moment outside is the nearest one inside.
        assert_eq!(unused(19_900, period, period.start - 5), 19_900);
        assert_eq!(unused(19_900, period, period.end + 5), 0);
    }

    #[test]
    fn a_half_is_rounded_up_and_less_is_not() {
        let of_four = Period { start: 0, end: 4 };
        assert_eq!(unused(2, of_four, 3), 1, "half a unit");
        assert_eq!(unused(1, of_four, 3), 0, "a quarter");
        assert_eq!(unused(3, of_four, 3), 1, "three quarters");
        assert_eq!(unused(1, of_four, 2), 1, "half of the smallest unit, such as a yen");
    }

    #[test]
    fn nothing_is_left_of_nothing() {
        assert_eq!(unused(0, days(30), days(30).start), 0);
        assert_eq!(unused(-5, days(30), days(30).start), 0);
        assert_eq!(unused(100, Period { start: 7, end: 7 }, 7), 0);
        assert_eq!(unused(100, Period { start: 8, end: 7 }, 7), 0);
    }

    #[test]
    fn no_more_is_given_back_than_was_paid() {
        let period = days(30);
        let half = period.start + 15 * DAY;
        assert_eq!(due(2900, 0, period, half), 1450);
        assert_eq!(due(2900, 1000, period, half), 1450, "what was given back before leaves enough");
        assert_eq!(due(2900, 2000, period, half), 900);
        assert_eq!(due(2900, 2900, period, half), 0);
        assert_eq!(due(2900, 3000, period, half), 0);
    }

    #[test]
    fn large_amounts_do_not_overflow() {
        let century = days(36_500);
        assert_eq!(unused(i64::MAX, century, century.start), i64::MAX);
        assert!(unused(i64::MAX, century, century.start + DAY) < i64::MAX);
    }
}
