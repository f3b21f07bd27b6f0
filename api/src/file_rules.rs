//! What a client may say about files: where in the object store an artifact lies, and which recordings are taken.
//! Minutebook touches no object store; whoever does so by its records must be able to trust them.

use std::str::FromStr;

use axum::http::StatusCode;
use clap::Args;
use domain::artifact::S3Key;
use domain::file::{MimeType, SizeBytes};
use domain::ids::MeetingId;

use crate::error::Problem;

/// The rules, as they are configured.
#[derive(Debug, Clone, Args)]
pub struct FileRules {
    /// What the key of a meeting's artifact must begin with: `meetings/{meeting}/`; nothing at all is any key
    #[arg(
        long,
        env = "MINUTEBOOK_S3_PREFIX",
        default_value = "",
        hide_default_value = true,
        value_name = "PREFIX"
    )]
    pub s3_prefix: S3Prefix,

    /// The media types of recordings that are taken, by commas: `audio/*,video/mp4`; nothing at all is any
    #[arg(
        long,
        env = "MINUTEBOOK_FILE_TYPES",
        default_value = "",
        hide_default_value = true,
        value_name = "TYPES"
    )]
    pub file_types: FileTypes,

    /// The largest recording that is taken, in bytes; 0 is any
    #[arg(long, env = "MINUTEBOOK_MAX_FILE_SIZE", default_value_t = 0, value_name = "BYTES",
          value_parser = clap::value_parser!(i64).range(0..))]
    pub max_file_size: i64,
}

impl FileRules {
    /// Refuses a key that is not below the meeting's prefix, or would not be where it is decoded once more.
    pub fn check_key(&self, meeting: MeetingId, key: &S3Key) -> Result<(), Problem> {
        // `..`, empty parts, backslashes and control characters are no keys at all.
        if hides_something(key.as_str()) {
            return Err(Problem::invalid(
                "invalid_value",
                "s3_key: must not hold a dot, slash, backslash or control character that is percent-encoded",
            ));
        }
        let prefix = self.s3_prefix.of(meeting);
        if key.as_str().strip_prefix(&prefix).is_none_or(str::is_empty) {
            return Err(Problem::invalid(
                "s3_key_outside_prefix",
                format!("the s3_key of this meeting's artifacts must begin with {prefix}"),
            ));
        }
        Ok(())
    }

