//! What commands say while no broker answers, and how long they wait.

use std::time::{Duration, Instant};

use tidemill_cluster_tests::Outcome;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::ChildStderr;

use super::terminal::{Terminal, run};
use crate::kit::PATIENCE;

/// The next line with these words on standard error.
async fn says(errors: &mut Lines<BufReader<ChildStderr>>, words: &str) -> Outcome<String> {
    let waiting = async {
        loop {
            let line = errors.next_line().await?.ok_or("it said nothing more")?;
            if line.contains(words) {
                return Ok(line);
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.map_err(|_| format!("it does not say '{words}'"))?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_or_writes_hears_that_the_broker_is_away_and_back() -> Outcome<()> {
    let mut terminal = Terminal::new().await?;
    terminal.done("topic create t").await?;
    let mut reader = terminal.begun("consume t --follow --from earliest")?;
    let mut read = BufReader::new(reader.stdout.take().ok_or("an output")?).lines();
    let mut reader_says = BufReader::new(reader.stderr.take().ok_or("errors")?).lines();
    let mut writer = terminal.begun("produce t")?;
    let mut input = writer.stdin.take().ok_or("an input")?;
    let mut writer_says = BufReader::new(writer.stderr.take().ok_or("errors")?).lines();
    input.write_all(b"before\n").await?;
    assert_eq!(read.next_line().await?.as_deref(), Some("before"));

    assert!(terminal.broker.stop().await?.success());
    input.write_all(b"behind\n").await?;
    for (errors, until) in [(&mut reader_says, "until it is back"), (&mut writer_says, "giving up after 1m")]
    {
        let line = says(errors, "waiting for an answer by way of 127.0.0.1:").await?;
        assert!(line.contains(until), "{line}");
    }
    terminal.broker.restart().await?;
    says(&mut reader_says, "answers again by way of").await?;
    says(&mut writer_says, "answers again by way of").await?;
    assert_eq!(tokio::time::timeout(PATIENCE, read.next_line()).await??.as_deref(), Some("behind"));
    drop(input);
    assert!(writer.wait().await?.success());
    reader.kill().await?;

    // Reading to the end gives up in the end; a request too.
    let mut reader = terminal.begun("consume t --follow --from earliest --timeout 3s")?;
    let mut reader_says = BufReader::new(reader.stderr.take().ok_or("errors")?).lines();
    let mut read = BufReader::new(reader.stdout.take().ok_or("an output")?).lines();
    assert_eq!(tokio::time::timeout(PATIENCE, read.next_line()).await??.as_deref(), Some("before"));
    assert!(terminal.broker.stop().await?.success());
    says(&mut reader_says, "error: no answer to what was asked by way of 127.0.0.1:").await?;
    assert_eq!(reader.wait().await?.code(), Some(3));
    let begun = Instant::now();
    let mut command = terminal.command()?;
    command.args(["topic", "list", "--timeout", "7s"]);
    let ran = run(&mut command, b"").await?;
    assert!(ran.code == 3 && begun.elapsed() >= Duration::from_secs(7), "{ran:?}");
    assert!(
        ran.stderr.contains("waiting for an answer by way of") && ran.stderr.contains("giving up after 7s"),
        "{ran:?}"
    );
    Ok(())
}
