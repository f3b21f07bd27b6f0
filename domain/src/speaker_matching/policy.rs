//! From what resemblance on a voice is a name.

use crate::ValueError;
use crate::speaker::PolicyVersion;
use crate::voice::ModelId;

/// The numbers of a policy. Cosine similarities and their difference are compared in whole millionths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// The least score of an identification, 0 to 1.
    pub auto: f64,
    /// The least score of a candidate, 0 to `auto`.
    pub suggest: f64,
    /// How far the best other person must be behind, 0 to 1.
    pub margin: f64,
    /// The least speech of a cluster that may be identified, in milliseconds.
    pub minimum_speech_ms: u64,
}

/// How the voices of one model are matched. Its version goes into every decision that followed it, so other
/// thresholds need another version.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    model: ModelId,
    version: PolicyVersion,
    thresholds: Thresholds,
}

impl Policy {
    /// Returns the policy for `model`, or which threshold is out of its range.
    pub fn new(model: ModelId, version: PolicyVersion, thresholds: Thresholds) -> Result<Self, ValueError> {
        let Thresholds { auto, suggest, margin, minimum_speech_ms: _ } = thresholds;
        // What is not a number is in no range.
        for (field, number) in [("auto", auto), ("suggest", suggest), ("margin", margin)] {
            if !(0.0..=1.0).contains(&number) {
                return Err(ValueError::new(field, "must be a number from 0 to 1"));
            }
        }
        if suggest > auto {
            return Err(ValueError::new("suggest", "must not be above auto"));
        }
        Ok(Self { model, version, thresholds })
    }

    /// Returns the model whose voices it is for.
    pub const fn model(&self) -> &ModelId {
        &self.model
    }

    /// Returns its version.
    pub const fn version(&self) -> &PolicyVersion {
        &self.version
    }

    /// Returns its numbers.
    pub const fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }
}

impl Default for Policy {
    /// For `resemblyzer-0.1.4`. The model embeds windows of 1.6 seconds and averages them (its
    /// `voice_encoder.py`): with three of them, rounded up to 5 seconds, no single window makes a name.
    fn default() -> Self {
        let model = "resemblyzer-0.1.4".parse().expect("it is a model's name");
        let version = "default-1".parse().expect("it is a version");
        let thresholds = Thresholds { auto: 0.82, suggest: 0.70, margin: 0.05, minimum_speech_ms: 5000 };
        Self::new(model, version, thresholds).expect("each number is in its range")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_finite_in_range_and_in_order() {
        let policy = Policy::default();
        let field = |thresholds| {
            let refused = Policy::new(policy.model.clone(), policy.version.clone(), thresholds);
            refused.err().map(|error| error.field)
        };
        let good = policy.thresholds;
        assert_eq!(field(good), None);
        assert_eq!(field(Thresholds { suggest: good.auto, ..good }), None);
        assert_eq!(field(Thresholds { suggest: good.auto + 1e-9, ..good }), Some("suggest"));
        for number in [f64::NAN, f64::INFINITY, -0.01, 1.01] {
            assert_eq!(field(Thresholds { auto: number, ..good }), Some("auto"));
            assert_eq!(field(Thresholds { suggest: number, ..good }), Some("suggest"));
            assert_eq!(field(Thresholds { margin: number, ..good }), Some("margin"));
        }
    }
}
