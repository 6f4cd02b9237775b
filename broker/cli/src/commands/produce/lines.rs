//! Lines of a file or of standard input, which a thread of its own reads: whoever waits for the next one can do other things
//! meanwhile, and end though nothing comes.

use std::io::{BufRead, ErrorKind, Read};

use tokio::sync::mpsc;

/// No line is longer; a broker would take no record of this size.
pub(super) const LINE_BYTES_MAX: usize = 64 << 20;
/// So much is asked for at a time.
const READ_BYTES: usize = 1 << 20;
/// So many blocks are read ahead.
const BLOCKS_MAX: usize = 2;

/// Whole lines, one behind the other; the last of the input may lack its newline.
type Block = Vec<u8>;

/// Lines of an input, in order.
pub(super) struct Lines {
    blocks: mpsc::Receiver<std::io::Result<Block>>,
    block: Block,
    /// Where in the block the next line begins.
    next: usize,
}

impl Lines {
    /// Begins to read. The thread ends with the input, or with the first block that nobody wants; one that waits for input does not
    /// hold up the end of the process.
    pub(super) fn of(input: impl Read + Send + 'static) -> std::io::Result<Self> {
        let (sender, blocks) = mpsc::channel(BLOCKS_MAX);
        let thread = std::thread::Builder::new().name("input".to_owned());
        drop(thread.spawn(move || read_blocks(input, &sender))?);
        Ok(Self { blocks, block: Block::new(), next: 0 })
    }

    /// Waits until a line is there to be taken; `false` at the end of the input. Cancel-safe.
    pub(super) async fn ready(&mut self) -> std::io::Result<bool> {
        while self.next >= self.block.len() {
            let Some(block) = self.blocks.recv().await else { return Ok(false) };
            self.block = block?;
            self.next = 0;
        }
        Ok(true)
    }

    /// The next line, with the newline that ends it; nothing where none is ready. One without a newline is the last, or longer than a
    /// line may be.
    pub(super) fn take(&mut self) -> &[u8] {
        let begin = self.next;
        let mut rest = &self.block[begin..];
        // A slice in memory can't fail to be read.
        self.next += rest.skip_until(b'\n').unwrap_or_default();
        &self.block[begin..self.next]
    }
}

/// Reads to the end, the first error, a line that is too long, or until nobody listens.
fn read_blocks(mut input: impl Read, blocks: &mpsc::Sender<std::io::Result<Block>>) {
    let mut buffer = vec![0_u8; READ_BYTES];
    // A line whose end has not come yet.
    let mut begun = Vec::new();
    loop {
        let bytes = match input.read(&mut buffer) {
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return drop(blocks.blocking_send(Err(error))),
        };
        let is_at_end = bytes.is_empty();
        let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let (lines, rest) = bytes.split_at(complete);
        begun.extend_from_slice(lines);
        let is_too_long = lines.is_empty() && begun.len() + rest.len() >= LINE_BYTES_MAX;
        if is_too_long {
            begun.extend_from_slice(rest);
        }
        if is_at_end || is_too_long || !lines.is_empty() {
            let block = std::mem::take(&mut begun);
            if blocks.blocking_send(Ok(block)).is_err() || is_at_end || is_too_long {
                return;
            }
        }
        begun.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};
    use std::time::Duration;

    use super::*;

    async fn next(lines: &mut Lines) -> Option<String> {
        let is_there = lines.ready().await.expect("the input reads");
        is_there.then(|| String::from_utf8_lossy(lines.take()).into_owned())
    }

    async fn all(input: impl Read + Send + 'static) -> Vec<String> {
        let mut lines = Lines::of(input).expect("a thread");
        let mut taken = Vec::new();
        while let Some(line) = next(&mut lines).await {
            taken.push(line);
        }
        taken
    }

    #[tokio::test]
    async fn every_line_comes_once_and_in_order() {
        assert_eq!(all(Cursor::new("")).await, [""; 0]);
        assert_eq!(all(Cursor::new("\n")).await, ["\n"]);
        assert_eq!(all(Cursor::new("a\n\nbc")).await, ["a\n", "\n", "bc"]);
        // Over several reads.
        let numbers: Vec<String> = (0..300_000).map(|number| format!("{number}\n")).collect();
        assert!(all(Cursor::new(numbers.concat())).await == numbers);
        let long = format!("{}\nend\n", "x".repeat(3 * READ_BYTES));
        let lengths: Vec<usize> = all(Cursor::new(long)).await.iter().map(String::len).collect();
        assert_eq!(lengths, [3 * READ_BYTES + 1, 4]);
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_gathered_for_ever() {
        let mut lines = Lines::of(std::io::repeat(b'x')).expect("a thread");
        assert!(lines.ready().await.expect("it reads"));
        assert!((LINE_BYTES_MAX..=LINE_BYTES_MAX + READ_BYTES).contains(&lines.take().len()));
        assert!(!lines.ready().await.expect("nothing more comes"));
    }

    #[tokio::test]
    async fn a_line_is_there_before_the_next_one_comes() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let mut lines = Lines::of(reader).expect("a thread");
        writer.write_all(b"one\ntw").expect("written");
        assert_eq!(next(&mut lines).await.as_deref(), Some("one\n"));
        // Whoever has no patience loses nothing.
        assert!(tokio::time::timeout(Duration::from_millis(50), lines.ready()).await.is_err());
        writer.write_all(b"o\n").expect("written");
        assert_eq!(next(&mut lines).await.as_deref(), Some("two\n"));
        drop(writer);
        assert_eq!(next(&mut lines).await, None);
    }
}
