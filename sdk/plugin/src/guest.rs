//! A plugin's exports: the generated traits, implemented over the traits that authors write.

use std::any::Any;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Once;

use crate::batch::{Batch, BatchParts};
use crate::bindings::{consumer, filter, lifecycle, partitioner, types};
use crate::consumer::{Consumer, Timer};
use crate::context::{Context, ContextParts};
use crate::description::{ConfigKey, Description};
use crate::failure::{Failure, Rejection, in_order};
use crate::fields::Fields;
use crate::filter::{Filter, Selection};
use crate::log;
use crate::partitioner::Partitioner;

thread_local! {
    /// A component has one plugin, and an instance of the component one of it.
    static PLUGIN: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

fn install<P: 'static>(plugin: P) {
    static PANICS_ARE_LOGGED: Once = Once::new();
    PANICS_ARE_LOGGED.call_once(|| {
        // A trap carries no message; without this its author would only learn "unreachable".
        std::panic::set_hook(Box::new(|panic| log::write(log::Level::Error, format_args!("{panic}"))));
    });
    PLUGIN.replace(Some(Box::new(plugin)));
}

fn with_plugin<P: 'static, R>(call: impl FnOnce(&mut P) -> R) -> R {
    PLUGIN.with_borrow_mut(|plugin| {
        let plugin = plugin.as_mut().and_then(|plugin| plugin.downcast_mut());
        call(plugin.expect("the broker calls init first"))
    })
}

macro_rules! lifecycle {
    ($guest:ident, $plugin:ident) => {
        /// Exports a plugin to its world.
        #[derive(Debug)]
        pub struct $guest<P>(PhantomData<P>);

        impl<P: $plugin> lifecycle::Guest for $guest<P> {
            fn describe() -> lifecycle::Description {
                wit_description(&P::describe())
            }

            fn init(ctx: types::Context) -> Result<types::Fields, String> {
                let ctx = Context::new(context_parts(ctx), &P::describe())?;
                let plugin = P::new(&ctx)?;
                let fields = wit_fields(plugin.fields());
                install(plugin);
                Ok(fields)
            }
        }
    };
}

lifecycle!(PartitionerGuest, Partitioner);
lifecycle!(FilterGuest, Filter);
lifecycle!(ConsumerGuest, Consumer);

impl<P: Partitioner> partitioner::Guest for PartitionerGuest<P> {
    fn partition(input: types::Batch, partitions: u32) -> Result<partitioner::Placement, types::Failure> {
        let batch = batch(input);
        let placement =
            with_plugin(|plugin: &mut P| plugin.partition(&batch, partitions)).map_err(wit_failure)?;
        let rejections = wit_rejections(placement.rejections);
        Ok(partitioner::Placement { partitions: placement.partitions, rejections })
    }
}

impl<P: Filter> filter::Guest for FilterGuest<P> {
    fn apply(input: types::Batch) -> Result<filter::Verdict, types::Failure> {
        let batch = batch(input);
        let verdict = with_plugin(|plugin: &mut P| plugin.apply(&batch)).map_err(wit_failure)?;
        let selection = match verdict.selection {
            Selection::KeepAll => filter::Selection::KeepAll,
            Selection::DropAll => filter::Selection::DropAll,
            Selection::Keep(bitmap) => filter::Selection::Keep(bitmap.into_bytes()),
            Selection::Replace(output) => {
                filter::Selection::Replace(types::Records { data: output.data, index: output.index })
            }
        };
        Ok(filter::Verdict { selection, rejections: wit_rejections(verdict.rejections) })
    }
}

impl<P: Consumer> consumer::Guest for ConsumerGuest<P> {
    fn handle(input: types::Batch) -> Result<consumer::Outcome, types::Failure> {
        let batch = batch(input);
        let outcome = with_plugin(|plugin: &mut P| plugin.handle(&batch)).map_err(wit_failure)?;
        Ok(consumer::Outcome { processed: outcome.processed, rejections: wit_rejections(outcome.rejections) })
    }

    fn on_timers(due: Vec<consumer::Timer>, now: i64) -> Result<(), types::Failure> {
        let due: Vec<Timer> = due.into_iter().map(|timer| Timer { key: timer.key, at: timer.at }).collect();
        with_plugin(|plugin: &mut P| plugin.on_timers(&due, now)).map_err(wit_failure)
    }
}

fn wit_description(description: &Description) -> lifecycle::Description {
    let key = |key: &ConfigKey| lifecycle::ConfigKey {
        name: key.name.clone(),
        doc: key.doc.clone(),
        required: key.required,
        default: key.default.clone(),
    };
    lifecycle::Description {
        summary: description.summary().to_owned(),
        config: description.keys().iter().map(key).collect(),
    }
}

fn context_parts(ctx: types::Context) -> ContextParts {
    ContextParts { deployment: ctx.deployment, topics: ctx.topics, targets: ctx.targets, config: ctx.config }
}

fn batch(input: types::Batch) -> Batch {
    Batch::new(BatchParts {
        topic: input.topic,
        partition: input.partition,
        base_offset: input.base_offset,
        base_timestamp: input.base_timestamp,
        now: input.now,
        data: input.data,
        index: input.index,
    })
}

fn wit_fields(fields: Fields) -> types::Fields {
    let flags = [
        (Fields::KEY, types::Fields::KEY),
        (Fields::VALUE, types::Fields::VALUE),
        (Fields::HEADERS, types::Fields::HEADERS),
    ];
    flags
        .into_iter()
        .filter(|(field, _)| fields.contains(*field))
        .fold(types::Fields::empty(), |all, (_, flag)| all | flag)
}

fn wit_failure(failure: Failure) -> types::Failure {
    match failure {
        Failure::Retry(reason) => types::Failure::Retry(reason),
        Failure::Reject(reason) => types::Failure::Reject(reason),
    }
}

fn wit_rejections(rejections: Vec<Rejection>) -> Vec<types::Rejection> {
    in_order(rejections)
        .into_iter()
        .map(|r| types::Rejection { ordinal: r.ordinal, reason: r.reason })
        .collect()
}
