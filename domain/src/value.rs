//! Why a value was refused. A value type is valid because it exists; this is what its parser answers.

/// Says which field was refused and what it must be. It never repeats the value, which may be personal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct ValueError {
    /// The field's name in the interface: `sha256`, `display_name`.
    pub field: &'static str,
    /// What the field must be, or what is wrong with it.
    pub problem: &'static str,
}

impl ValueError {
    /// Returns a refusal of `field`.
    pub const fn new(field: &'static str, problem: &'static str) -> Self {
        Self { field, problem }
    }
}
