//! Temporary.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail at once")]
mod cli;
mod import;
mod kill;
mod read_models;
#[cfg(dev_read_models)]
mod a {
    #[test]
    fn a_provider() {
        rustls::crypto::ring::default_provider().install_default().unwrap();
    }
}
