//! Under which node id each shard's replica lives here, and which of them have begun to live.
//!
//! A replica that has answered its group once is counted on: should its log be found empty later, it is a lost one, and must not begin
//! anew under the same id. So that it *has* answered is on the disk before the first answer. A replica that was retired (its log
//! lost what it may have promised) goes on under an id that the controller gave it.
//!
//! The file `replicas` in the data directory (TOML) holds both; it is replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidemill_log::fs::Storage;
use tidemill_protocol::{BrokerId, NodeId, ShardId};
use tokio::sync::watch;

use crate::data_dir::{Meta, read_text, write_text};

const FILE: &str = "replicas";
const FORMAT: u32 = 1;

/// The lives of this broker's replicas.
pub(crate) struct Lives {
    storage: Arc<dyn Storage>,
    broker: BrokerId,
    /// Of the data directory: of every replica that has no other.
    incarnation: u32,
    /// Held while a change is made, its sync included; whoever reads goes by what stands until that is over.
    changing: Mutex<()>,
    stored: Mutex<Stored>,
    /// Shards that are known to have begun, for a look without the lock.
    begun: Vec<AtomicBool>,
    /// The newest incarnation by which another broker asked for the controller's replica here; 0: none did yet.
    asked_for: watch::Sender<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    format: u32,
    begun: BTreeSet<u16>,
    /// Shards whose replica here has left its group: it never begins under that id again.
    #[serde(default)]
    left: BTreeSet<u16>,
    /// Incarnations of replicas that live under another than the directory's, by shard.
    #[serde(default)]
    renewed: BTreeMap<String, u32>,
}

impl Lives {
    /// Reads what is stored. A data directory without the file is from before brokers had peers, or new.
    pub(crate) fn open(storage: &Arc<dyn Storage>, meta: &Meta, created: bool) -> io::Result<Self> {
        let all = 0..=meta.shards;
        let stored = match read_text(&**storage, FILE)? {
            Some(text) => toml::from_str(&text).map_err(io::Error::other)?,
            None if created => {
                let none = Stored { format: FORMAT, ..Stored::default() };
                // Before the directory counts as complete: without the file it would be taken for an older one.
                write_text(&**storage, FILE, &toml::to_string(&none).map_err(io::Error::other)?)?;
                none
            }
            None => Stored { format: FORMAT, begun: all.clone().collect(), ..Stored::default() },
        };
        if stored.format != FORMAT {
            let reason = format!(
                "{FILE} has format {}, this release reads format {FORMAT}: start the release that wrote it, or a newer one",
                stored.format
            );
            return Err(io::Error::other(reason));
        }
        let begun = all.map(|shard| AtomicBool::new(stored.begun.contains(&shard))).collect();
        Ok(Self {
            storage: Arc::clone(storage),
            broker: BrokerId::new(meta.broker_id),
            incarnation: meta.incarnation,
            changing: Mutex::new(()),
            stored: Mutex::new(stored),
            begun,
            asked_for: watch::Sender::new(0),
        })
    }

    /// The id of this broker's replica of a shard.
    pub(crate) fn node(&self, shard: ShardId) -> NodeId {
        let stored = self.stored.lock();
        let incarnation = stored.renewed.get(&shard.to_string()).copied().unwrap_or(self.incarnation);
        NodeId::new(self.broker, incarnation)
    }

    /// Whether the replica may have answered its group before: an empty log is a lost one then.
    pub(crate) fn has_begun(&self, shard: ShardId) -> bool {
        self.begun.get(usize::from(shard.get())).is_some_and(|begun| begun.load(Ordering::Acquire))
    }

    /// Whether any replica may have answered its group before.
    pub(crate) fn has_any_begun(&self) -> bool {
        self.begun.iter().any(|begun| begun.load(Ordering::Acquire))
    }

    /// Notes durably that the replica that lives under this id is about to answer its group. Blocks the first time.
    ///
    /// # Errors
    /// It can't be written, or the shard's replica goes on under another id by now, whose own note is to come first.
    pub(crate) fn begin(&self, shard: ShardId, node: NodeId) -> io::Result<()> {
        if self.node(shard) == node && self.has_begun(shard) {
            return Ok(());
        }
        self.save(|next| {
            // Nobody else changes it meanwhile.
            if self.node(shard) != node {
                return Err(io::Error::other(format!("replica {node} of shard {shard} lives here no more")));
            }
            next.begun.insert(shard.get());
            Ok(())
        })
    }

