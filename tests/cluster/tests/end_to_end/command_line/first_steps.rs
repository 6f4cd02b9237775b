//! README's "First steps by hand" and what the plugin guide deploys after them, word for word.

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{Outcome, plugins, tidemill_binary};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::terminal::{Ran, at_home, run};
use crate::kit::PATIENCE;

const README: &str = include_str!("../../../../../README.md");
const GUIDE: &str = include_str!("../../../../../docs/plugin-guide.md");

/// What a step must lead to.
enum Expected {
    /// It builds what the tests were given: not here.
    Built,
    /// A broker that runs on.
    Broker,
    /// It ends well, and prints these.
    Prints(&'static [&'static str]),
    /// The same, once the broker has got so far: a reader takes longer to type it than the broker to do it.
    InTime(&'static [&'static str]),
}

use Expected::{Broker, Built, InTime, Prints};

/// A command by its beginning, and what it must lead to.
type Step = (&'static str, Expected);

/// README's commands, in its order. A step that is added there needs its line here.
const STEPS: [Step; 16] = [
    ("cargo install --locked --path broker/cli", Built),
    ("cargo xtask plugins", Built),
    ("tidemill dev", Broker),
    ("tidemill topic create plays", Prints(&["created topic plays with 3 partitions"])),
    ("tidemill produce plays", Prints(&["3 records"])),
    (
        "tidemill consume plays --from earliest --json",
        Prints(&["\"key\":\"ann\"", "\"key\":\"bob\"", "song_id"]),
    ),
    ("tidemill consume plays --from earliest --group royalties", Prints(&["\"user_id\":\"bob\""])),
    ("tidemill group describe royalties", Prints(&["plays", "HIGH WATERMARK"])),
    (
        "tidemill plugin upload target/plugins/components/json-filter.wasm",
        Prints(&["uploaded json-filter@1"]),
    ),
    ("tidemill consume plays --from earliest --filter json-filter", Prints(&["\"s-4\"", "2 records; "])),
    ("tidemill plugin upload target/plugins/components/count-by-field.wasm", Prints(&["count-by-field@1"])),
    ("tidemill topic create top-songs", Prints(&["created topic top-songs"])),
    ("tidemill deploy consumer plays-per-song", Prints(&["plays-per-song", "running"])),
    ("tidemill state get plays-per-song", InTime(&["total:\"s-17\""])),
    ("tidemill consume top-songs --from earliest", InTime(&["\"song_id\":\"s-17\"", "\"count\":"])),
    ("tidemill deployment describe plays-per-song", InTime(&["running", "plays 2/2", "records_in=3"])),
];

/// The guide's commands of "Binding it to a place".
const BINDING_STEPS: [Step; 13] = [
    ("tidemill plugin upload target/plugins/components/field-hash.wasm", Prints(&["field-hash@1"])),
    ("tidemill plugin upload target/plugins/components/json-filter.wasm", Prints(&["json-filter@1"])),
    ("tidemill plugin upload target/plugins/components/redact.wasm", Prints(&["redact@1"])),
    ("tidemill plugin upload target/plugins/components/count-by-field.wasm", Prints(&["count-by-field@1"])),
    ("tidemill topic create plays", Prints(&["topic plays is there, with 3 partitions"])),
    ("tidemill topic create top-songs", Prints(&["topic top-songs is there, with 1 partition\n"])),
    ("tidemill topic create plays-failed", Prints(&["plays-failed"])),
    ("tidemill deploy partitioner by-user", Prints(&["by-user", "running"])),
    ("tidemill deploy filter phones", Prints(&["json-filter@1"])),
    ("tidemill deploy filter no-mail", Prints(&["produce filter", "refused with their batch"])),
    ("tidemill deploy consumer plays-per-song-safe", Prints(&["dead-letter to plays-failed"])),
    ("tidemill consume plays --from earliest --filter phones", Prints(&["\"s-4\""])),
    ("tidemill consume plays --from earliest --filter json-filter", Prints(&["\"bob\""])),
];

/// The guide's commands about a shipped plugin that it deploys.
const ROUTING_STEPS: [Step; 5] = [
    ("tidemill plugin upload target/plugins/components/route-by-field.wasm", Prints(&["route-by-field@1"])),
    ("tidemill topic create phones", Prints(&["phones"])),
    ("tidemill topic create others", Prints(&["others"])),
    ("tidemill deploy consumer by-device", Prints(&["by-device", "pause"])),
    ("tidemill consume phones --from earliest", InTime(&["\"device\":\"phone\""])),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_steps_of_readme_work_word_for_word() -> Outcome<()> {
    Newcomer::new()?.follows(section(README, "First steps by hand"), &STEPS).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_plugin_guide_deploys_after_them_works_word_for_word() -> Outcome<()> {
    let mut newcomer = Newcomer::new()?;
    newcomer.follows(section(README, "First steps by hand"), &STEPS).await?;
    newcomer.follows(section(GUIDE, "Binding it to a place"), &BINDING_STEPS).await?;
    newcomer.follows(section(GUIDE, "The shipped plugins"), &ROUTING_STEPS).await
}

/// The lines of a page's section up to the next one.
fn section(page: &'static str, title: &str) -> &'static str {
    let (_, from) = page.split_once(&format!("\n## {title}\n")).expect("the page has the section");
    from.split("\n## ").next().unwrap_or(from)
}

/// The commands of the section's blocks: lines, with what continues them and what is fed to them.
fn commands(section: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let blocks = section.split("```sh\n").skip(1);
    for block in blocks.map(|block| block.split("```").next().unwrap_or(block)) {
        let mut lines = block.lines();
        while let Some(line) = lines.next() {
            let mut command = line.to_owned();
            let mut until = |command: &mut String, is_last: &dyn Fn(&str) -> bool| {
                for line in lines.by_ref() {
                    *command += &format!("\n{line}");
                    if is_last(line) {
                        break;
                    }
                }
            };
            if line.ends_with('\\') {
                until(&mut command, &|line| !line.ends_with('\\'));
            } else if let Some((_, end)) = line.split_once("<<'") {
                let end = end.trim_end_matches('\'').to_owned();
                until(&mut command, &|line| line == end);
            }
            if !command.trim().is_empty() {
                commands.push(command);
            }
        }
    }
    commands
}

/// Somebody with a shell who has built Tidemill and types what they read.
pub(crate) struct Newcomer {
    home: tempfile::TempDir,
    broker: Option<(Child, SocketAddr)>,
}

impl Newcomer {
    /// With what the commands that build would have left: the binary on the path, the components in target/.
    pub(crate) fn new() -> Outcome<Self> {
        let home = tempfile::tempdir()?;
        std::fs::create_dir_all(home.path().join("bin"))?;
        symlink(tidemill_binary()?, home.path().join("bin/tidemill"))?;
        std::fs::create_dir_all(home.path().join("target/plugins"))?;
        symlink(std::path::absolute(plugins::directory())?, home.path().join("target/plugins/components"))?;
        Ok(Self { home, broker: None })
    }

    /// Types each command of a section, which must lead to what is expected of it.
    async fn follows(&mut self, section: &str, steps: &[Step]) -> Outcome<()> {
        let commands = commands(section);
        assert_eq!(commands.len(), steps.len(), "there are other steps: {commands:#?}");
        for (command, (beginning, expected)) in commands.iter().zip(steps) {
            assert!(command.starts_with(beginning), "it says {command:?} where {beginning:?} is expected");
            let holds = |ran: &Ran, fragments: &[&str]| {
                let said = format!("{}{}", ran.stdout, ran.stderr);
                ran.code == 0 && fragments.iter().all(|fragment| said.contains(fragment))
            };
            match expected {
                Built => {}
                Broker => self.starts_a_broker(command).await?,
                Prints(fragments) => {
                    let ran = self.types(command).await?;
                    assert!(holds(&ran, fragments), "{command}: {ran:#?}");
                }
                InTime(fragments) => {
                    let newcomer = &*self;
                    let looks =
                        async || newcomer.types(command).await.ok().filter(|ran| holds(ran, fragments));
                    eventually(command, PATIENCE, looks).await?;
                }
            }
        }
        Ok(())
    }

    /// Runs a command to its end.
    pub(crate) async fn types(&self, command: &str) -> Outcome<Ran> {
        run(&mut self.shell(command)?, b"").await
    }

    /// Starts a broker in another terminal, on a free port, and waits until it says where it listens.
    pub(crate) async fn starts_a_broker(&mut self, command: &str) -> Outcome<()> {
        let (child, first, lines) = self.starts_with(command, &[("TIDEMILL_LISTEN", "127.0.0.1:0")]).await?;
        let address = first.strip_prefix("tidemill listens on ").and_then(|rest| rest.split(' ').next());
        let address = address.ok_or_else(|| format!("it said {first:?}"))?.parse()?;
        // Read on, so that it never waits for a reader.
        tokio::spawn(async move {
            let mut lines = lines;
            while let Ok(Some(_)) = lines.next_line().await {}
        });
        self.broker = Some((child, address));
        Ok(())
    }

    /// Starts a command that does not end, and answers the first line that it prints.
    pub(crate) async fn watches(&self, command: &str) -> Outcome<String> {
        self.starts_with(command, &[]).await.map(|(_, first, _)| first)
    }

    async fn starts_with(
        &self,
        command: &str,
        variables: &[(&str, &str)],
    ) -> Outcome<(Child, String, Lines<BufReader<ChildStdout>>)> {
        // The shell becomes the command, which so dies with its handle.
        let mut shell = self.shell(&format!("exec {command}"))?;
        shell.envs(variables.iter().copied());
        let mut child = shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("it has an output")?).lines();
        let first = tokio::time::timeout(PATIENCE, lines.next_line()).await??.ok_or("it ended")?;
        Ok((child, first, lines))
    }

    fn shell(&self, command: &str) -> Outcome<Command> {
        let mut shell = Command::new("sh");
        shell.args(["-ec", command]);
        at_home(&mut shell, self.home.path());
        let path = std::env::var("PATH")?;
        shell.env("PATH", format!("{}:{path}", self.home.path().join("bin").display()));
        // The one thing that a test must not take for itself: the port that everybody's broker is on.
        if let Some((_, address)) = &self.broker {
            shell.env("TIDEMILL_ADDRESS", address.to_string());
        }
        Ok(shell)
    }
}
