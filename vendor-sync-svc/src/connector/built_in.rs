//! The connectors that are compiled in: one file each in `connectors/`, one line each here, in the order of the alphabet.

/// Name and text of each.
pub(super) const BUILT_IN: &[(&str, &str)] = &[
    ("database", include_str!("../../connectors/database.toml")),
    ("light-blue", include_str!("../../connectors/light-blue.toml")),
    ("venue", include_str!("../../connectors/venue.toml")),
    ("vsco-workspace", include_str!("../../connectors/vsco-workspace.toml")),
];
