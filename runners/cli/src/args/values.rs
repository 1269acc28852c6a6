//! How numbers and times are read.

use std::str::FromStr;
use std::time::Duration;

/// A whole number that fits its type.
pub(super) fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    let least = if "0".parse::<T>().is_ok() { 0 } else { 1 };
    text.parse().map_err(|_| format!("give a whole number of {least} or more, below 2^{}", 8 * size_of::<T>()))
}

/// A time limit in seconds, fractions included.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    const MAX: f64 = 86_400.0;
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= MAX => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("give seconds above 0 and up to {MAX}")),
    }
}
