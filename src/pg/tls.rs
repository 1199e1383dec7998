//! Whom a TLS connection to PostgreSQL trusts: libpq's `sslmode` and `sslrootcert`, on rustls.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256, Sha384, Sha512};

/// What of the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Nothing: the connection is only encrypted.
    Nothing,
    /// That a trusted authority signed it.
    Chain,
    /// That, and that it was made out to this host.
    ChainAndName,
}

/// Where the trusted authorities come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Roots {
    /// The operating system's store.
    System,
    /// A PEM file.
    File(String),
}

/// Why the trusted authorities cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum RootsError {
    #[error("sslrootcert {path}: {reason}")]
    File { path: String, reason: String },
    #[error("the operating system's certificate store is empty: name a file with sslrootcert")]
    NoSystemStore,
}

/// The configuration of every TLS connection to one database.
pub(super) fn client_config(check: Check, roots: &Roots) -> Result<Arc<ClientConfig>, RootsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut store = RootCertStore::empty();
    let mut pinned = Vec::new();
    if check != Check::Nothing {
        match roots {
            Roots::System => {
                let found = rustls_native_certs::load_native_certs();
                let (added, _unusable) = store.add_parsable_certificates(found.certs);
                if added == 0 {
                    return Err(RootsError::NoSystemStore);
                }
            }
            Roots::File(path) => {
                pinned = read_certificates(path)?;
                store.add_parsable_certificates(pinned.iter().cloned());
            }
        }
    }
    let verifier = Verifier {
        check,
        store,
        pinned,
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // PostgreSQL 17 demands it of direct connections; older servers do not look at it.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(Arc::new(config))
}

fn read_certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, RootsError> {
    let failed = |reason: String| RootsError::File {
        path: path.to_owned(),
        reason,
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(error.to_string()))?;
    if certificates.is_empty() {
        return Err(failed("no certificate in PEM form is in it".to_owned()));
    }
    Ok(certificates)
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    store: RootCertStore,
    /// The certificates of `sslrootcert`. A server may present one of them itself: self-signed
    /// server certificates are often handed out that way.
    pinned: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if !self.pinned.contains(end_entity) {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &self.store,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
        if self.check == Check::ChainAndName {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The sentence for a handshake that failed over the certificate; `None` for any other failure.
pub(super) fn certificate_problem(error: &std::io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::InvalidCertificate(problem) => Some(problem.to_string()),
        Error::Other(OtherError(problem)) => Some(problem.to_string()),
        _ => None,
    }
}

/// RFC 5929's `tls-server-end-point`: the certificate's hash, under the digest of its own
/// signature (MD5 and SHA-1 count as SHA-256). `None` where the signature has no digest of its
/// own (Ed25519) or keeps it in parameters (RSA-PSS): SCRAM then goes unbound.
pub(super) fn end_point_digest(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, whole, _) = element(certificate)?;
    let (_, _to_be_signed, rest) = element(whole)?;
    let (_, algorithm, _) = element(rest)?;
    let (tag, identifier, _) = element(algorithm)?;
    if tag != 0x06 {
        return None;
    }
    // PKCS #1 (1.2.840.113549.1.1) and ANSI X9.62 (1.2.840.10045.4), in DER.
    const RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01];
    const ECDSA: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04];
    let bits = if let Some(last) = identifier.strip_prefix(RSA) {
        match last {
            [4 | 5 | 11] => 256,
            [12] => 384,
            [13] => 512,
            _ => return None,
        }
    } else {
        match identifier.strip_prefix(ECDSA)? {
            [1] | [3, 2] => 256,
            [3, 3] => 384,
            [3, 4] => 512,
            _ => return None,
        }
    };
    Some(match bits {
        256 => Sha256::digest(certificate).to_vec(),
        384 => Sha384::digest(certificate).to_vec(),
        _ => Sha512::digest(certificate).to_vec(),
    })
}

/// One DER element: its tag, its content, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
        if digits.len() > 4 {
            return None;
        }
        let length = digits
            .iter()
            .fold(0, |length, digit| length << 8 | usize::from(*digit));
        (length, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_end_point_of_a_certificate_is_its_hash_under_its_signatures_digest() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["db".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        assert_eq!(
            end_point_digest(certificate.der()),
            Some(Sha384::digest(certificate.der()).to_vec())
        );
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["db".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        assert_eq!(end_point_digest(certificate.der()), None);
    }

    proptest! {
        #[test]
        fn no_certificate_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            end_point_digest(&bytes);
        }
    }
}
