//! Who is a broker of this cluster, and where: as far as this one has heard.
//!
//! A data directory that answered under a (broker, incarnation) once is the only one that may: another one has not what that
//! promised. So the directory's id is on the disk here before anything else is said to it. The book also spares a restarted broker
//! the seeds. It is gossip: the controller's word, where there is one, stands above it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidemill_log::fs::Storage;
use tidemill_protocol::BrokerId;
use tokio::sync::watch;
use uuid::Uuid;

use super::messages::KnownBroker;
use crate::data_dir::{read_text, write_text};

const FILE: &str = "peers";
const FORMAT: u32 = 1;
/// Brokers that are remembered; a cluster has far fewer.
const BROKERS_MAX: usize = 10_000;
/// Addresses of one broker, and characters of one.
const ADDRESSES_MAX: usize = 16;
const ADDRESS_CHARACTERS_MAX: usize = 255;

/// One broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BookEntry {
    pub(crate) broker: BrokerId,
    pub(crate) incarnation: u32,
    pub(crate) directory: Uuid,
    pub(crate) starts: u64,
    pub(crate) peer_addresses: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    #[serde(default)]
    brokers: Vec<BookEntry>,
}

/// Why what a broker says of itself does not stand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BookRefusal {
    #[error(
        "broker {broker} came back as incarnation {came}, and incarnation {known} is known already: its data directory is an old one, or \
         a new one made from the plan; start it with the newer directory, or with an empty one and a token of \
         `tidemill cluster add --broker {broker}`"
    )]
    OlderLife { broker: BrokerId, came: u32, known: u32 },
    #[error(
        "broker {broker} came with another data directory than it had: what it promised is in that one; start it there, or with an \
         empty directory and a token of `tidemill cluster add --broker {broker}`"
    )]
    OtherDirectory { broker: BrokerId },
    #[error(
        "broker {broker} came with start {came} of its data directory, and start {known} was seen already: the directory is an older copy of \
         itself, without what was promised since; start the newer one, or an empty one with a token of \
         `tidemill cluster add --broker {broker}`"
    )]
    OlderCopy { broker: BrokerId, came: u64, known: u64 },
    #[error(
        "two brokers are running as broker {broker}: this one, in its incarnation {here}, and one in incarnation {came}, which began another \
         life or has a copy of the same data directory; only the newest may run: stop the other, and start it with an empty directory and \
         a token of `tidemill cluster add --broker {broker}`"
    )]
    Twin { broker: BrokerId, here: u32, came: u32 },
    #[error("what broker {broker} says of itself does not read: {reason}")]
    Nonsense { broker: BrokerId, reason: &'static str },
    #[error("the address book is full: {BROKERS_MAX} brokers are known")]
    Full,
    #[error("the address book can't be written: {0}")]
    Unwritten(String),
}

impl BookRefusal {
    /// Whether no broker that knows as much could say otherwise, at any time.
    pub(crate) const fn is_over(&self) -> bool {
        matches!(self, Self::OlderLife { .. } | Self::OtherDirectory { .. } | Self::OlderCopy { .. })
    }
}

/// The brokers that this one has heard of, itself left out.
pub(crate) struct PeerBook {
    me: BrokerId,
    storage: Arc<dyn Storage>,
    /// Held while a change is made, its sync included; whoever reads goes by what stands until that is over.
    changing: Mutex<()>,
    entries: Mutex<BTreeMap<BrokerId, BookEntry>>,
    /// The brokers that are known, for whoever connects to them.
    known: watch::Sender<Vec<BrokerId>>,
}

impl PeerBook {
    pub(crate) fn open(storage: &Arc<dyn Storage>, me: BrokerId) -> io::Result<Self> {
        let stored = match read_text(&**storage, FILE)? {
            Some(text) => toml::from_str::<Stored>(&text).map_err(io::Error::other)?,
            None => Stored { format: FORMAT, brokers: Vec::new() },
        };
        if stored.format != FORMAT {
            let reason = format!(
                "{FILE} has format {}, this release reads format {FORMAT}: start the release that wrote it, or a newer one",
                stored.format
            );
            return Err(io::Error::other(reason));
        }
        let entries: BTreeMap<_, _> = stored.brokers.into_iter().map(|entry| (entry.broker, entry)).collect();
        let known = watch::Sender::new(entries.keys().copied().collect());
        let (changing, entries) = (Mutex::new(()), Mutex::new(entries));
        Ok(Self { me, storage: Arc::clone(storage), changing, entries, known })
    }

