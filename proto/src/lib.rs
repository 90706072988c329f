//! Wire types of every service, generated from the protos beside this crate, and their descriptors.
//!
//! Nothing is decided here: services parse these types in their `rpc/` modules and speak domain types inside.

// Generated code is not ours to restyle.
#![allow(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    clippy::doc_markdown,
    unreachable_pub,
    // The protos' comments are not Markdown.
    rustdoc::broken_intra_doc_links,
    rustdoc::invalid_html_tags,
    rustdoc::bare_urls,
    reason = "generated code"
)]

/// Shapes that more than one service speaks.
pub mod common {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("wedsync.common.v1");
    }
}

/// The event log, routes, consumers and subscriptions.
pub mod router {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("wedsync.router.v1");
    }
}

/// People.
pub mod notifier {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("wedsync.notifier.v1");
    }
}

/// Systems.
pub mod vendorsync {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("wedsync.vendorsync.v1");
    }
}

/// Encoded `FileDescriptorSet` of all protos, for server reflection and for tests that walk every RPC.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
