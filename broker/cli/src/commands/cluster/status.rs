//! `tidemill cluster status`.

use clap::Args;
use serde_json::{Value, json};
use tidemill_client::Client;
use tidemill_client::messages::{BrokerStatus, ClusterSettings, ClusterStatus, ShardPlacement, ShardReplica};
use tidemill_protocol::{ClusterId, ShardId};

use super::{notes, settled};
use crate::error::CliError;
use crate::output;
use crate::text::counted;

/// A replica that its leader has not heard of for so long is shown as silent: others answer several times a second.
const SILENT_MS_MIN: i64 = 2_000;

/// See `tidemill cluster status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Exit with 5 where anything is at risk.
    #[arg(long)]
    check: bool,
    /// As --check, and also while a replica lags or is silent, or is not where planned.
    #[arg(long)]
    settled: bool,
}

pub(super) async fn run(asked: Status, client: Client, json: bool) -> Result<(), CliError> {
    let status = client.cluster_status().await?;
    let unsettled = if asked.settled { settled::unsettled(&status) } else { Vec::new() };
    let mut document = document(&status);
    if asked.settled {
        document["unsettled"] = json!(unsettled);
    }
    output::print(json, &document, || {
        show(&status);
        if !unsettled.is_empty() {
            println!("not settled:");
            unsettled.iter().for_each(|thing| println!("  {thing}"));
        }
    })?;
    if (asked.check || asked.settled) && !status.risks.is_empty() {
        return Err(CliError::Failed(at_risk(status.risks.len())));
    }
    if let Some(words) = settled::words(&unsettled) {
        return Err(CliError::Failed(words));
    }
    Ok(())
}

fn at_risk(risks: usize) -> String {
    let verb = if risks == 1 { "is" } else { "are" };
    format!("{} {verb} at risk", counted(risks, "thing"))
}

fn show(status: &ClusterStatus) {
    let mut facts = vec![("cluster", cluster(status)), ("durability", status.durability.clone())];
    facts.extend(status.settings.iter().flat_map(settings_facts));
    output::facts(&facts);
    println!();
    output::table(
        &["broker", "state", "address", "rack", "replicas", "leaders", "disk free", "software"],
        &broker_rows(status),
        &[0, 4, 5, 6],
    );
    println!();
    output::table(
        &["shard", "leader", "term", "replicas", "planned"],
        &status.placement.iter().map(shard_row).collect::<Vec<_>>(),
        &[0, 1, 2],
    );
    println!();
    match status.risks.as_slice() {
        [] => println!("nothing is at risk"),
        risks => {
            println!("{}:", at_risk(risks.len()));
            risks.iter().for_each(|risk| println!("  {risk}"));
        }
    }
    for note in notes::notes(status) {
        println!("note: {note}");
    }
}

fn cluster(status: &ClusterStatus) -> String {
    ClusterId::from_slice(&status.cluster_id).map(|id| id.to_string()).unwrap_or_default()
}

/// Settings of the whole cluster, for people.
pub(super) fn settings_facts(settings: &ClusterSettings) -> Vec<(&'static str, String)> {
    let delay = output::duration(i64::try_from(settings.rebuild_delay_ms).unwrap_or(i64::MAX));
    let rate = match settings.snapshot_bytes_per_second {
        0 => "unlimited".to_owned(),
        rate => format!("{} a second", output::bytes(rate)),
    };
    vec![
        ("replicas", format!("up to {} of each shard", settings.replication_factor)),
        ("rebuild delay", delay),
        ("snapshot rate", rate),
    ]
}

