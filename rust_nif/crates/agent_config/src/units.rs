//! Durations, sizes and money as people write them.

/// "250ms", "20s", "5m", "1h", "7d" in milliseconds.
pub(crate) fn duration_ms(text: &str) -> Option<i64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let number: f64 = text[..at].parse().ok()?;
    let unit = match &text[at..] {
        "ms" => 1.0,
        "s" => 1000.0,
        "m" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    whole(number * unit)
}

/// "64KiB", "1GiB", "500MB" in bytes.
pub(crate) fn bytes(text: &str) -> Option<i64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let number: f64 = text[..at].parse().ok()?;
    let unit = match &text[at..] {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    whole(number * unit)
}

/// "1.00" dollars in micro-dollars.
pub(crate) fn micros(text: &str) -> Option<i64> {
    let (whole_part, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole_part.is_empty() || fraction.len() > 6 || !text.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let whole: i64 = whole_part.parse().ok()?;
    let fraction: i64 = format!("{fraction:0<6}").parse().ok()?;
    whole.checked_mul(1_000_000)?.checked_add(fraction)
}

fn whole(n: f64) -> Option<i64> {
    #[allow(clippy::cast_possible_truncation)]
    (n.is_finite() && (0.0..9e15).contains(&n)).then_some(n.round() as i64)
}
