//! The keys of tokens: the local one, by which they are made here, and those of an issuer, from a file or URL.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse, ThumbprintHash,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, encode};
use nix::unistd::Uid;
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::token::Refusal;
use crate::terminal;

/// The algorithms that are taken.
pub const ALGORITHMS: [Algorithm; 3] = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256];

/// The most bytes of a set of keys.
const LARGEST: usize = 256 * 1024;
/// The most keys of a set.
const MOST: usize = 100;
/// How long fetching may take.
const FETCH: Duration = Duration::from_secs(5);
/// The least size of an RSA key in bytes: 2048 bits.
const LEAST_RSA: usize = 256;

/// A key that tokens are verified by, for one algorithm.
#[derive(Clone)]
pub struct VerifyingKey {
    /// The key as it was given, to tell whether it is still the same.
    jwk: Jwk,
    algorithm: Algorithm,
    key: DecodingKey,
    thumbprint: String,
}

impl VerifyingKey {
    /// Takes a key that is for signatures with one of our algorithms.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library's own list, which grows: whatever is new is passed over"
    )]
    fn of(jwk: Jwk) -> Option<Self> {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
            AlgorithmParameters::RSA(key) if is_large(&key.n) => Algorithm::RS256,
            // Among them symmetric keys: what is public is no secret to sign by.
            _ => return None,
        };
        let stated = match jwk.common.key_algorithm {
            None => true,
            Some(KeyAlgorithm::EdDSA) => algorithm == Algorithm::EdDSA,
            Some(KeyAlgorithm::ES256) => algorithm == Algorithm::ES256,
            Some(KeyAlgorithm::RS256) => algorithm == Algorithm::RS256,
            Some(_) => false,
        };
        let signs = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let thumbprint = jwk.thumbprint(ThumbprintHash::SHA256).ok()?;
        (stated && signs).then_some(Self { jwk, algorithm, key, thumbprint })
    }

    /// Returns the key as a set of keys has it.
    pub fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// Returns the one algorithm that it is for.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns what tells it from every other key, whatever it is called (RFC 7638).
    pub(super) fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    pub(super) fn key(&self) -> &DecodingKey {
        &self.key
    }
}

fn is_large(modulus: &str) -> bool {
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(modulus).unwrap_or_default();
    bytes.iter().skip_while(|byte| **byte == 0).count() >= LEAST_RSA
}

/// The keys that are known at a time.
pub struct KeySet {
    keys: Vec<VerifyingKey>,
    generation: u64,
    complete: bool,
}

impl KeySet {
    pub(crate) fn new(keys: Vec<VerifyingKey>, generation: u64, complete: bool) -> Self {
        Self { keys, generation, complete }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Says whether the issuer's keys are among them.
    pub(super) fn complete(&self) -> bool {
        self.complete
    }

    /// Says whether the key with this thumbprint is among them.
    pub(super) fn accepts(&self, thumbprint: &str) -> bool {
        self.keys.iter().any(|key| key.thumbprint == thumbprint)
    }

    pub(super) fn has_the_keys(&self, keys: &[VerifyingKey]) -> bool {
        self.keys.len() == keys.len() && self.keys.iter().zip(keys).all(|(one, other)| one.jwk == other.jwk)
    }

    /// Returns the key that a token names, if it is for the token's algorithm. One that names none was signed by
    /// the only key for it.
    pub(super) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<&VerifyingKey, Refusal> {
        if !ALGORITHMS.contains(&algorithm) {
            return Err(Refusal::Algorithm);
        }
        let unknown = if self.complete { Refusal::UnknownKey } else { Refusal::NoKeys };
        match kid {
            Some(_) => {
                let mut named = self.keys.iter().filter(|key| key.jwk.common.key_id.as_deref() == kid);
                let first = named.next().ok_or(unknown)?;
                let fits = |key: &&VerifyingKey| key.algorithm == algorithm;
                Some(first).filter(fits).or_else(|| named.find(fits)).ok_or(Refusal::Algorithm)
            }
            None => {
                let mut fitting = self.keys.iter().filter(|key| key.algorithm == algorithm);
                match (fitting.next(), fitting.next()) {
                    (Some(key), None) => Ok(key),
                    (_, _) => Err(unknown),
                }
            }
        }
    }
}

/// The keys of an issuer.
pub struct Jwks {
    source: Source,
    client: Client,
}

enum Source {
    File(PathBuf),
    Url(Url),
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

impl Jwks {
    /// Takes the name of a file, or a URL.
    pub(super) fn new(place: String) -> anyhow::Result<Self> {
        let source = match Url::parse(&place) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => {
                let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
                let here =
                    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
                // Whoever is on the way could put keys of their own in.
                ensure!(
                    url.scheme() == "https" || here,
                    "--jwks must be https, unless it is on this machine"
                );
                Source::Url(url)
            }
            Ok(_) | Err(_) => Source::File(place.into()),
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().redirect(Policy::none()).timeout(FETCH).build()?;
        Ok(Self { source, client })
    }