    /// Notes durably that a shard's replica goes on under another id. It begins anew with it. Blocks.
    pub(crate) fn renew(&self, shard: ShardId, node: NodeId) -> io::Result<()> {
        self.save(|next| {
            next.begun.remove(&shard.get());
            next.left.remove(&shard.get());
            next.renewed.insert(shard.to_string(), node.incarnation());
            Ok(())
        })
    }

    /// Notes durably that the replicas of these shards go on under another incarnation, with all that they hold: what they
    /// answered before counts for nobody any more. Of a broker that does not run. Blocks.
    pub(crate) fn go_on_as(&self, shards: &[ShardId], incarnation: u32) -> io::Result<()> {
        self.save(|next| {
            for shard in shards {
                next.renewed.insert(shard.to_string(), incarnation);
                next.left.remove(&shard.get());
                next.begun.insert(shard.get());
            }
            Ok(())
        })
    }

    /// Notes durably that there is no replica of a shard here any more. Its id stays used: another one will have another. Blocks.
    pub(crate) fn leave(&self, shard: ShardId) -> io::Result<()> {
        self.save(|next| {
            next.begun.remove(&shard.get());
            next.left.insert(shard.get());
            Ok(())
        })
    }

    /// Whether the replica that lived here under [`Self::node`] has left its group. It is no founder any more, if it was one: the group
    /// goes on elsewhere.
    pub(crate) fn has_left(&self, shard: ShardId) -> bool {
        self.stored.lock().left.contains(&shard.get())
    }

    /// Writes down what is changed, and goes by it once it is on the disk, before anybody else changes anything: what is shown is what is
    /// on the disk.
    fn save(&self, change: impl FnOnce(&mut Stored) -> io::Result<()>) -> io::Result<()> {
        let _changing = self.changing.lock();
        let mut next = self.stored.lock().clone();
        change(&mut next)?;
        write_text(&*self.storage, FILE, &toml::to_string(&next).map_err(io::Error::other)?)?;
        let mut stored = self.stored.lock();
        for (shard, known) in (0..=u16::MAX).zip(&self.begun) {
            known.store(next.begun.contains(&shard), Ordering::Release);
        }
        *stored = next;
        Ok(())
    }

    /// Takes note that another broker asked for a replica under an id that does not live here. Of the controller's shard, where the id is a
    /// newer one, it may have been planned without the replica here being told.
    pub(crate) fn note_asked_for(&self, shard: ShardId, node: NodeId) {
        if shard != ShardId::CONTROLLER || node.broker() != self.broker {
            return;
        }
        self.asked_for.send_if_modified(|newest| {
            let is_newer = node.incarnation() > *newest;
            if is_newer {
                *newest = node.incarnation();
            }
            is_newer
        });
    }

