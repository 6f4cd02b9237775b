//! What the example prints, and its checks.

use std::time::Duration;

/// Prints the story and counts the checks.
#[derive(Debug, Default)]
pub(crate) struct Narrator {
    chapter: u32,
    checks: u32,
    failed: u32,
}

/// A story is easier to read in lines of this length.
const WIDTH: usize = 100;

impl Narrator {
    /// Begins a chapter.
    pub(crate) fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        let heading = format!("{}. {title}", self.chapter);
        println!("\n{heading}\n{}", "-".repeat(heading.chars().count()));
    }

    /// A paragraph.
    pub(crate) fn tell(&self, text: &str) {
        let mut line = String::new();
        for word in text.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
                println!("{line}");
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        println!("{line}");
    }

    /// A line as it is, indented.
    pub(crate) fn show(&self, line: impl std::fmt::Display) {
        println!("    {line}");
    }

    /// Something that must hold.
    pub(crate) fn check(&mut self, holds: bool, what: impl std::fmt::Display) {
        self.checks += 1;
        if holds {
            println!("  ✓ {what}");
        } else {
            self.failed += 1;
            println!("  ✗ FAILED: {what}");
        }
    }

    pub(crate) const fn all_hold(&self) -> bool {
        self.failed == 0
    }

    pub(crate) const fn checks(&self) -> u32 {
        self.checks
    }

    pub(crate) const fn failed(&self) -> u32 {
        self.failed
    }
}

/// 1234567 as 1,234,567.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in a unit that suits them.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{} B", grouped(bytes)),
        10_000..10_000_000 => format!("{:.1} KB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// A time in a unit that suits it.
pub(crate) fn time(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 0.001 => format!("{:.0} µs", seconds * 1e6),
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}

/// So many per second.
pub(crate) fn rate(count: u64, duration: Duration) -> String {
    format!("{}/s", grouped((count as f64 / duration.as_secs_f64().max(1e-6)) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([7, 1_000, 1_234_567].map(grouped), ["7", "1,000", "1,234,567"]);
        assert_eq!([512, 20_000, 12_345_678].map(size), ["512 B", "20.0 KB", "12.3 MB"]);
        assert_eq!(time(Duration::from_micros(2_500)), "2 ms");
        assert_eq!(rate(1_000, Duration::from_millis(500)), "2,000/s");
    }
}
