//! Kubernetes quantities: `250m`, `1.5`, `64Mi`, `1e3`. Owns their grammar and rounding, nothing else.

use std::fmt;

use serde::{Deserialize, Deserializer};

const NANO: i128 = 1_000_000_000;

/// A non-negative amount, exact to one billionth of its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Quantity {
    nano: i128,
}

impl Quantity {
    /// Parses `<decimal>[suffix]`; suffixes: n u m k M G T P E, Ki Mi Gi Ti Pi Ei, e<exp>, E<exp>.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let bad = || {
            format!("{text:?} is not a quantity: write a number with a suffix such as 250m, 1.5, 64Mi, 2G")
        };
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 30 {
            return Err(bad());
        }
        let digits: i128 = format!("{whole}{fraction}").parse().map_err(|_| bad())?;
        let (factor, exponent) = scale(suffix).ok_or_else(bad)?;
        // digits * factor * 10^power, in nano; rounded up like Kubernetes does.
        let fraction_digits = i32::try_from(fraction.len()).map_err(|_| bad())?;
        let power = exponent + 9 - fraction_digits;
        let scaled = digits.checked_mul(factor).ok_or_else(bad)?;
        let nano = if power >= 0 {
            10_i128.checked_pow(power.unsigned_abs()).and_then(|p| scaled.checked_mul(p)).ok_or_else(bad)?
        } else {
            10_i128.checked_pow(power.unsigned_abs()).map_or(1, |p| ceil(scaled, p))
        };
        if nano / NANO > i128::from(i64::MAX) { Err(bad()) } else { Ok(Self { nano }) }
    }

    /// Thousandths, rounded up: milli-CPUs.
    pub(crate) fn milli(self) -> i64 {
        i64::try_from(ceil(self.nano, 1_000_000)).unwrap_or(i64::MAX)
    }

    /// Whole units, rounded up: bytes.
    pub(crate) fn units(self) -> i64 {
        i64::try_from(ceil(self.nano, NANO)).unwrap_or(i64::MAX)
    }
}

/// Factor and power of ten of a suffix.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    Some(match suffix {
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "" => (1, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (-30..=30).contains(&exponent).then_some((1, exponent))?
        }
    })
}

fn ceil(value: i128, by: i128) -> i128 {
    value / by + i128::from(value % by != 0)
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity such as 250m or 64Mi")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
                Quantity::parse(text).map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::Quantity;

    #[test]
    fn suffixes_and_rounding() {
        let milli = |text: &str| Quantity::parse(text).unwrap().milli();
        let units = |text: &str| Quantity::parse(text).unwrap().units();
        assert_eq!(milli("250m"), 250);
        assert_eq!(milli("1.5"), 1500);
        assert_eq!(milli(".5"), 500);
        assert_eq!(milli("1u"), 1, "rounded up");
        assert_eq!(milli("100n"), 1);
        assert_eq!(milli("0"), 0);
        assert_eq!(units("64Mi"), 64 << 20);
        assert_eq!(units("0.5Gi"), 512 << 20);
        assert_eq!(units("1k"), 1000);
        assert_eq!(units("12e3"), 12_000);
        assert_eq!(units("12E3"), 12_000);
        assert_eq!(units("1E"), 1_000_000_000_000_000_000);
        assert_eq!(units("1500m"), 2);
        assert_eq!(units("128974848"), 128_974_848);
        assert_eq!(units("1e-20"), 1);
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in
            ["", "m", "-1", "+1", "1.2.3", "64mb", "64 Mi", "1e", "1e99", "9Ei", "100E", "0x10", "NaN", "inf"]
        {
            let error = Quantity::parse(text).expect_err(text);
            assert!(error.contains("not a quantity"), "{error}");
        }
    }
}
