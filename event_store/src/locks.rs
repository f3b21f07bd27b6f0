//! The advisory locks by which the processes on one database take turns, each by its number: in Rust it is written
//! here alone. (`log.append` has the first one's in SQL.)

/// Whoever appends, or destroys keys, or changes the master key: to the end of its transaction. Shared, whoever asks
/// at which position the log stood at a time, for as long as it takes to get it.
pub const APPEND: i64 = 7_165_932_018_841_088_001;
/// Whoever creates the live generation of the tables, if there is none: to the end of its transaction.
pub const CREATION: i64 = 7_165_932_018_841_088_002;
/// The active projector: for as long as its connection lasts.
pub const PROJECTOR: i64 = 7_165_932_018_841_088_003;
/// The active publisher: for as long as its connection lasts.
pub const PUBLISHER: i64 = 7_165_932_018_841_088_004;
/// The rebuild that runs: for as long as its connection lasts. An erasure that cleans other generations: to the end of
/// its transaction.
pub const REBUILD: i64 = 7_165_932_018_841_088_005;
/// Whoever carries out erasures: for one pass over those that are under way.
pub const ERASURES: i64 = 7_165_932_018_841_088_006;
/// Whoever rotates the master key: for as long as its connection lasts.
pub const ROTATION: i64 = 7_165_932_018_841_088_007;
/// Whoever creates the table of an idempotent receiver, in the subscriber's own database: to the end of its
/// transaction.
pub const RECEIVER: i64 = 7_165_932_018_841_088_101;