    /// Takes what a broker says of itself; what is new is on the disk when this returns. Blocks.
    pub(crate) fn meet(&self, said: &KnownBroker) -> Result<BookEntry, BookRefusal> {
        let entry = parse(said)?;
        if entry.broker == self.me {
            return Err(BookRefusal::Nonsense {
                broker: entry.broker,
                reason: "it has this broker's own number",
            });
        }
        let _changing = self.changing.lock();
        if let Some(known) = self.entry(entry.broker) {
            if let Some(refusal) = known.contradicted_by(&entry) {
                return Err(refusal);
            }
            if known == entry {
                return Ok(entry);
            }
        } else if self.entries.lock().len() >= BROKERS_MAX {
            return Err(BookRefusal::Full);
        }
        self.put(entry.clone())?;
        Ok(entry)
    }

    /// Takes what somebody says of others: only what is new, and only where it contradicts nothing. Blocks.
    pub(crate) fn hear(&self, said: &[KnownBroker]) {
        let _changing = self.changing.lock();
        for entry in said.iter().filter_map(|said| parse(said).ok()).filter(|entry| entry.broker != self.me) {
            let is_news = self.entry(entry.broker).is_none_or(|known| {
                let newer_life = entry.incarnation > known.incarnation;
                let same_life = entry.incarnation == known.incarnation && entry.directory == known.directory;
                newer_life || (same_life && entry.starts > known.starts)
            });
            if !is_news || self.entries.lock().len() >= BROKERS_MAX {
                continue;
            }
            if let Err(error) = self.put(entry) {
                tracing::warn!(%error, "what was heard of other brokers is not kept");
            }
        }
    }

    /// Writes an entry down, and goes by it then; for whoever holds `changing`.
    fn put(&self, entry: BookEntry) -> Result<(), BookRefusal> {
        let mut next = self.entries.lock().clone();
        next.insert(entry.broker, entry);
        let stored = Stored { format: FORMAT, brokers: next.values().cloned().collect() };
        let text = toml::to_string(&stored).map_err(|error| BookRefusal::Unwritten(error.to_string()))?;
        write_text(&*self.storage, FILE, &text).map_err(|error| BookRefusal::Unwritten(error.to_string()))?;
        let now: Vec<_> = next.keys().copied().collect();
        *self.entries.lock() = next;
        self.known.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
        Ok(())
    }

    pub(crate) fn entry(&self, broker: BrokerId) -> Option<BookEntry> {
        self.entries.lock().get(&broker).cloned()
    }

    /// The brokers that are known, whenever that changes.
    pub(crate) fn known(&self) -> watch::Receiver<Vec<BrokerId>> {
        self.known.subscribe()
    }

    /// All of it, to tell others.
    pub(crate) fn said(&self) -> Vec<KnownBroker> {
        self.entries.lock().values().map(BookEntry::said).collect()
    }
}

impl BookEntry {
    /// What stands against what a broker of the same number says of itself now.
    fn contradicted_by(&self, said: &Self) -> Option<BookRefusal> {
        let (broker, same_life) = (said.broker, said.incarnation == self.incarnation);
        if said.incarnation < self.incarnation {
            return Some(BookRefusal::OlderLife { broker, came: said.incarnation, known: self.incarnation });
        }
        if same_life && said.directory != self.directory {
            return Some(BookRefusal::OtherDirectory { broker });
        }
        let is_older = same_life && said.starts < self.starts;
        is_older.then_some(BookRefusal::OlderCopy { broker, came: said.starts, known: self.starts })
    }

    /// Of this broker itself: what another one is told that has the same number.
    pub(super) fn refuse_twin(&self, said: &KnownBroker) -> BookRefusal {
        let said = match parse(said) {
            Ok(said) => said,
            Err(refusal) => return refusal,
        };
        let (broker, here, came) = (self.broker, self.incarnation, said.incarnation);
        self.contradicted_by(&said).unwrap_or(BookRefusal::Twin { broker, here, came })
    }

    pub(crate) fn said(&self) -> KnownBroker {
        KnownBroker {
            broker_id: self.broker.get(),
            incarnation: self.incarnation,
            directory: Bytes::copy_from_slice(self.directory.as_bytes()),
            starts: self.starts,
            peer_addresses: self.peer_addresses.clone(),
        }
    }
}

fn parse(said: &KnownBroker) -> Result<BookEntry, BookRefusal> {
    let broker = BrokerId::new(said.broker_id);
    let nonsense = |reason| Err(BookRefusal::Nonsense { broker, reason });
    let Ok(directory) = Uuid::from_slice(&said.directory) else {
        return nonsense("a directory's id has 16 bytes");
    };
    if said.broker_id == 0 || said.incarnation == 0 {
        return nonsense("brokers and their incarnations are numbered from 1");
    }
    let long = |address: &String| address.chars().count() > ADDRESS_CHARACTERS_MAX;
    if said.peer_addresses.len() > ADDRESSES_MAX || said.peer_addresses.iter().any(long) {
        return nonsense("too many addresses, or too long ones");
    }
    Ok(BookEntry {
        broker,
        incarnation: said.incarnation,
        directory,
        starts: said.starts,
        peer_addresses: said.peer_addresses.clone(),
    })
}

