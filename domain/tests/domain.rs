//! The domain's integration tests, in one binary. Read `meeting_spec` first: its tables say what each
//! command does in each status.

#[path = "domain/carry_over.rs"]
mod carry_over;
#[path = "domain/fixtures.rs"]
mod fixtures;
#[path = "domain/given.rs"]
mod given;
#[path = "domain/meeting_spec.rs"]
mod meeting_spec;
#[path = "domain/profile_spec.rs"]
mod profile_spec;
#[path = "domain/properties.rs"]
mod properties;
#[path = "domain/speaker_matching.rs"]
mod speaker_matching;
