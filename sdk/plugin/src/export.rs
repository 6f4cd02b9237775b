//! The lines that make a crate a plugin. Native builds export nothing: any number of plugins can be linked into one test.

/// Exports a [`Partitioner`](crate::Partitioner) as this crate's plugin.
#[macro_export]
macro_rules! export_partitioner {
    ($plugin:ty) => {
        $crate::__export!(Partitioner, PartitionerGuest, $plugin, partitioner, export_partitioner_piece);
    };
}

/// Exports a [`Filter`](crate::Filter) as this crate's plugin.
#[macro_export]
macro_rules! export_filter {
    ($plugin:ty) => {
        $crate::__export!(Filter, FilterGuest, $plugin, filter, export_filter_piece);
    };
}

/// Exports a [`Consumer`](crate::Consumer) as this crate's plugin.
#[macro_export]
macro_rules! export_consumer {
    ($plugin:ty) => {
        $crate::__export!(Consumer, ConsumerGuest, $plugin, consumer, export_consumer_piece);
    };
}

/// Exports a [`Transform`](crate::Transform) as this crate's plugin.
#[macro_export]
macro_rules! export_transform {
    ($plugin:ty) => {
        const _: fn(&$crate::Context) -> Result<$plugin, String> = <$plugin as $crate::Transform>::new;
        $crate::export_consumer!($crate::Transforming<$plugin>);
    };
}

#[doc(hidden)]
#[macro_export]
#[rustfmt::skip]
macro_rules! __export {
    ($trait:ident, $guest:ident, $plugin:ty, $world:ident, $export:ident) => {
        // On the host too: what would not build as a component does not build as a test, and what only a component uses is no dead code.
        const _: fn(&$crate::Context) -> Result<$plugin, String> = <$plugin as $crate::$trait>::new;
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "generated: the canonical ABI passes pointers")]
        const _: () = {
            use $crate::__component::{lifecycle, $world};
            type Guest = $crate::__component::$guest<$plugin>;
            lifecycle::export_lifecycle_piece!(Guest with_types_in lifecycle);
            $world::$export!(Guest with_types_in $world);
        };
    };
}