fn broker_rows(status: &ClusterStatus) -> Vec<Vec<String>> {
    let row = |broker: &BrokerStatus| {
        let replicas = status.placement.iter().filter(|shard| holds(shard, broker.broker_id)).count();
        let disk_free = known(broker.disk_free_bytes).map_or_else(|| "-".to_owned(), output::bytes);
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        vec![
            broker.broker_id.to_string(),
            state(broker),
            or_dash(broker.addresses.join(",")),
            broker.rack.clone(),
            replicas.to_string(),
            // What one that is not there was heard to lead last, it does not lead.
            if broker.alive { broker.leaders.to_string() } else { "-".to_owned() },
            disk_free,
            or_dash(broker.software.clone()),
        ]
    };
    status.brokers.iter().map(row).collect()
}

/// One word of what the cluster wants of a broker, and whether it is there.
fn state(broker: &BrokerStatus) -> String {
    match (broker.state.as_str(), broker.alive) {
        ("active", true) => "alive".to_owned(),
        // Let in, or planned from the beginning, and never seen.
        ("active", false) if broker.starts == 0 => "expected".to_owned(),
        ("active", false) => "dead".to_owned(),
        ("removed", _) => "removed".to_owned(),
        (other, true) => other.to_owned(),
        (other, false) => format!("{other}, dead"),
    }
}

/// Whether a broker has a replica of a shard. Every broker follows the controller's: who does so without a vote, and is to have none,
/// holds nothing that others would have to take over.
pub(super) fn holds(shard: &ShardPlacement, broker: u32) -> bool {
    let follows_only = |replica: &ShardReplica| {
        !replica.voter
            && shard.shard == u32::from(ShardId::CONTROLLER.get())
            && !shard.planned.contains(&broker)
    };
    shard.replicas.iter().any(|replica| replica.broker_id == broker && !follows_only(replica))
}

fn shard_row(shard: &ShardPlacement) -> Vec<String> {
    let or_dash = |number: u64| known(number).map_or_else(|| "-".to_owned(), |number| number.to_string());
    let mut replicas: Vec<&ShardReplica> = shard.replicas.iter().collect();
    replicas.sort_by_key(|replica| (replica.broker_id, replica.incarnation));
    let replicas: Vec<String> = replicas.into_iter().map(|one| replica(shard, one)).collect();
    vec![
        shard.shard.to_string(),
        or_dash(u64::from(shard.leader)),
        or_dash(shard.term),
        replicas.join(" "),
        planned(shard),
    ]
}

/// Whether a shard's leader has said how it is: it never is silent to itself. Else its members are all that is known.
fn is_told(shard: &ShardPlacement) -> bool {
    shard.replicas.iter().any(is_heard)
}

/// Whether the leader has heard of a replica since it leads. Else what the replica lacks is not known either.
const fn is_heard(replica: &ShardReplica) -> bool {
    replica.silent_ms >= 0
}

/// `1*`, `2`, `3(+120)`, `4(learner, +9000)`, `5(silent 12 s)`, `6(unheard)`; `7?` where no leader has said anything; with its
/// incarnation where a broker has two.
fn replica(shard: &ShardPlacement, replica: &ShardReplica) -> String {
    let lives = shard.replicas.iter().filter(|other| other.broker_id == replica.broker_id).count();
    let mut text = replica.broker_id.to_string();
    if lives > 1 {
        text.push_str(&format!(".{}", replica.incarnation));
    }
    let is_told = is_told(shard);
    if !is_told {
        text.push('?');
    }
    // Of two lives of a broker a learner is not the one that leads.
    if is_told && replica.voter && replica.broker_id == shard.leader {
        text.push('*');
    }
    let mut notes = Vec::new();
    if !replica.voter {
        notes.push("learner".to_owned());
    }
    if is_told && !is_heard(replica) {
        notes.push("unheard".to_owned());
    } else if is_told && replica.behind > 0 {
        notes.push(format!("+{}", replica.behind));
    }
    if replica.silent_ms >= SILENT_MS_MIN {
        notes.push(format!("silent {} s", replica.silent_ms / 1000));
    }
    if !notes.is_empty() {
        text.push_str(&format!("({})", notes.join(", ")));
    }
    text
}

