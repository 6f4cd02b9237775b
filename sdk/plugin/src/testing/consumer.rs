//! Consumers under test, with state, timers and outputs.

use std::collections::BTreeMap;

use crate::batch::Batch;
use crate::consumer::{Consumer, Outcome, Timer};
use crate::failure::Failure;
use crate::host::fake::{World, with_world};
use crate::testing::answers::{checked_rejections, emitted_records};
use crate::testing::record::masked;
use crate::testing::{Setup, TestBatch, TestRecord};

/// How many rounds of timers [`ConsumerTest::advance`] plays before it takes a plugin for one that never ends.
const TIMER_ROUNDS_MAX: usize = 10_000;

/// A consumer under test: one task, on the thread of the test.
#[derive(Debug)]
pub struct ConsumerTest<P> {
    plugin: P,
    setup: Setup,
    emitted: Vec<(u32, TestRecord)>,
}

impl<P: Consumer> ConsumerTest<P> {
    pub(super) fn new(setup: Setup) -> Result<Self, String> {
        let plugin = P::new(&setup.context(&P::describe())?)?;
        Ok(Self { plugin, setup, emitted: Vec::new() })
    }

    /// Hands over a batch, and commits what the call did. Where it fails, nothing is kept, and the instance is replaced, as in the broker.
    ///
    /// # Panics
    /// Where the broker would refuse the answer.
    pub fn handle(&mut self, batch: &Batch) -> Result<Outcome, Failure> {
        let fields = self.plugin.fields();
        let now = batch.now();
        let outcome = self.call(batch, now, |plugin| plugin.handle(&masked(batch, fields)))?;
        assert!(outcome.processed as usize <= batch.len(), "a consumer processes no more than it is given");
        match checked_rejections(outcome.rejections, outcome.processed as usize) {
            Ok(rejections) => Ok(Outcome { processed: outcome.processed, rejections }),
            Err(reason) => panic!("the broker would refuse this outcome: {reason}"),
        }
    }

    /// Lets the log's time pass: fires the timers that become due, and those that they set.
    ///
    /// # Panics
    /// Where timers never end.
    pub fn advance(&mut self, now: i64) -> Result<(), Failure> {
        for _ in 0..TIMER_ROUNDS_MAX {
            let due = with_world(|world| {
                world.now = now;
                let due: Vec<Timer> = world
                    .timers
                    .iter()
                    .filter(|(_, at)| **at <= now)
                    .map(|(key, at)| Timer { key: key.clone(), at: *at })
                    .collect();
                due.iter().for_each(|timer| _ = world.timers.remove(&timer.key));
                due
            });
            if due.is_empty() {
                return Ok(());
            }
            let nothing = TestBatch::default().now(now).build();
            if let Err(failure) = self.call(&nothing, now, |plugin| plugin.on_timers(&due, now)) {
                with_world(|world| world.timers.extend(due.into_iter().map(|timer| (timer.key, timer.at))));
                return Err(failure);
            }
        }
        panic!("timers set each other for ever");
    }

    /// Replaces the instance, as a failover does: state stays, memory does not.
    ///
    /// # Panics
    /// Where the plugin refuses the configuration that it took before.
    pub fn restart(&mut self) {
        let world = with_world(|world| world.clone());
        let again = self.setup.context(&P::describe()).and_then(|ctx| P::new(&ctx));
        with_world(|now| *now = world);
        self.plugin = again.expect("the configuration was accepted before");
    }

    /// What was emitted to a target since the start, or since it was last taken.
    pub fn emitted(&mut self, target: &str) -> Vec<TestRecord> {
        let target = self.setup.parts.targets.iter().position(|name| name == target);
        let target = target.expect("a target of the setup") as u32;
        let (taken, kept) = std::mem::take(&mut self.emitted).into_iter().partition(|(to, _)| *to == target);
        self.emitted = kept;
        let taken: Vec<(u32, TestRecord)> = taken;
        taken.into_iter().map(|(_, record)| record).collect()
    }

    /// The state, as text.
    pub fn state(&self) -> BTreeMap<String, String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        with_world(|world| world.state.iter().map(|(key, (value, _))| (text(key), text(value))).collect())
    }

    /// The timers that are set.
    pub fn timers(&self) -> Vec<Timer> {
        with_world(|world| world.timers.iter().map(|(key, at)| Timer { key: key.clone(), at: *at }).collect())
    }

    /// The plugin's counters.
    pub fn metrics(&self) -> BTreeMap<String, u64> {
        with_world(|world| world.metrics.clone())
    }

    /// The lines that the plugin logged.
    pub fn log_lines(&self) -> Vec<String> {
        with_world(|world| world.log.iter().map(|(level, line)| format!("{level:?}: {line}")).collect())
    }

    fn call<R>(
        &mut self,
        input: &Batch,
        now: i64,
        call: impl FnOnce(&mut P) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let before: World = with_world(|world| {
            world.now = world.now.max(now);
            world.emitted.clear();
            world.clone()
        });
        let answer = call(&mut self.plugin);
        if answer.is_err() {
            with_world(|world| *world = before);
            self.restart();
            return answer;
        }
        for (target, output) in with_world(|world| std::mem::take(&mut world.emitted)) {
            match emitted_records(&output, input) {
                Ok(records) => self.emitted.extend(records.into_iter().map(|record| (target, record))),
                Err(reason) => panic!("the broker would refuse these outputs: {reason}"),
            }
        }
        answer
    }
}
