//! Bounded text. Lengths are counted in characters, as PostgreSQL's `varchar(n)` counts them; NUL is
//! refused because `jsonb` refuses it. (A Rust string cannot hold a lone surrogate.)

use crate::ValueError;

/// Checks the bounds that every text has.
pub(crate) fn check(
    text: &str,
    field: &'static str,
    max: usize,
    problem: &'static str,
) -> Result<(), ValueError> {
    // A byte length within the bound spares the count: a character has at least one byte.
    let too_long = text.len() > max && text.chars().count() > max;
    if text.trim().is_empty() || too_long || text.contains('\0') {
        return Err(ValueError::new(field, problem));
    }
    Ok(())
}

/// Defines a text type with its parser, its JSON form (the bare string) and its accessors.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::ValueError;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                let parse: fn(String) -> Result<String, $crate::ValueError> = $parse;
                parse(text).map(Self)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::ValueError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
pub(crate) use text_type;

text_type!(
    /// Why somebody did something: 1 to 1,000 characters.
    Reason,
    |text| {
        check(&text, "reason", 1000, "must be 1 to 1,000 characters, not blank, without NUL")?;
        Ok(text)
    }
);

text_type!(
    /// The worker that processes a meeting, as an opaque id: 1 to 100 characters.
    WorkerId,
    |text| {
        check(&text, "worker", 100, "must be 1 to 100 characters, not blank, without NUL")?;
        Ok(text)
    }
);

text_type!(
    /// A stage of the pipeline, the first part of its cache key: 1 to 100 of `a-z 0-9 . _ -`.
    ///
    /// With a content fingerprint of 128 characters and the colon, a key stays within the 255 of its
    /// column. `meeting` is reserved: `meeting:<id>` is the key of a completed meeting's result.
    Stage,
    |text| {
        let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        if text.is_empty() || text.len() > 100 || !plain || text == "meeting" {
            return Err(ValueError::new("stage", "must be 1 to 100 of a-z 0-9 . _ - and not \"meeting\""));
        }
        Ok(text)
    }
);

text_type!(
    /// A BCP 47 language tag of at most 10 characters, in its usual case: `en`, `de-CH`.
    Language,
    |text| {
        const PROBLEM: ValueError =
            ValueError::new("language", "must be a BCP 47 language tag of at most 10 characters");
        let tag = oxilangtag::LanguageTag::parse_and_normalize(&text).map_err(|_| PROBLEM)?;
        if tag.as_str().len() > 10 { Err(PROBLEM) } else { Ok(tag.into_inner()) }
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_counted_in_characters() {
        assert!(Reason::try_from("ü".repeat(1000)).is_ok());
        assert!(Reason::try_from("ü".repeat(1001)).is_err());
    }

    #[test]
    fn blank_and_nul_are_refused() {
        for text in ["", "   ", "a\0b"] {
            assert!(Reason::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_stage_cannot_collide_with_a_meeting_s_own_key() {
        for text in ["meeting", "a:b", "Ä", "", "a b"] {
            assert!(Stage::try_from(text.to_owned()).is_err(), "{text:?}");
        }
        assert!(Stage::try_from("transcribe.v2".to_owned()).is_ok());
    }

    #[test]
    fn a_language_is_normalised() {
        assert_eq!("DE-ch".parse::<Language>().unwrap().as_str(), "de-CH");
        for text in ["", "english!", "en_US_x", "zh-Hant-TW-x-private"] {
            assert!(text.parse::<Language>().is_err(), "{text:?}");
        }
    }
}
