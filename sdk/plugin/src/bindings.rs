//! The plugin contract in `wit/`, generated piece by piece: what a plugin may call, and each interface that one may export.
//!
//! The worlds of the contract share `lifecycle`, and the macro that exports an interface has one name, whatever the world. So
//! each interface is generated once, in a world of its own, and a plugin exports two pieces: `lifecycle` and that of its kind. The
//! pieces' worlds are joined when the module becomes a component, and imports that are not called are left out.
//!
//! `wit/` stands two directories up, in this repository as in a crate that `tidemill plugin new` wrote.
#![allow(unsafe_code, reason = "generated: the canonical ABI passes pointers")]
#![allow(missing_docs, unreachable_pub, unused_qualifications, reason = "generated")]
#![allow(clippy::all, clippy::use_self, clippy::uninlined_format_args, reason = "generated")]
#![allow(clippy::allow_attributes_without_reason, reason = "generated")]

/// The types that pass between plugin and broker, owned.
pub mod types {
    wit_bindgen::generate!({
        inline: "package tidemill:pieces;
                 world types-piece {
                     import tidemill:plugin/types@0.1.0;
                     import tidemill:plugin/output@0.1.0;
                 }",
        path: "../../wit",
        generate_all,
        generate_unused_types: true,
    });
    pub use tidemill::plugin::output::*;
    pub use tidemill::plugin::types::*;
}

/// What a plugin may call. Arguments are borrowed: they go to the broker from where they stand.
pub mod host {
    wit_bindgen::generate!({
        inline: "package tidemill:pieces;
                 world host-piece {
                     import tidemill:plugin/log@0.1.0;
                     import tidemill:plugin/metrics@0.1.0;
                     import tidemill:plugin/emit@0.1.0;
                     import tidemill:plugin/state@0.1.0;
                     import tidemill:plugin/timers@0.1.0;
                 }",
        path: "../../wit",
        generate_all,
        ownership: Borrowing { duplicate_if_necessary: true },
    });
    pub use tidemill::plugin::*;
}

pub mod lifecycle {
    wit_bindgen::generate!({
        inline: "package tidemill:pieces;
                 world lifecycle-piece { export tidemill:plugin/lifecycle@0.1.0; }",
        path: "../../wit",
        with: { "tidemill:plugin/types@0.1.0": super::types::tidemill::plugin::types },
        pub_export_macro: true,
        export_macro_name: "export_lifecycle_piece",
    });
    pub use exports::tidemill::plugin::lifecycle::*;
}

pub mod partitioner {
    wit_bindgen::generate!({
        inline: "package tidemill:pieces;
                 world partitioner-piece { export tidemill:plugin/partitioner@0.1.0; }",
        path: "../../wit",
        with: { "tidemill:plugin/types@0.1.0": super::types::tidemill::plugin::types },
        pub_export_macro: true,
        export_macro_name: "export_partitioner_piece",
    });
    pub use exports::tidemill::plugin::partitioner::*;
}

pub mod filter {
    wit_bindgen::generate!({
        inline: "package tidemill:pieces;
                 world filter-piece { export tidemill:plugin/filter@0.1.0; }",
        path: "../../wit",
        with: {
            "tidemill:plugin/types@0.1.0": super::types::tidemill::plugin::types,
            "tidemill:plugin/output@0.1.0": super::types::tidemill::plugin::output,
        },
        pub_export_macro: true,
        export_macro_name: "export_filter_piece",
    });
    pub use exports::tidemill::plugin::filter::*;
}

pub mod consumer {
    wit_bindgen::generate!({
        inline: "package tidemill:pieces;
                 world consumer-piece { export tidemill:plugin/consumer@0.1.0; }",
        path: "../../wit",
        with: { "tidemill:plugin/types@0.1.0": super::types::tidemill::plugin::types },
        pub_export_macro: true,
        export_macro_name: "export_consumer_piece",
    });
    pub use exports::tidemill::plugin::consumer::*;
}
