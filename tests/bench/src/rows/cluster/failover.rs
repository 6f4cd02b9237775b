//! The leader of a loaded partition is killed: how long until the next write is acknowledged.

use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt;
use tidemill_client::{BrokerId, Client, LeaderEpoch};
use tokio::time::timeout;

use super::role_changes::{Turn, second_of_day, turns_after};
use super::{CLUSTER_BYTES, RETURN_SECONDS, START_SECONDS};
use crate::Outcome;
use crate::broker::topic;
use crate::cluster::{Cluster, leader_of, others, settled, shard_of};
use crate::legs::number;
use crate::report::{Better, Row};
use crate::rows::{Bench, Family, Measured};
use crate::scale::Scale;
use crate::stats::Summary;
use crate::steady::{Acknowledged, Steady};

const TOPIC: &str = "failover";
const KILLS: usize = 50;
const KILLS_QUICK: usize = 8;
/// No more kills after this: the other rows want their time, too.
const BUDGET: Duration = Duration::from_secs(570);
/// Between the cluster's being well and the kill, at least; and at random up to half a second more, so that kills meet heartbeats at
/// all distances.
const PAUSE: Duration = Duration::from_millis(500);
/// Until a write is acknowledged again, or something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether the client knows of the new leader.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// For the look after the acknowledgement, where that came sooner.
const KNOWN_GRACE: Duration = Duration::from_millis(50);
/// A kill takes about so long, with all that is around it.
const KILL_SECONDS: f64 = 4.0 + RETURN_SECONDS;

pub(crate) const LEADER_KILLED: Family = Family {
    name: "failover",
    about: "the leader of a loaded partition is killed, again and again",
    by_default: true,
    seconds: |scale| START_SECONDS + (kills(scale) as f64 * KILL_SECONDS).min(BUDGET.as_secs_f64()),
    disk_bytes: |_| CLUSTER_BYTES,
    run: |bench| failover(bench).boxed(),
};

const fn kills(scale: &Scale) -> usize {
    if scale.quick { KILLS_QUICK } else { KILLS }
}

/// One kill, in seconds.
#[derive(Debug, Clone, Copy)]
struct Trial {
    /// From the kill until a record is acknowledged that was sent after it.
    total: f64,
    /// Until a follower stands for election.
    detect: f64,
    /// From then until one leads.
    elect: f64,
    /// From then until the client knows who leads.
    recover: f64,
    /// The rest: a stream to it, what was under way again, and the record itself.
    first_ack: f64,
}

async fn failover(bench: Bench) -> Outcome<Measured> {
    let cluster = Cluster::start(&bench.dir).await?;
    let client = cluster.client().await?;
    let topic = topic(&client, TOPIC, 1).await?;
    let mut load = Steady::start(&client, &topic).await?;
    let (begun, kills) = (Instant::now(), kills(&bench.scale));
    let (mut trials, mut unanswered, mut notes, mut failed) = (Vec::new(), 0, Vec::new(), 0_u64);
    for kill in 1..=kills {
        if begun.elapsed() > BUDGET {
            notes.push(format!("only {} of {kills} kills: the time was up", kill - 1));
            break;
        }
        match trial(&cluster, &client, &topic, &mut load, &mut failed).await {
            Ok(Killed::Answered(trial)) => {
                println!("  kill {kill} of {kills}: {}", shown(&trial));
                trials.push(trial);
            }
            Ok(Killed::Unanswered) => {
                let patience = PATIENCE.as_secs();
                println!("  kill {kill} of {kills}: no write was acknowledged within {patience} s");
                notes.push(format!(
                    "kill {kill}: no write was acknowledged within {patience} s; it counts as {patience} s"
                ));
                unanswered += 1;
            }
            Ok(Killed::LedNoMore) => {
                notes.push(format!("kill {kill} is left out: another broker led already"));
            }
            // Who writes gave up for good: no number says how bad that is.
            Ok(Killed::EndedLoad(error)) => return Err(error),
            // Between two kills. What was measured until then is worth something, and a row says how many kills that were.
            Err(error) if trials.len() + unanswered >= KILLS_QUICK => {
                notes.push(format!("ended at kill {kill} of {kills}: {error}"));
                break;
            }
            Err(error) => return Err(error),
        }
    }
    drop(load);
    notes.push(format!("{failed} records whose delivery failed"));
    measured(&trials, unanswered, notes)
}

