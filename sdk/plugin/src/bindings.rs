//! The plugin contract in `wit/`, generated: one module per world. The worlds share their imports and the types of them.
//!
//! `wit/` stands two directories up, in this repository as in a crate that `tidemill plugin new` wrote.
#![allow(unsafe_code, reason = "generated: the canonical ABI passes pointers")]
#![allow(missing_docs, unreachable_pub, unused_qualifications, reason = "generated")]
#![allow(
    clippy::all,
    clippy::use_self,
    clippy::uninlined_format_args,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]

pub mod consumer {
    wit_bindgen::generate!({
        world: "consumer-plugin",
        path: "../../wit",
        pub_export_macro: true,
        export_macro_name: "export_consumer_world",
    });
    pub use export_consumer_world;
}

pub mod filter {
    wit_bindgen::generate!({
        world: "filter-plugin",
        path: "../../wit",
        pub_export_macro: true,
        export_macro_name: "export_filter_world",
        with: {
            "tidemill:plugin/types@0.1.0": super::consumer::tidemill::plugin::types,
            "tidemill:plugin/output@0.1.0": super::consumer::tidemill::plugin::output,
            "tidemill:plugin/log@0.1.0": super::consumer::tidemill::plugin::log,
            "tidemill:plugin/metrics@0.1.0": super::consumer::tidemill::plugin::metrics,
        },
    });
    pub use export_filter_world;
}

pub mod partitioner {
    wit_bindgen::generate!({
        world: "partitioner-plugin",
        path: "../../wit",
        pub_export_macro: true,
        export_macro_name: "export_partitioner_world",
        with: {
            "tidemill:plugin/types@0.1.0": super::consumer::tidemill::plugin::types,
            "tidemill:plugin/log@0.1.0": super::consumer::tidemill::plugin::log,
            "tidemill:plugin/metrics@0.1.0": super::consumer::tidemill::plugin::metrics,
        },
    });
    pub use export_partitioner_world;
}
