//! What a plugin under test is deployed with.

use crate::consumer::Consumer;
use crate::context::{Context, ContextParts};
use crate::description::Description;
use crate::filter::Filter;
use crate::host::fake::{World, with_world};
use crate::partitioner::Partitioner;
use crate::testing::{ConsumerTest, FilterTest, PartitionerTest};
use crate::transform::{Transform, Transforming};

/// A deployment for a test: configuration, topics, targets. Each setup starts from an empty state.
#[derive(Clone, Debug)]
pub struct Setup {
    pub(super) parts: ContextParts,
    pub(super) world: World,
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// A deployment called `test` over the topic `input`, without targets or configuration.
    pub fn new() -> Self {
        let parts = ContextParts {
            deployment: "test".into(),
            topics: vec!["input".into()],
            ..ContextParts::default()
        };
        Self { parts, world: World::default() }
    }

    /// Sets a configuration key.
    pub fn config(mut self, key: &str, value: &str) -> Self {
        self.parts.config.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds a target topic.
    pub fn target(mut self, topic: &str) -> Self {
        self.parts.targets.push(topic.to_owned());
        self.world.targets += 1;
        self
    }

    /// Reads these topics instead of `input`.
    pub fn topics(mut self, topics: &[&str]) -> Self {
        self.parts.topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        self
    }

    /// Bounds what one call may emit.
    pub fn emit_bytes_max(mut self, bytes: usize) -> Self {
        self.world.emit_bytes_max = bytes;
        self
    }

    /// Bounds what the task may keep.
    pub fn state_bytes_max(mut self, bytes: usize) -> Self {
        self.world.state_bytes_max = bytes;
        self
    }

    /// A filter in this deployment; an error where it refuses the configuration.
    pub fn filter<P: Filter>(self) -> Result<FilterTest<P>, String> {
        Ok(FilterTest::new(P::new(&self.context(&P::describe())?)?))
    }

    /// A partitioner in this deployment.
    pub fn partitioner<P: Partitioner>(self) -> Result<PartitionerTest<P>, String> {
        Ok(PartitionerTest::new(P::new(&self.context(&P::describe())?)?))
    }

    /// A consumer in this deployment.
    pub fn consumer<P: Consumer>(self) -> Result<ConsumerTest<P>, String> {
        ConsumerTest::new(self)
    }

    /// A transform in this deployment.
    pub fn transform<P: Transform>(self) -> Result<ConsumerTest<Transforming<P>>, String> {
        ConsumerTest::new(self)
    }

    pub(super) fn context(&self, description: &Description) -> Result<Context, String> {
        with_world(|world| *world = self.world.clone());
        Ok(Context::new(self.parts.clone(), description)?)
    }
}
