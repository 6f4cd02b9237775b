//! `cargo xtask demo`, and what it tells its reader to try.

use tidemill_cluster_tests::Outcome;
use tokio::process::Command;

use crate::command_line::Newcomer;
use crate::kit::PATIENCE;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_check_holds_and_what_it_recommends_works() -> Outcome<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_demo")).kill_on_drop(true).output();
    let output = tokio::time::timeout(12 * PATIENCE, output).await??;
    let story = String::from_utf8(output.stdout)?;
    let said = format!("{story}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(!story.contains("FAILED") && story.contains("checks hold."), "{said}");
    assert!(story.contains("one consumer that was open all the time"), "{said}");
    assert!(story.matches("still without").count() == 2 && story.contains("read live   blake3"), "{said}");

    let (_, advice) = story.split_once("What to try next").ok_or("it ends with what to try next")?;
    let commands = advice.lines().filter_map(|line| line.strip_prefix("    "));
    let commands = commands.map(|line| line.split("  ").next().unwrap_or(line));
    let mut newcomer = Newcomer::new()?;
    let mut tried = 0;
    for command in commands {
        match command {
            // What these would build is there.
            _ if command.starts_with("cargo ") => continue,
            "tidemill dev" => newcomer.starts_a_broker(command).await?,
            _ if command.contains("--follow") => {
                assert!(newcomer.watches(command).await?.contains("s-17"), "{command}");
            }
            _ => {
                let ran = newcomer.types(command).await?;
                assert_eq!(ran.code, 0, "{command}: {ran:?}");
            }
        }
        tried += 1;
    }
    assert!(tried >= 6, "{advice}");
    Ok(())
}
