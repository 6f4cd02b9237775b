//! Bugs that nothing around the broker's code can stand for: put back by changing its sources, in a copy of them.
//!
//! The code itself has no switch for any of them. `cargo xtask sim --bugs` copies the sources, makes one of these changes, builds the
//! simulation from that and runs it; a test of the ordinary suite sees to it that each place is still there.

use std::fs;
use std::io;
use std::path::Path;

/// A bug that is put back by a change of the sources.
#[derive(Debug, Clone, Copy)]
pub struct Edit {
    /// The number that it has among all bugs, those of [`Bug`](crate::Bug) included.
    pub number: u64,
    /// In a few words.
    pub describe: &'static str,
    /// What changes.
    pub changes: &'static [Change],
}

/// One place.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// The file, from the workspace's root.
    pub file: &'static str,
    /// What stands there, once.
    pub before: &'static str,
    /// What is to stand there.
    pub after: &'static str,
}

/// All of them.
pub const EDITS: [Edit; 10] = [
    Edit {
        number: 6,
        describe: "committed with too few voters: one that refuses counts as one that has written",
        changes: &[Change {
            file: "broker/raft/src/append_stream.rs",
            before: "            Answer::HigherVote(vote) => {
                self.receiver = None;
                Ok(Ok(Err(StreamAppendError::HigherVote(vote))))
            }
",
            after: "            Answer::HigherVote(_vote) => Ok(Ok(Ok(sent.last))),
",
        }],
    },
    Edit {
        number: 7,
        describe: "a deposed leader answers readers: it asks nobody whether it still leads",
        changes: &[Change {
            file: "broker/raft/src/replica.rs",
            before: "        let read = Unbroken::new(&self.0.raft, |raft| async move {\n",
            after: "        if self.watch().borrow().is_leader() {
            return Ok(());
        }
        let core = &self.0.raft;
        let read = Unbroken::new(core, |raft| async move {
",
        }],
    },
    Edit {
        number: 8,
        describe: "a retried batch counts as a new one: nobody looks at its sequence",
        changes: &[Change {
            file: "broker/partition/src/producers.rs",
            before: "        if batch.base_sequence == expected {\n",
            after: "        if batch.base_sequence == expected || batch.epoch == state.epoch {\n",
        }],
    },
    Edit {
        number: 13,
        describe: "offsets askew after a truncation: what was cut off is applied all the same",
        changes: &[
            Change {
                file: "broker/raft/src/shared_log.rs",
                before: "        state.recent.truncate_after(last.map(|id| id.index));\n",
                after: "",
            },
            Change {
                file: "broker/raft/src/recent.rs",
                before: "        if self.entries.back().is_some_and(|last| last.id.index + 1 != id.index) {
            debug_assert!(false, \"entry {id} does not follow the last one\");
            self.clear();
        }
",
                after: "        if self.entries.back().is_some_and(|last| last.id.index + 1 != id.index) {
            return;
        }
",
            },
        ],
    },
    Edit {
        number: 14,
        describe: "a snapshot with the newest membership instead of the one at its index",
        changes: &[Change {
            file: "broker/shard/src/shard/pin.rs",
            before: "        let header = read_header(&rows).map_err(damaged)?;\n",
            after: "        let mut header = read_header(&rows).map_err(damaged)?;
        if let Some(newest) = inner.state.read().header.membership() {
            header.set_membership(&newest);
        }
",
        }],
    },
    Edit {
        number: 15,
        describe: "the checkpoint's last entry is applied a second time after a restart",
        changes: &[
            Change {
                file: "broker/raft/src/state_machine.rs",
                before: "        let mut next = self.applied().map_or(0, |id| id.index.get() + 1);\n",
                after: "        let mut next = self.applied().map_or(0, |id| id.index.get());\n",
            },
            Change {
                file: "broker/raft/src/state_machine.rs",
                before: "                Some(first) if first.log_id.index == next => {}\n",
                after: "                Some(first) if first.log_id.index <= next + 1 => {}\n",
            },
            Change {
                file: "broker/shard/src/shard/apply.rs",
                before: "Some(last) if id.index != last.index.next() || id.term < last.term => {\n",
                after: "Some(last) if id.index > last.index.next() || id.term < last.term => {\n",
            },
        ],
    },
    Edit {
        number: 16,
        describe: "numbers of an outbox that is empty begin anew after a restart",
        changes: &[Change {
            file: "broker/shard/src/state/stored.rs",
            before: "            space::OUTBOX => self.state.outboxes.restore(take(&mut identity)?, OutboxState::decode(value)?),\n",
            after: "            space::OUTBOX => {
                let stored = OutboxState::decode(value)?;
                let anew = OutboxState { first: 1, next: 1, bytes: 0 };
                let outbox = if stored.first == stored.next { anew } else { stored };
                self.state.outboxes.restore(take(&mut identity)?, outbox)
            }
",
        }],
    },
    Edit {
        number: 17,
        describe: "a block of an earlier life is taken for one of this: neither salt, sequence nor chain is looked at",
        changes: &[
            Change {
                file: "broker/log/src/wal/scan.rs",
                before: "            if trailer.salt != header.salt || trailer.sequence != sequence || trailer.role != role {\n",
                after: "            if trailer.role != role {\n",
            },
            Change {
                file: "broker/log/src/wal/scan.rs",
                before: "if frame.header.previous_crc != at.chain || !(self.visit)(&frame, role) {\n",
                after: "if !(self.visit)(&frame, role) {\n",
            },
        ],
    },
    Edit {
        number: 18,
        describe: "numbers of an outbox that is empty begin anew under the next leader",
        changes: &[Change {
            file: "broker/shard/src/shard/apply.rs",
            before: "        self.apply_header(id, None)\n",
            after: "        let mut state = self.inner.state.write();
        let all = state.outboxes.iter();
        let empty: Vec<_> = all.filter(|(_, it)| it.first == it.next).map(|(stream, _)| *stream).collect();
        for stream in empty {
            state.outboxes.remove(&stream);
        }
        drop(state);
        self.apply_header(id, Default::default())
",
        }],
    },
    Edit {
        number: 19,
        describe: "the log goes on where a sync of it failed",
        changes: &[Change {
            file: "broker/log/src/wal/writer.rs",
            before: "        active.file.file.sync_data().map_err(|source| (\"fdatasync\", source))?;\n",
            after: "        drop(active.file.file.sync_data());\n",
        }],
    },
];

impl Edit {
    /// Makes the change in the workspace at `root`.
    ///
    /// # Errors
    /// A file can't be read or written, or a place is not there exactly once: then it changes nothing.
    pub fn make(&self, root: &Path) -> io::Result<()> {
        let mut changed: Vec<(&str, String)> = Vec::new();
        for change in self.changes {
            let at = match changed.iter().position(|(file, _)| *file == change.file) {
                Some(at) => at,
                None => {
                    changed.push((change.file, fs::read_to_string(root.join(change.file))?));
                    changed.len() - 1
                }
            };
            let text = &mut changed[at].1;
            let times = text.matches(change.before).count();
            if times != 1 {
                let reason =
                    format!("{} holds {times} times what is to be changed: {}", change.file, change.before);
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            *text = text.replacen(change.before, change.after, 1);
        }
        changed.into_iter().try_for_each(|(file, text)| fs::write(root.join(file), text))
    }
}