/// Who should vote, the one that should lead first, where that is not so; nothing where it is.
pub(super) fn planned(shard: &ShardPlacement) -> String {
    let mut voters: Vec<u32> =
        shard.replicas.iter().filter(|replica| replica.voter).map(|replica| replica.broker_id).collect();
    let mut wanted = shard.planned.clone();
    voters.sort_unstable();
    wanted.sort_unstable();
    let leads = shard.planned.first().is_none_or(|first| *first == shard.leader);
    if voters == wanted && leads {
        return String::new();
    }
    let planned: Vec<String> = shard.planned.iter().map(u32::to_string).collect();
    planned.join(" ")
}

fn document(status: &ClusterStatus) -> Value {
    let brokers: Vec<Value> = status
        .brokers
        .iter()
        .map(|broker| {
            let replicas = status.placement.iter().filter(|shard| holds(shard, broker.broker_id)).count();
            json!({
                "broker": broker.broker_id,
                "incarnation": broker.incarnation,
                "state": broker.state,
                "alive": broker.alive,
                "addresses": broker.addresses,
                "peer_addresses": broker.peer_addresses,
                "rack": broker.rack,
                "software": broker.software,
                "starts": broker.starts,
                "replicas": replicas,
                "leaders": broker.leaders,
                "disk_free_bytes": known(broker.disk_free_bytes),
            })
        })
        .collect();
    json!({
        "cluster": cluster(status),
        "durability": status.durability,
        "settings": status.settings.as_ref().map(settings_document),
        "brokers": brokers,
        "shards": status.placement.iter().map(shard_document).collect::<Vec<_>>(),
        "risks": status.risks,
        "notes": notes::notes(status),
    })
}

/// Settings of the whole cluster; no limit is null.
pub(super) fn settings_document(settings: &ClusterSettings) -> Value {
    json!({
        "rebuild_delay_ms": settings.rebuild_delay_ms,
        "snapshot_bytes_per_second": known(settings.snapshot_bytes_per_second),
        "replication_factor": settings.replication_factor,
    })
}

fn shard_document(shard: &ShardPlacement) -> Value {
    let replicas: Vec<Value> = shard
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "broker": replica.broker_id,
                "incarnation": replica.incarnation,
                "voter": replica.voter,
                "behind": Some(replica.behind).filter(|_| is_heard(replica)),
                "silent_ms": Some(replica.silent_ms).filter(|ms| *ms >= 0),
            })
        })
        .collect();
    json!({
        "shard": shard.shard,
        "leader": known(u64::from(shard.leader)),
        "term": known(shard.term),
        "committed": known(shard.committed),
        "replicas": replicas,
        "planned": shard.planned,
    })
}