fn shown(trial: &Trial) -> String {
    format!(
        "{} s; detect {}, elect {}, recover {}, first ack {}",
        number(trial.total),
        number(trial.detect),
        number(trial.elect),
        number(trial.recover),
        number(trial.first_ack)
    )
}

/// What all kills come to; after those that are `unanswered` nothing was acknowledged for as long as was waited, and the parts are of the
/// others.
fn measured(trials: &[Trial], unanswered: usize, mut notes: Vec<String>) -> Outcome<Measured> {
    let mut totals: Vec<f64> = trials.iter().map(|trial| trial.total).collect();
    totals.extend(std::iter::repeat_n(PATIENCE.as_secs_f64(), unanswered));
    let kills = totals.len();
    notes.push(format!("{kills} kills were measured; after {unanswered} of them no write was acknowledged"));
    if kills < KILLS {
        notes.push(format!("the rows that say {KILLS} kills are of {kills}"));
    }
    let counted = Summary::of(&[kills as f64]).ok_or("no kill was measured")?;
    let totals = quantiles(&totals)?;
    let mut rows = vec![
        Row::at_most(
            "leader of a loaded partition killed: time to the next acknowledged write over 50 kills, p50",
            "s",
            1.0,
            totals.0,
        ),
        Row::at_most("the same, p95", "s", 2.0, totals.1),
        Row::at_least("kills that these are of", "kills", KILLS as f64, counted),
    ];
    type Part = (&'static str, fn(&Trial) -> f64);
    let parts: [Part; 4] = [
        ("of that, detect: from the kill until a follower stands for election, p50", |trial| trial.detect),
        ("of that, elect: until one leads, p50", |trial| trial.elect),
        ("of that, recover: until the client knows of it, p50", |trial| trial.recover),
        ("of that, first ack: the rest, p50", |trial| trial.first_ack),
    ];
    for (name, of) in parts {
        let values: Vec<f64> = trials.iter().map(of).collect();
        let (p50, p95) = quantiles(&values)?;
        rows.push(Row::shown(name, "s", Better::Lower, p50));
        notes.push(format!("{name} {} s; p95 {} s", number(p50.median), number(p95.median)));
    }
    Ok(Measured { rows, notes })
}

/// p50 and p95, each with the least and the most.
fn quantiles(values: &[f64]) -> Outcome<(Summary, Summary)> {
    let p50 = Summary::of(values).ok_or("no kill was measured")?;
    let p95 = Summary { median: quantile(values, 0.95), ..p50 };
    Ok((p50, p95))
}

/// The least value that this share of all stays within.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// What came of a kill.
enum Killed {
    Answered(Trial),
    /// No write was acknowledged within [`PATIENCE`].
    Unanswered,
    /// None of the others was elected: the one that was killed did not lead any more.
    LedNoMore,
    /// The load came to its end.
    EndedLoad(Box<dyn std::error::Error + Send + Sync>),
}

/// Kills who leads, waits for the next acknowledgement, and brings it back.
async fn trial(
    cluster: &Cluster,
    client: &Client,
    topic: &str,
    load: &mut Steady,
    failed: &mut u64,
) -> Outcome<Killed> {
    settled(client).await?;
    tokio::time::sleep(PAUSE + Duration::from_millis(2 * u64::from(rand::random::<u8>()))).await;
    let shard = shard_of(client, topic).await?;
    let epoch = epoch_of(client, topic).await?.0;
    let leader = leader_of(&client.cluster_status().await?, shard)?;
    let mut read = Vec::new();
    for broker in others(leader) {
        read.push((broker, cluster.log(broker).await?.len()));
    }

    let (wall, killed) = (SystemTime::now(), Instant::now());
    cluster.kill(leader).await?;
    let gone = Instant::now();
    let mut watching = tokio::spawn(known(client.clone(), topic.to_owned(), epoch, BrokerId::new(leader)));
    let acknowledged = timeout(PATIENCE, next_sent_after(load, gone, failed)).await;
    let known_at = timeout(KNOWN_GRACE, &mut watching).await.ok().and_then(Result::ok).and_then(Result::ok);
    watching.abort();
    // Should that fail it is told after what was measured.
    let restarted = cluster.restart(leader).await;
    let acknowledged = match acknowledged {
        Err(_elapsed) => return Ok(Killed::Unanswered),
        Ok(Err(error)) => return Ok(Killed::EndedLoad(error)),
        Ok(Ok(acknowledged)) => acknowledged,
    };
    restarted?;

    let total = (acknowledged.at - killed).as_secs_f64();
    let mut turns = Vec::new();
    for (broker, before) in read {
        let log = cluster.log(broker).await?;
        turns.extend(turns_after(log.get(before..).unwrap_or_default(), shard, second_of_day(wall)));
    }
    let known_after = known_at.map(|at| at.saturating_duration_since(killed).as_secs_f64());
    Ok(split(total, &turns, known_after).map_or(Killed::LedNoMore, Killed::Answered))
}

/// The parts of the time until the acknowledgement, as far as they can be told.
fn split(total: f64, turns: &[(Turn, f64)], known_after: Option<f64>) -> Option<Trial> {
    let before =
        |turn: Turn| turns.iter().filter(move |(of, at)| *of == turn && *at <= total).map(|(_, at)| *at);
    // The last one that won in time is the one that acknowledged.
    let leads = before(Turn::Leads).max_by(f64::total_cmp)?;
    // One that was elected at once may not have been seen to stand.
    let stands = before(Turn::Stands).min_by(f64::total_cmp).unwrap_or(leads).min(leads);
    let known = known_after.unwrap_or(total).clamp(leads, total);
    Some(Trial {
        total,
        detect: stands,
        elect: leads - stands,
        recover: known - leads,
        first_ack: total - known,
    })
}

async fn next_sent_after(load: &mut Steady, time: Instant, failed: &mut u64) -> Outcome<Acknowledged> {
    loop {
        match load.next().await? {
            Ok(acknowledged) if acknowledged.sent >= time => return Ok(acknowledged),
            Ok(_) => {}
            Err(_) => *failed += 1,
        }
    }
}

/// When the client knew that another broker leads: news are pushed to it.
async fn known(client: Client, topic: String, epoch: LeaderEpoch, killed: BrokerId) -> Outcome<Instant> {
    loop {
        let (now, leader) = epoch_of(&client, &topic).await?;
        if now > epoch && leader.is_some_and(|leader| leader != killed) {
            return Ok(Instant::now());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn epoch_of(client: &Client, topic: &str) -> Outcome<(LeaderEpoch, Option<BrokerId>)> {
    let topic = client.topic_metadata(topic).await?;
    let partition = topic.partitions.first().ok_or("a topic without partitions")?;
    Ok((partition.leader_epoch, partition.leader))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_all_of_the_time() {
        // Two stood, the first in vain; what came after the acknowledgement is of another election.
        let turns = [(Turn::Stands, 1.5), (Turn::Stands, 1.0), (Turn::Leads, 1.75), (Turn::Leads, 9.0)];
        let trial = split(2.5, &turns, Some(2.0)).expect("one was elected");
        assert_eq!((trial.detect, trial.elect), (1.0, 0.75));
        assert_eq!((trial.recover, trial.first_ack), (0.25, 0.5));
        let unseen = split(2.5, &[(Turn::Leads, 1.75)], None).expect("one was elected");
        assert_eq!((unseen.detect, unseen.elect, unseen.recover, unseen.first_ack), (1.75, 0.0, 0.75, 0.0));
        assert!(split(2.5, &[(Turn::Stands, 1.0)], None).is_none());
    }

    #[test]
    fn a_kill_without_an_answer_counts_as_all_of_the_patience() {
        let trial = Trial { total: 1.0, detect: 0.5, elect: 0.25, recover: 0.125, first_ack: 0.125 };
        let all = measured(&[trial; 9], 1, Vec::new()).expect("ten kills");
        let p95 = Summary { median: 60.0, min: 1.0, max: 60.0, count: 10 };
        assert!(all.rows.contains(&Row::at_most("the same, p95", "s", 2.0, p95)), "{:?}", all.rows);
        let ten = Summary { median: 10.0, min: 10.0, max: 10.0, count: 1 };
        let kills = Row::at_least("kills that these are of", "kills", 50.0, ten);
        assert!(all.rows.contains(&kills), "{:?}", all.rows);
        let told = |all: &Measured| all.notes.iter().any(|note| note.contains("50 kills are of"));
        assert!(told(&all), "{:?}", all.notes);
        let whole = measured(&[trial; 50], 0, Vec::new()).expect("all kills");
        assert!(!told(&whole), "{:?}", whole.notes);
    }

    #[test]
    fn a_quantile_is_the_least_value_that_so_many_stay_within() {
        let values: Vec<f64> = (1..=50).rev().map(f64::from).collect();
        assert_eq!(
            (quantile(&values, 0.5), quantile(&values, 0.95), quantile(&values, 1.0)),
            (25.0, 48.0, 50.0)
        );
        assert_eq!(quantile(&[3.0], 0.95), 3.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
