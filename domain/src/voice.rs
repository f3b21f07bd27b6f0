//! Voices as vectors. A vector means something only beside others of the same model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ValueError;
use crate::personal_data::Personal;
use crate::text::{check, text_type};

/// The most numbers that a vector of any model has.
pub const MAX_DIMENSION: usize = 2048;

text_type!(
    /// The embedding model that made a vector: `resemblyzer-0.1.4`.
    ModelId,
    |text| {
        check(&text, "model", 100, "must be 1 to 100 characters, not blank, without NUL")?;
        Ok(text)
    }
);

text_type!(
    /// Where a voice sample came from, in the words of whoever enrolled it: 1 to 200 characters.
    SampleSource,
    |text| {
        check(&text, "source", 200, "must be 1 to 200 characters, not blank, without NUL")?;
        Ok(text)
    }
);

/// A speaker embedding: finite, not zero, 1 to [`MAX_DIMENSION`] numbers.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f32>", into = "Vec<f32>")]
pub struct Vector(Vec<f32>);

impl Vector {
    /// Returns the numbers.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }
}

impl TryFrom<Vec<f32>> for Vector {
    type Error = ValueError;
    fn try_from(numbers: Vec<f32>) -> Result<Self, ValueError> {
        if numbers.is_empty() || numbers.len() > MAX_DIMENSION {
            return Err(ValueError::new("vector", "must have 1 to 2048 numbers"));
        }
        if numbers.iter().any(|n| !n.is_finite()) {
            return Err(ValueError::new("vector", "must have finite numbers only"));
        }
        if numbers.iter().all(|n| *n == 0.0) {
            return Err(ValueError::new("vector", "must not be zero"));
        }
        // jsonb keeps decimal numbers, which know no negative zero.
        Ok(Self(numbers.into_iter().map(|n| if n == 0.0 { 0.0 } else { n }).collect()))
    }
}

impl From<Vector> for Vec<f32> {
    fn from(vector: Vector) -> Self {
        vector.0
    }
}

// A voice is biometric data: it does not show itself in a log by way of `{:?}`.
impl std::fmt::Debug for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vector({} numbers)", self.0.len())
    }
}

/// A vector and the model that made it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Voice {
    /// The embedding model.
    pub model: ModelId,
    /// The embedding.
    pub vector: Vector,
}

/// A voice as events keep it: the vector is sealed in the log, the model is not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptVoice {
    /// The embedding model.
    pub model: ModelId,
    /// The embedding.
    pub vector: Personal<Vector>,
}

impl KeptVoice {
    /// Returns the voice, if it is known.
    pub fn known(&self) -> Option<Voice> {
        let vector = self.vector.known()?.clone();
        Some(Voice { model: self.model.clone(), vector })
    }
}

impl From<Voice> for KeptVoice {
    fn from(Voice { model, vector }: Voice) -> Self {
        Self { model, vector: Personal::Known(vector) }
    }
}

/// Why a voice is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VoiceError {
    /// Nobody has said what its vectors are like.
    #[error("model is not a known voice model")]
    UnknownModel,
    /// It has more numbers than its model gives, or fewer.
    #[error("vector does not have its model's dimension")]
    WrongDimension,
    /// It is no embedding of any model.
    #[error(transparent)]
    Vector(#[from] ValueError),
}

impl VoiceError {
    /// Returns the refusal's stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownModel => "unknown_voice_model",
            Self::WrongDimension => "wrong_dimension",
            Self::Vector(_) => "invalid_vector",
        }
    }
}

/// The models that are known, each with the dimension of its vectors.
#[derive(Debug, Clone)]
pub struct VoiceModels(BTreeMap<ModelId, usize>);

impl VoiceModels {
    /// Returns the models in `dimensions`.
    pub const fn new(dimensions: BTreeMap<ModelId, usize>) -> Self {
        Self(dimensions)
    }

    /// Checks that `voice` is of a known model and has its dimension.
    pub fn check(&self, voice: &Voice) -> Result<(), VoiceError> {
        match self.0.get(&voice.model) {
            None => Err(VoiceError::UnknownModel),
            Some(dimension) if *dimension != voice.vector.as_slice().len() => Err(VoiceError::WrongDimension),
            Some(_) => Ok(()),
        }
    }

    /// Makes a voice of what a known model gave. What is too large for the numbers of a vector is not finite.
    pub fn voice(&self, model: ModelId, numbers: &[f64]) -> Result<Voice, VoiceError> {
        let numbers = numbers.iter().map(|number| *number as f32).collect::<Vec<_>>();
        let voice = Voice { model, vector: numbers.try_into()? };
        self.check(&voice)?;
        Ok(voice)
    }
}

impl Default for VoiceModels {
    /// Knows `resemblyzer-0.1.4` (256 numbers).
    fn default() -> Self {
        let resemblyzer = ModelId("resemblyzer-0.1.4".to_owned());
        Self(BTreeMap::from([(resemblyzer, 256)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_finite_bounded_and_not_zero() {
        assert!(Vector::try_from(vec![0.5, -0.5]).is_ok());
        for numbers in
            [vec![], vec![0.0; 3], vec![f32::NAN], vec![f32::INFINITY], vec![1.0; MAX_DIMENSION + 1]]
        {
            assert!(Vector::try_from(numbers).is_err());
        }
    }

    #[test]
    fn a_vector_has_its_model_s_dimension() {
        let voice = |model: &str, len| Voice {
            model: model.parse().unwrap(),
            vector: Vector::try_from(vec![1.0; len]).unwrap(),
        };
        let models = VoiceModels::default();
        assert!(models.check(&voice("resemblyzer-0.1.4", 256)).is_ok());
        assert!(models.check(&voice("resemblyzer-0.1.4", 192)).is_err());
        assert!(models.check(&voice("unheard-of", 256)).is_err());
    }

    #[test]
    fn a_vector_does_not_show_itself() {
        let shown = format!("{:?}", Vector::try_from(vec![0.123]).unwrap());
        assert!(!shown.contains("0.123"), "{shown}");
    }
}