    pub(super) const fn is_file(&self) -> bool {
        matches!(self.source, Source::File(_))
    }

    /// Fetches the keys. A set without a key of use is taken for a failure: it would lock everybody out.
    pub(super) async fn fetch(&self) -> anyhow::Result<Vec<VerifyingKey>> {
        let bytes = match &self.source {
            Source::File(path) => {
                let bytes = tokio::fs::read(path).await;
                bytes.with_context(|| format!("cannot read the keys in {}", path.display()))?
            }
            Source::Url(url) => self.get(url).await.context("cannot get the keys of --jwks")?,
        };
        ensure!(bytes.len() <= LARGEST, "the keys are larger than {LARGEST} bytes");
        let set = serde_json::from_slice::<Set>(&bytes).context("the keys are no JSON Web Key Set")?;
        ensure!(set.keys.len() <= MOST, "there are more than {MOST} keys");
        // Issuers have keys for other purposes, and of kinds yet to come, in the same set.
        let usable = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
        let usable = usable.filter_map(VerifyingKey::of).collect::<Vec<_>>();
        ensure!(
            !usable.is_empty(),
            "there is no key for EdDSA (Ed25519), ES256 or RS256 (2048 bits) among them"
        );
        debug!(keys = usable.len(), "fetched the keys of tokens");
        Ok(usable)
    }

    async fn get(&self, url: &Url) -> anyhow::Result<Vec<u8>> {
        let response = self.client.get(url.clone()).send().await.map_err(reqwest::Error::without_url)?;
        let status = response.status();
        ensure!(status.is_success(), "the answer is {status}");
        let (mut response, mut bytes) = (response, vec![]);
        while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > LARGEST {
                bail!("the answer is larger than {LARGEST} bytes");
            }
        }
        Ok(bytes)
    }
}

/// What comes before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410).
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

/// The local key, by which tokens are made.
pub struct SigningKey {
    key: EncodingKey,
    kid: String,
    verifying: VerifyingKey,
}

impl SigningKey {
    /// Reads the key, or makes one if there is no such file, and says where it is.
    pub fn open_or_make(path: &Path) -> anyhow::Result<Self> {
        match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let mut seed = [0; 32];
                getrandom::fill(&mut seed).map_err(|error| anyhow!("no random numbers: {error}"))?;
                let made = write_private(path, &pem(&seed));
                if made.with_context(|| format!("cannot write the key of tokens to {}", path.display()))? {
                    let path = path.display();
                    terminal::note(format_args!(
                        "A key for tokens was made: {path} (back it up, and keep it secret)"
                    ));
                }
            }
            Err(_) | Ok(_) => {}
        }
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read the key of tokens in {}", path.display()))?;
        Self::from_pem(&text).with_context(|| format!("{} cannot be used", path.display()))
    }

    /// Reads a key as `openssl genpkey -algorithm ed25519` writes it.
    pub fn from_pem(text: &str) -> anyhow::Result<Self> {
        let body = text.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
        let der = body.and_then(|body| STANDARD.decode(body.split_whitespace().collect::<String>()).ok());
        let Some(der) = der.filter(|der| der.len() == 48 && der.starts_with(&PKCS8)) else {
            bail!("it must be an Ed25519 key as `openssl genpkey -algorithm ed25519` writes it");
        };
        let key = EncodingKey::from_ed_der(&der);
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::EdDSA)?;
        let kid = jwk.thumbprint(ThumbprintHash::SHA256)?;
        jwk.common.key_id = Some(kid.clone());
        let verifying = VerifyingKey::of(jwk).context("it has no public key")?;
        Ok(Self { key, kid, verifying })
    }

    /// Returns what verifies the tokens that it makes.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.verifying.clone()
    }

    /// Makes a token.
    pub fn sign(&self, claims: &impl Serialize) -> anyhow::Result<String> {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        Ok(encode(&header, claims, &self.key)?)
    }
}