    /// Refuses a recording of another kind, or a larger one. Where there is a rule, what it asks about must be
    /// said.
    pub fn check_file(&self, mime: Option<&MimeType>, size: Option<SizeBytes>) -> Result<(), Problem> {
        if !self.file_types.0.is_empty() && !mime.is_some_and(|mime| self.file_types.take(mime)) {
            return Err(Problem::invalid(
                "file_type_not_allowed",
                format!("mime: must be one of {}", self.file_types.0.join(", ")),
            ));
        }
        if self.max_file_size > 0 {
            let most = format!("size: must be at most {} bytes", self.max_file_size);
            match size {
                None => return Err(Problem::invalid("file_size_unknown", format!("{most}, and said"))),
                Some(size) if size.get() > self.max_file_size => {
                    return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "file_too_large", most));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Says whether decoding the key once more, as a gateway before the store may do, would give it other parts.
fn hides_something(key: &str) -> bool {
    let nibble = |byte: u8| (byte as char).to_digit(16);
    key.as_bytes().windows(3).any(|three| {
        let [b'%', high, low] = *three else { return false };
        match nibble(high).zip(nibble(low)) {
            // `%25` is a percent sign: decoded twice, the rest of it would be seen.
            Some((high, low)) => matches!(high * 16 + low, 0..=0x1f | 0x25 | 0x2e | 0x2f | 0x5c | 0x7f),
            None => false,
        }
    })
}

/// What keys begin with; `{meeting}` stands for the meeting's id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Prefix(String);

const MEETING: &str = "{meeting}";

impl S3Prefix {
    fn of(&self, meeting: MeetingId) -> String {
        self.0.replace(MEETING, &meeting.to_string())
    }
}

impl FromStr for S3Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let filled = text.replace(MEETING, "00000000-0000-8000-8000-000000000000");
        if filled.contains(['{', '}']) {
            return Err(format!("has a place for {MEETING}, and for nothing else"));
        }
        // Else the prefix of one meeting could be the beginning of another name.
        let Some(parts) = filled.strip_suffix('/') else { return Err("must end with a slash".to_owned()) };
        let key = parts.parse::<S3Key>().map_err(|error| error.to_string())?;
        if hides_something(key.as_str()) || filled.len() > 400 {
            return Err("must be plain, and at most 400 characters".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// Media types; `*` for every one of a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileTypes(Vec<String>);

impl FileTypes {
    fn take(&self, mime: &MimeType) -> bool {
        // Without its parameters; names of types have no case.
        let essence = mime.as_str().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let kind = essence.split('/').next().unwrap_or_default();
        self.0.iter().any(|known| match known.strip_suffix("/*") {
            Some(known) => known == kind,
            None => *known == essence,
        })
    }
}

impl FromStr for FileTypes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let types =
            text.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty());
        let types = types.collect::<Vec<_>>();
        for name in &types {
            let plain = name.strip_suffix("/*").map_or_else(|| name.clone(), |kind| format!("{kind}/x"));
            if plain.parse::<MimeType>().is_err() || plain.contains(';') {
                return Err(format!("{name} is no media type"));
            }
        }
        Ok(Self(types))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(prefix: &str, types: &str, max_file_size: i64) -> FileRules {
        FileRules { s3_prefix: prefix.parse().unwrap(), file_types: types.parse().unwrap(), max_file_size }
    }

    fn code(result: Result<(), Problem>) -> &'static str {
        result.map_or_else(|problem| problem.code(), |()| "taken")
    }

    #[test]
    fn a_key_lies_below_the_prefix_of_its_own_meeting() {
        let meeting = MeetingId::from(uuid::Uuid::from_u128(7));
        let rules = rules("meetings/{meeting}/", "", 0);
        let check = |key: &str| code(rules.check_key(meeting, &key.parse().unwrap()));
        assert_eq!(check(&format!("meetings/{meeting}/a.md")), "taken");
        assert_eq!(check(&format!("meetings/{meeting}/a%20b/é..md")), "taken");
        let other = uuid::Uuid::from_u128(8);
        for key in [
            "a.md".to_owned(),
            "meetings/a.md".to_owned(),
            format!("meetings/{other}/a.md"),
            format!("x/meetings/{meeting}/a.md"),
            format!("meetings/{meeting}x/a.md"),
            format!("meetings/{meeting}"),
            format!("MEETINGS/{meeting}/a.md"),
        ] {
            assert_eq!(check(&key), "s3_key_outside_prefix", "{key}");
        }
        for hidden in
            ["%2e%2E/a.md", "..%2fa.md", "%2Fa.md", "a%5c..%5cb", "a%00", "a%0a", "%252e%252e/x", "a%7f"]
        {
            assert_eq!(check(&format!("meetings/{meeting}/{hidden}")), "invalid_value", "{hidden}");
        }
    }

    #[test]
    fn a_key_that_hides_its_parts_is_refused_without_any_prefix() {
        let meeting = MeetingId::from(uuid::Uuid::from_u128(7));
        let check = |key: &str| code(rules("", "", 0).check_key(meeting, &key.parse().unwrap()));
        assert_eq!(check("anything/at all.md"), "taken");
        assert_eq!(check("100%"), "taken");
        assert_eq!(check("a/%2e%2e/b"), "invalid_value");
    }

    #[test]
    fn a_prefix_is_plain_and_ends_with_a_slash() {
        for text in ["", "a/", "meetings/{meeting}/", "{meeting}/v1/"] {
            assert!(text.parse::<S3Prefix>().is_ok(), "{text:?}");
        }
        for text in
            ["a", "/", "/a/", "a//", "../", "a/../", "{owner}/", "{meeting}", "a\\/", "%2e/", "{meeting/"]
        {
            assert!(text.parse::<S3Prefix>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_recording_is_of_a_kind_and_a_size_that_is_taken() {
        let mime = |text: &str| Some(text.parse::<MimeType>().unwrap());
        let size = |bytes: i64| Some(SizeBytes::try_from(bytes).unwrap());
        let some = rules("", "audio/*, video/MP4", 100);
        let check = |mime: Option<MimeType>, size| code(some.check_file(mime.as_ref(), size));
        assert_eq!(check(mime("audio/flac"), size(100)), "taken");
        assert_eq!(check(mime("AUDIO/ogg; codecs=opus"), size(0)), "taken");
        assert_eq!(check(mime("video/mp4"), size(1)), "taken");
        for refused in [mime("video/webm"), mime("audiox/flac"), mime("text/html"), None] {
            assert_eq!(check(refused, size(1)), "file_type_not_allowed");
        }
        assert_eq!(check(mime("audio/flac"), size(101)), "file_too_large");
        assert_eq!(check(mime("audio/flac"), None), "file_size_unknown");
        assert_eq!(code(rules("", "", 0).check_file(None, None)), "taken");
        for text in ["audio", "*/*", "audio/", "audio/*;q=1", "a b/c"] {
            assert!(text.parse::<FileTypes>().is_err(), "{text:?}");
        }
    }
}