#[cfg(test)]
mod tests {
    use tidemill_log::fs::MemoryStorage;

    use super::*;

    fn said(broker: u32, incarnation: u32, directory: u128, starts: u64) -> KnownBroker {
        BookEntry {
            broker: BrokerId::new(broker),
            incarnation,
            directory: Uuid::from_u128(directory),
            starts,
            peer_addresses: vec![format!("host-{broker}:9631")],
        }
        .said()
    }

    fn open(storage: &MemoryStorage) -> PeerBook {
        let storage: Arc<dyn Storage> = Arc::new(storage.clone());
        PeerBook::open(&storage, BrokerId::new(1)).expect("opens")
    }

    #[test]
    fn a_directory_that_was_met_once_is_the_only_one_for_good() {
        let storage = MemoryStorage::new();
        let book = open(&storage);
        book.meet(&said(2, 1, 20, 1)).expect("new");
        let book = open(&storage.crash(1));
        let other = book.meet(&said(2, 1, 21, 1)).expect_err("another directory");
        assert_eq!(other, BookRefusal::OtherDirectory { broker: BrokerId::new(2) });
        assert!(other.to_string().contains("tidemill cluster add"), "it says what to do: {other}");
        book.meet(&said(2, 1, 20, 2)).expect("the same one");
        let copy = book.meet(&said(2, 1, 20, 1)).expect_err("an older copy");
        assert!(matches!(copy, BookRefusal::OlderCopy { came: 1, known: 2, .. }), "{copy}");
        assert!(other.is_over() && copy.is_over() && !BookRefusal::Full.is_over());
        book.meet(&said(2, 2, 21, 1)).expect("a newer life");
        let older = book.meet(&said(2, 1, 20, 3)).expect_err("an older life");
        assert!(matches!(older, BookRefusal::OlderLife { came: 1, known: 2, .. }), "{older}");
        for refusal in [other, older, copy] {
            assert!(refusal.to_string().ends_with("`tidemill cluster add --broker 2`"), "{refusal}");
        }
    }

    #[test]
    fn another_broker_of_this_ones_number_is_refused_for_what_differs() {
        let me = parse(&said(1, 2, 10, 5)).expect("it reads");
        let other = me.refuse_twin(&said(1, 2, 11, 5));
        assert_eq!(other, BookRefusal::OtherDirectory { broker: BrokerId::new(1) });
        assert!(matches!(me.refuse_twin(&said(1, 1, 10, 5)), BookRefusal::OlderLife { .. }));
        assert!(matches!(me.refuse_twin(&said(1, 2, 10, 4)), BookRefusal::OlderCopy { .. }));
        // It may be this one that is the older: who is right, others say.
        for newer in [said(1, 3, 11, 1), said(1, 2, 10, 6), said(1, 2, 10, 5)] {
            let twin = me.refuse_twin(&newer);
            assert!(matches!(twin, BookRefusal::Twin { .. }) && !twin.is_over(), "{twin}");
        }
    }

    #[test]
    fn gossip_adds_and_never_contradicts() {
        let book = open(&MemoryStorage::new());
        book.meet(&said(2, 1, 20, 5)).expect("new");
        let known = book.known();
        book.hear(&[said(2, 1, 99, 9), said(2, 1, 20, 4), said(3, 1, 30, 1), said(1, 1, 10, 1)]);
        assert_eq!(*known.borrow(), [2, 3].map(BrokerId::new));
        assert_eq!(book.entry(BrokerId::new(2)).expect("known").starts, 5);
        book.hear(&[said(2, 1, 20, 6), said(3, 2, 31, 1)]);
        assert_eq!(book.entry(BrokerId::new(2)).expect("known").starts, 6);
        assert_eq!(book.entry(BrokerId::new(3)).expect("known").incarnation, 2);
    }

    #[test]
    fn nonsense_is_refused() {
        let book = open(&MemoryStorage::new());
        let short = KnownBroker { directory: Bytes::from_static(b"short"), ..said(2, 1, 1, 1) };
        let many = KnownBroker { peer_addresses: vec![String::new(); 17], ..said(2, 1, 1, 1) };
        for nonsense in [short, many, said(0, 1, 1, 1), said(2, 0, 1, 1), said(1, 1, 1, 1)] {
            assert!(matches!(book.meet(&nonsense), Err(BookRefusal::Nonsense { .. })), "{nonsense:?}");
        }
        assert!(book.said().is_empty());
    }
}