/// Refuses a key's file that others than its owner may read. One that somebody named may be a secret that a container
/// is given, with a mode that nobody chose: of that it is only said.
pub fn check_private(path: &Path, named: bool) -> anyhow::Result<()> {
    // Of a file that is not there, whoever reads it tells.
    let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode() & 0o777);
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let path = path.display();
    if named {
        warn!(%path, mode = format!("{mode:03o}"), "others than its owner may read this key: chmod 600, if you can");
        return Ok(());
    }
    bail!("others than its owner may read the key in {path} (its mode is {mode:03o}): chmod 600 {path}")
}

fn pem(seed: &[u8; 32]) -> String {
    format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode([&PKCS8[..], seed].concat()))
}

/// Writes a file that only its owner reads, in a directory that only its owner opens, wholly or not at all. Says
/// whether there was none before: of two processes that make one at once, both use the first one's.
pub fn write_private(path: &Path, contents: &str) -> io::Result<bool> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.exists() {
        if let Some(data_dir) = directory.parent().filter(|above| !above.as_os_str().is_empty()) {
            // As `embedded` makes it: the user who runs PostgreSQL for root passes through, and lists nothing.
            let mode = if Uid::effective().is_root() { 0o711 } else { 0o700 };
            DirBuilder::new().recursive(true).mode(mode).create(data_dir)?;
        }
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            // The umask may have taken from the mode.
            Ok(()) | Err(_) => fs::set_permissions(directory, Permissions::from_mode(0o700))?,
        }
    }
    let unfinished =
        path.with_extension(format!("unfinished-{}-{}", std::process::id(), uuid::Uuid::now_v7()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let written = file.write_all(contents.as_bytes()).and_then(|()| file.sync_all());
    // A link, unlike a renaming, does not take the place of what is there.
    let placed = written.and_then(|()| fs::hard_link(&unfinished, path));
    let removed = fs::remove_file(&unfinished);
    match placed {
        Ok(()) => removed.and_then(|()| fs::File::open(directory)?.sync_all()).map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_nobody_else_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys/signing.key");
        let made = SigningKey::open_or_make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(SigningKey::open_or_make(&path).unwrap().kid, made.kid);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing unfinished is left");
        assert!(!write_private(&path, "another").unwrap());
        assert_eq!(SigningKey::open_or_make(&path).unwrap().kid, made.kid);
    }

    #[test]
    fn a_file_that_holds_no_key_is_refused_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("signing.key");
        for text in ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            fs::write(&path, text).unwrap();
            assert!(SigningKey::open_or_make(&path).is_err(), "{text:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn keys_are_for_one_algorithm_each_and_symmetric_ones_for_none() {
        let key = |json: serde_json::Value| {
            let key = serde_json::from_value::<Jwk>(json).ok().and_then(VerifyingKey::of);
            key.map(|key| key.algorithm())
        };
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let ed = |more: serde_json::Value| {
            let mut key = serde_json::json!({"kty": "OKP", "crv": "Ed25519", "x": x});
            key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            key
        };
        assert_eq!(key(ed(serde_json::json!({}))), Some(Algorithm::EdDSA));
        assert_eq!(key(ed(serde_json::json!({"alg": "EdDSA", "use": "sig"}))), Some(Algorithm::EdDSA));
        assert_eq!(key(ed(serde_json::json!({"alg": "HS256"}))), None);
        assert_eq!(key(ed(serde_json::json!({"use": "enc"}))), None);
        assert_eq!(key(serde_json::json!({"kty": "oct", "k": x})), None);
        // 512 bits.
        let small = serde_json::json!({"kty": "RSA", "n": "a".repeat(86), "e": "AQAB"});
        assert_eq!(key(small), None);
    }
}
