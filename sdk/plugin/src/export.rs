//! The lines that make a crate a plugin. Native builds export nothing: any number of plugins can be linked into one test.

/// Exports a [`Partitioner`](crate::Partitioner) as this crate's plugin.
#[macro_export]
macro_rules! export_partitioner {
    ($plugin:ty) => {
        $crate::__export!(PartitionerGuest, $plugin, partitioner, export_partitioner_piece);
    };
}

/// Exports a [`Filter`](crate::Filter) as this crate's plugin.
#[macro_export]
macro_rules! export_filter {
    ($plugin:ty) => {
        $crate::__export!(FilterGuest, $plugin, filter, export_filter_piece);
    };
}

/// Exports a [`Consumer`](crate::Consumer) as this crate's plugin.
#[macro_export]
macro_rules! export_consumer {
    ($plugin:ty) => {
        $crate::__export!(ConsumerGuest, $plugin, consumer, export_consumer_piece);
    };
}

/// Exports a [`Transform`](crate::Transform) as this crate's plugin.
#[macro_export]
macro_rules! export_transform {
    ($plugin:ty) => {
        $crate::export_consumer!($crate::Transforming<$plugin>);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($guest:ident, $plugin:ty, $world:ident, $export:ident) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "generated: the canonical ABI passes pointers")]
        const _: () = {
            type Guest = $crate::__component::$guest<$plugin>;
    $crate::__component::$world::$export!(Guest with_types_in $crate::__component::$world);
        };
        // Checked on the host too, so that a plugin that will not build as a component does not build as a test.
        #[cfg(not(target_arch = "wasm32"))]
        const _: () = {
            fn _is_a_plugin() -> $crate::Description {
                use $crate::prelude::*;
                <$plugin>::describe()
            }
        };
    };
}
