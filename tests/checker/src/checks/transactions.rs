//! Transactions: readers of committed records see a transaction's once it is committed, and never otherwise.

use crate::facts::{Facts, Place, Transaction, TransactionState};
use crate::finding::{Finding, Kind};
use crate::ids::RecordId;

pub(crate) fn begin(facts: &mut Facts, transaction: u64) {
    let known = Transaction { state: TransactionState::Open, is_seen: false };
    facts.transactions.entry(transaction).or_insert(known);
}

pub(crate) fn end(facts: &mut Facts, transaction: u64, commit: bool) {
    let known = facts.transactions.get(&transaction).map(|known| known.state);
    let state = match (known, commit) {
        // It may have been committed, whoever asks for what since; what became of it is told by `ended`.
        (Some(known @ (TransactionState::Committing | TransactionState::Committed)), _) => known,
        (Some(TransactionState::Aborted), _) => TransactionState::Aborted,
        (_, true) => TransactionState::Committing,
        (_, false) => TransactionState::Aborting,
    };
    set(facts, transaction, state);
}

pub(crate) fn ended(facts: &mut Facts, transaction: u64, is_committed: bool) {
    let state = if is_committed { TransactionState::Committed } else { TransactionState::Aborted };
    let is_seen = set(facts, transaction, state);
    facts.findings.check(is_committed || !is_seen, transaction, || {
        let what =
            format!("transaction {transaction} was aborted after records of it had been read as committed");
        Finding::new(Kind::AbortedRead, what).transaction(transaction)
    });
}

/// Says also whether records of it were read as committed.
fn set(facts: &mut Facts, transaction: u64, state: TransactionState) -> bool {
    let known = Transaction { state, is_seen: false };
    let known = facts.transactions.entry(transaction).or_insert(known);
    known.state = state;
    known.is_seen
}

/// A reader of committed records was given this one.
pub(crate) fn check_read(facts: &mut Facts, process: &str, id: RecordId, at: Place) {
    let Some(transaction) = facts.transaction_of(id) else { return };
    let Some(known) = facts.transactions.get_mut(&transaction) else { return };
    let (kind, why) = match known.state {
        TransactionState::Committed => {
            facts.findings.checks += 1;
            return;
        }
        TransactionState::Committing => {
            // Whatever its producer was told: it is committed, all of it.
            known.is_seen = true;
            facts.findings.checks += 1;
            return;
        }
        TransactionState::Open => (Kind::PrecommittedRead, "nobody had asked to commit"),
        TransactionState::Aborting | TransactionState::Aborted => (Kind::AbortedRead, "was aborted"),
    };
    facts.findings.check(false, transaction, || {
        let name = facts.topics.name(at.slot);
        let what = format!(
            "{process}, a reader of committed records, read {id} in {name} at {}, of transaction {transaction}, which {why}",
            at.offset
        );
        let finding = Finding::new(kind, what).at(name, &[at.offset]).records(&[id]);
        finding.process(process).transaction(transaction)
    });
}