/// The protocol says 0 where nothing is known, or nothing set.
fn known(number: u64) -> Option<u64> {
    Some(number).filter(|number| *number != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(id: u32) -> BrokerStatus {
        BrokerStatus {
            broker_id: id,
            incarnation: 1,
            addresses: vec![format!("log{id}:9630")],
            peer_addresses: vec![format!("log{id}:9640")],
            software: "tidemill/0.1.0".to_owned(),
            alive: true,
            state: "active".to_owned(),
            starts: 1,
            leaders: 1,
            disk_free_bytes: 5 << 30,
            ..BrokerStatus::default()
        }
    }

    fn voter(id: u32) -> ShardReplica {
        ShardReplica { broker_id: id, incarnation: 1, voter: true, ..ShardReplica::default() }
    }

    fn shard(number: u32, leader: u32, replicas: Vec<ShardReplica>) -> ShardPlacement {
        let mut planned: Vec<u32> =
            replicas.iter().filter(|one| one.voter).map(|one| one.broker_id).collect();
        planned.sort_by_key(|id| (*id != leader, *id));
        ShardPlacement { shard: number, leader, term: 7, committed: 100, replicas, planned }
    }

    fn status(brokers: Vec<BrokerStatus>, placement: Vec<ShardPlacement>) -> ClusterStatus {
        ClusterStatus { brokers, placement, durability: "fsync".to_owned(), ..ClusterStatus::default() }
    }

    fn brokers(status: &ClusterStatus) -> Vec<String> {
        broker_rows(status).into_iter().map(|row| row.join("|")).collect()
    }

    fn row(shard: &ShardPlacement) -> String {
        shard_row(shard).join("|")
    }

    #[test]
    fn one_broker_alone_leads_everything() {
        let alone = status(vec![broker(1)], (0..=1).map(|number| shard(number, 1, vec![voter(1)])).collect());
        assert_eq!(brokers(&alone), ["1|alive|log1:9630||2|1|5.0 GiB|tidemill/0.1.0"]);
        assert_eq!(alone.placement.iter().map(row).collect::<Vec<_>>(), ["0|1|7|1*|", "1|1|7|1*|"]);
    }

    #[test]
    fn three_brokers_and_who_of_them_lags() {
        let lagging = ShardReplica { behind: 120, silent_ms: 400, ..voter(3) };
        let shard = shard(4, 2, vec![voter(1), voter(2), lagging]);
        assert_eq!(row(&shard), "4|2|7|1 2* 3(+120)|");
        let silent = ShardReplica { behind: 9, silent_ms: 12_700, ..voter(1) };
        let shard = ShardPlacement { replicas: vec![voter(2), voter(3), silent], ..shard };
        assert_eq!(row(&shard), "4|2|7|1(+9, silent 12 s) 2* 3|", "by number");
    }

    #[test]
    fn what_is_planned_is_shown_where_it_is_not_so() {
        let learner = ShardReplica { voter: false, behind: 9000, ..voter(4) };
        let now = shard(1, 1, vec![voter(1), voter(2), voter(3), learner]);
        assert_eq!(row(&now), "1|1|7|1* 2 3 4(learner, +9000)|", "a learner of nobody's plan");
        let moving = ShardPlacement { planned: vec![1, 2, 4], ..now.clone() };
        assert_eq!(row(&moving), "1|1|7|1* 2 3 4(learner, +9000)|1 2 4");
        let led_by_another = ShardPlacement { planned: vec![3, 1, 2], ..now };
        assert!(row(&led_by_another).ends_with("|3 1 2"), "{}", row(&led_by_another));
    }

    #[test]
    fn a_shard_without_a_leader_says_so() {
        let unknown = ShardReplica { silent_ms: -1, ..voter(1) };
        let unled = ShardPlacement { term: 0, planned: vec![1], ..shard(2, 0, vec![unknown]) };
        assert_eq!(row(&unled), "2|-|-|1?|1");
        let nothing = ShardPlacement { replicas: Vec::new(), ..unled };
        assert_eq!(row(&nothing), "2|-|-||1");
        // Who was heard to lead it last is away: what the others have nobody says.
        let last = shard(2, 2, [1, 2, 3].map(|id| ShardReplica { silent_ms: -1, ..voter(id) }).to_vec());
        assert_eq!(row(&last), "2|2|7|1? 2? 3?|");
    }

    #[test]
    fn who_was_not_heard_of_is_not_said_to_lack_everything() {
        let unheard = ShardReplica { behind: 2_929, silent_ms: -1, ..voter(3) };
        let led = shard(2, 1, vec![voter(1), voter(2), unheard]);
        assert_eq!(row(&led), "2|1|7|1* 2 3(unheard)|");
        let learner = ShardReplica { voter: false, ..unheard };
        assert_eq!(row(&shard(2, 1, vec![voter(1), learner])), "2|1|7|1* 3(learner, unheard)|");
        let document = shard_document(&led);
        assert!(document["replicas"][2]["behind"].is_null(), "{document}");
        assert_eq!(document["replicas"][1]["behind"], 0);
    }

    #[test]
    fn a_retired_life_is_told_from_the_next() {
        let next = ShardReplica { incarnation: 2, voter: false, ..voter(3) };
        let shard = shard(1, 3, vec![voter(3), next, voter(1), voter(2)]);
        assert_eq!(row(&shard), "1|3|7|1 2 3.1* 3.2(learner)|");
    }

    #[test]
    fn a_brokers_state_is_what_is_wanted_of_it_and_whether_it_is_there() {
        let with = |state: &str, alive, starts| {
            super::state(&BrokerStatus { state: state.to_owned(), alive, starts, ..broker(2) })
        };
        assert_eq!(with("active", true, 1), "alive");
        assert_eq!(with("active", false, 3), "dead");
        assert_eq!(with("active", false, 0), "expected");
        assert_eq!(with("draining", true, 1), "draining");
        assert_eq!(with("draining", false, 1), "draining, dead");
        assert_eq!(with("removed", false, 1), "removed");
        let dead = BrokerStatus { alive: false, leaders: 4, ..broker(2) };
        assert_eq!(
            brokers(&status(vec![dead], Vec::new())),
            ["2|dead|log2:9630||0|-|5.0 GiB|tidemill/0.1.0"],
            "it leads nothing"
        );
        let never_seen = BrokerStatus {
            broker_id: 2,
            state: "active".to_owned(),
            rack: "b".to_owned(),
            ..BrokerStatus::default()
        };
        assert_eq!(brokers(&status(vec![never_seen], Vec::new())), ["2|expected|-|b|0|-|-|-"]);
    }

    #[test]
    fn following_the_controller_is_no_replica_and_catching_up_is_one() {
        let follower = |id| ShardReplica { voter: false, ..voter(id) };
        let controller = shard(0, 1, vec![voter(1), voter(2), voter(3), follower(4)]);
        assert!(holds(&controller, 3) && !holds(&controller, 4) && !holds(&controller, 5));
        let arriving = ShardPlacement { planned: vec![1, 2, 4], ..controller.clone() };
        assert!(holds(&arriving, 4), "it is to vote");
        assert!(holds(&ShardPlacement { shard: 1, ..controller }, 4), "of a data shard it catches up");
    }

    #[test]
    fn programs_read_null_where_nothing_is_known() {
        let unknown = ShardReplica { silent_ms: -1, ..voter(1) };
        let unled = ShardPlacement { term: 0, committed: 0, ..shard(1, 0, vec![unknown]) };
        let silent = BrokerStatus { disk_free_bytes: 0, alive: false, ..broker(1) };
        let status = ClusterStatus {
            settings: Some(ClusterSettings {
                rebuild_delay_ms: 300_000,
                replication_factor: 3,
                ..ClusterSettings::default()
            }),
            risks: vec!["broker 1 is down".to_owned()],
            ..status(vec![silent], vec![unled])
        };
        let document = document(&status);
        let shard = &document["shards"][0];
        assert!(shard["leader"].is_null() && shard["term"].is_null() && shard["committed"].is_null());
        assert!(shard["replicas"][0]["silent_ms"].is_null(), "{document}");
        let broker = &document["brokers"][0];
        assert!(broker["disk_free_bytes"].is_null() && broker["replicas"] == 1 && broker["alive"] == false);
        let settings = &document["settings"];
        assert!(settings["snapshot_bytes_per_second"].is_null() && settings["rebuild_delay_ms"] == 300_000);
        assert_eq!(document["risks"], json!(["broker 1 is down"]));
    }

    #[test]
    fn settings_and_risks_read_well() {
        let settings = ClusterSettings {
            rebuild_delay_ms: 1_800_000,
            snapshot_bytes_per_second: 50 << 20,
            replication_factor: 3,
        };
        let facts: Vec<String> = settings_facts(&settings).into_iter().map(|(_, value)| value).collect();
        assert_eq!(facts, ["up to 3 of each shard", "1800 s", "50.0 MiB a second"]);
        assert_eq!([at_risk(1), at_risk(2)], ["1 thing is at risk", "2 things are at risk"]);
    }
}