    /// The newest incarnation by which another broker has asked for the controller's replica here; 0: none did.
    pub(crate) fn asked_for(&self) -> watch::Receiver<u32> {
        self.asked_for.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use tidemill_log::fs::MemoryStorage;

    use super::*;
    use crate::config::DurabilitySetting;

    fn meta() -> Meta {
        let cluster = tidemill_protocol::ClusterId::new(uuid::Uuid::from_u128(9));
        Meta::new(cluster, 2, 3, DurabilitySetting::Fsync)
    }

    fn open(storage: &MemoryStorage, created: bool) -> Lives {
        let storage: Arc<dyn Storage> = Arc::new(storage.clone());
        Lives::open(&storage, &meta(), created).expect("opens")
    }

    #[test]
    fn that_a_replica_has_begun_survives_a_power_cut() {
        let storage = MemoryStorage::new();
        let (one, two) = (ShardId::new(1), ShardId::new(2));
        let lives = open(&storage, true);
        assert!(!lives.has_begun(one) && !lives.has_begun(two) && !lives.has_any_begun());
        lives.begin(one, lives.node(one)).expect("noted");
        let lives = open(&storage.crash(1), true);
        assert!(lives.has_any_begun() && lives.has_begun(one) && !lives.has_begun(two));
    }

    #[test]
    fn a_retired_replica_begins_anew_under_its_new_id() {
        let storage = MemoryStorage::new();
        let (shard, broker) = (ShardId::new(3), BrokerId::new(2));
        let lives = open(&storage, true);
        lives.begin(shard, NodeId::new(broker, 1)).expect("noted");
        assert_eq!(lives.node(shard), NodeId::new(broker, 1));
        lives.renew(shard, NodeId::new(broker, 7)).expect("noted");
        let lives = open(&storage.crash(2), true);
        assert_eq!(lives.node(shard), NodeId::new(broker, 7));
        assert!(!lives.has_begun(shard));
        assert_eq!(lives.node(ShardId::new(1)), NodeId::new(broker, 1), "the others stay");
    }

    #[test]
    fn replicas_that_are_left_alone_go_on_with_what_they_hold() {
        let storage = MemoryStorage::new();
        let (one, two, broker) = (ShardId::new(1), ShardId::new(2), BrokerId::new(2));
        let lives = open(&storage, true);
        lives.begin(one, lives.node(one)).expect("noted");
        lives.go_on_as(&[one], 4).expect("noted");
        let lives = open(&storage.crash(3), true);
        assert!(lives.has_begun(one) && !lives.has_begun(two));
        assert_eq!((lives.node(one), lives.node(two)), (NodeId::new(broker, 4), NodeId::new(broker, 1)));
    }

    #[test]
    fn a_replica_that_lives_here_no_more_does_not_begin_in_the_next_ones_name() {
        let storage = MemoryStorage::new();
        let (shard, broker) = (ShardId::new(3), BrokerId::new(2));
        let [old, new] = [1, 7].map(|incarnation| NodeId::new(broker, incarnation));
        let lives = open(&storage, true);
        lives.renew(shard, new).expect("noted");
        let refused = lives.begin(shard, old).expect_err("another lives here");
        assert!(refused.to_string().contains("lives here no more"), "{refused}");
        assert!(!lives.has_begun(shard) && !open(&storage.crash(4), true).has_begun(shard));
        lives.begin(shard, new).expect("noted");
        assert!(lives.has_begun(shard));
        assert!(lives.begin(shard, old).is_err(), "also where the next one has begun");
        assert!(!lives.has_left(shard));
        lives.leave(shard).expect("noted");
        let storage = storage.crash(5);
        let lives = open(&storage, true);
        assert!(!lives.has_begun(shard) && lives.has_left(shard), "it does not begin again");
        lives.renew(shard, NodeId::new(broker, 9)).expect("noted");
        assert!(!open(&storage.crash(6), true).has_left(shard), "as another one it does");
    }

    /// Whatever comes between the two: what is shown in the end is what the next start finds.
    #[test]
    fn of_a_begin_and_a_leave_at_once_memory_and_disk_show_the_same() {
        let (storage, shard) = (MemoryStorage::new(), ShardId::new(1));
        let lives = open(&storage, true);
        let node = lives.node(shard);
        for _ in 0..50 {
            std::thread::scope(|threads| {
                threads.spawn(|| lives.begin(shard, node).expect("noted"));
                threads.spawn(|| lives.leave(shard).expect("noted"));
            });
            assert_eq!(lives.has_begun(shard), open(&storage, true).has_begun(shard));
        }
    }

    #[test]
    fn only_a_newer_id_of_the_controllers_replica_here_is_news() {
        let lives = open(&MemoryStorage::new(), true);
        let (mut asked, broker) = (lives.asked_for(), BrokerId::new(2));
        lives.note_asked_for(ShardId::new(1), NodeId::new(broker, 9));
        lives.note_asked_for(ShardId::CONTROLLER, NodeId::new(BrokerId::new(3), 9));
        assert_eq!(*asked.borrow_and_update(), 0, "of another shard, of another broker");
        for (incarnation, newest) in [(2, 2), (1, 2), (5, 5), (2, 5)] {
            lives.note_asked_for(ShardId::CONTROLLER, NodeId::new(broker, incarnation));
            assert_eq!(asked.has_changed().ok(), Some(incarnation == newest), "{incarnation}");
            assert_eq!(*asked.borrow_and_update(), newest);
        }
    }

    #[test]
    fn replicas_of_a_directory_from_before_have_all_begun() {
        let lives = open(&MemoryStorage::new(), false);
        assert!((0..=3).all(|shard| lives.has_begun(ShardId::new(shard))));
    }
}
