//! The uploaded recording that a meeting is made of.

use serde::{Deserialize, Serialize};

use crate::ValueError;
use crate::ids::{FileId, OwnerId};
use crate::text::text_type;

text_type!(
    /// The SHA-256 of a file's bytes: 64 hexadecimal digits, kept in lower case.
    Sha256,
    |text| {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ValueError::new("sha256", "must be 64 hexadecimal digits"));
        }
        Ok(text.to_ascii_lowercase())
    }
);

text_type!(
    /// A fingerprint of the audio itself, the same for a file that was re-encoded without loss: 1 to 128
    /// printable ASCII characters without blanks.
    ContentFp,
    |text| {
        if text.is_empty() || text.len() > 128 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ValueError::new("content_fp", "must be 1 to 128 printable ASCII characters, no blanks"));
        }
        Ok(text)
    }
);

text_type!(
    /// A media type (RFC 9110) of at most 100 characters: `audio/flac`.
    MimeType,
    |text| {
        let well_formed = text.parse::<mime::Mime>().is_ok_and(|mime| {
            let parts = [mime.type_(), mime.subtype()];
            parts.iter().all(|part| *part != mime::STAR && !part.as_str().is_empty())
        });
        if text.len() > 100 || !well_formed {
            return Err(ValueError::new("mime", "must be a media type of at most 100 characters"));
        }
        Ok(text)
    }
);

/// A length in whole seconds, 0 to 2,147,483,647.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct DurationSeconds(i32);

impl DurationSeconds {
    /// Returns the seconds.
    pub const fn get(self) -> i32 {
        self.0
    }
}

impl TryFrom<i64> for DurationSeconds {
    type Error = ValueError;
    fn try_from(seconds: i64) -> Result<Self, ValueError> {
        match i32::try_from(seconds) {
            Ok(seconds) if seconds >= 0 => Ok(Self(seconds)),
            Ok(_) | Err(_) => Err(ValueError::new("duration", "must be 0 to 2147483647 seconds")),
        }
    }
}

impl From<DurationSeconds> for i64 {
    fn from(duration: DurationSeconds) -> Self {
        duration.0.into()
    }
}

/// A size in bytes, 0 to 2^63 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct SizeBytes(i64);

impl SizeBytes {
    /// Returns the bytes.
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl TryFrom<i64> for SizeBytes {
    type Error = ValueError;
    fn try_from(bytes: i64) -> Result<Self, ValueError> {
        if bytes < 0 { Err(ValueError::new("size", "must not be negative")) } else { Ok(Self(bytes)) }
    }
}

impl From<SizeBytes> for i64 {
    fn from(size: SizeBytes) -> Self {
        size.0
    }
}

/// What is known of an uploaded file when its meeting is registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Derived from owner and content.
    pub id: FileId,
    /// The hash of the file's bytes.
    pub sha256: Sha256,
    /// The media type, where the uploader said one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mime: Option<MimeType>,
    /// The size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<SizeBytes>,
    /// The length in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<DurationSeconds>,
    /// Who may see the meeting; nobody in particular when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sha256_is_64_hexadecimal_digits() {
        assert_eq!("AB".repeat(32).parse::<Sha256>().unwrap().as_str(), "ab".repeat(32));
        for text in ["", "abc", &"g".repeat(64), &"a".repeat(65), &"é".repeat(32)] {
            assert!(text.parse::<Sha256>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_media_type_is_well_formed() {
        for text in ["audio/flac", "text/plain; charset=utf-8", "application/x-rttm"] {
            assert!(text.parse::<MimeType>().is_ok(), "{text:?}");
        }
        for text in
            ["", "audio", "audio/", "/flac", "au dio/flac", "*/*", &format!("audio/{}", "x".repeat(100))]
        {
            assert!(text.parse::<MimeType>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_duration_and_a_size_fit_their_columns() {
        assert!(DurationSeconds::try_from(i64::from(i32::MAX)).is_ok());
        assert!(DurationSeconds::try_from(i64::from(i32::MAX) + 1).is_err());
        assert!(DurationSeconds::try_from(-1).is_err());
        assert!(SizeBytes::try_from(i64::MAX).is_ok());
        assert!(SizeBytes::try_from(-1).is_err());
    }

    #[test]
    fn a_content_fingerprint_is_bounded() {
        assert!("x".repeat(128).parse::<ContentFp>().is_ok());
        for text in ["", "a b", "a\0", &"x".repeat(129), "ü"] {
            assert!(text.parse::<ContentFp>().is_err(), "{text:?}");
        }
    }
}
