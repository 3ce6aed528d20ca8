//! Proof that a request comes from the agent, or through nginx. Each of them sends a secret, which is new at every boot.

use links_domain::hex;
use links_domain::secret::{Digest, SALT_LENGTH};
use subtle::ConstantTimeEq;

/// The header with the agent's secret, which requests below `/internal/` need.
pub const AGENT_HEADER: &str = "links-agent-secret";

/// The header with nginx's secret. Without it, the headers that only nginx may set are ignored.
pub const PROXY_HEADER: &str = "links-proxy-secret";

/// The digest of a secret. It has a fixed size, so comparing takes the same time whatever is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof(Option<Digest>);

impl Proof {
    /// The proof for the secret in a variable. An empty value matches nothing.
    pub fn of(variable: &str) -> Proof {
        let secret = variable.trim();
        // The digest is never stored, so it needs no salt.
        Proof((!secret.is_empty()).then(|| Digest::of(secret.as_bytes(), [0; SALT_LENGTH])))
    }

    pub fn is_given_by(&self, header: &[u8]) -> bool {
        self.0.is_some_and(|digest| digest.is_of(header))
    }

    /// A signature of the message that only holders of the secret can make, and that does not reveal the secret. `None` if
    /// there is no secret.
    pub fn sign(&self, message: &str) -> Option<String> {
        Some(hex::encode(&self.0?.sign(message)))
    }

    /// Whether the signature is right. The time this takes does not depend on how much of the signature is right.
    pub fn has_signed(&self, message: &str, signature: &str) -> bool {
        self.sign(message)
            .is_some_and(|wanted| wanted.as_bytes().ct_eq(signature.as_bytes()).into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn only_the_secret_itself_is_proof() {
        let proof = Proof::of("0123456789abcdef\n");
        assert!(proof.is_given_by(b"0123456789abcdef"));
        for other in ["", "0", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF"] {
            assert!(!proof.is_given_by(other.as_bytes()), "{other:?}");
        }
    }

    #[test]
    fn an_empty_secret_matches_nothing() {
        for variable in ["", " ", "\n"] {
            for header in [variable, "", "x"] {
                assert!(
                    !Proof::of(variable).is_given_by(header.as_bytes()),
                    "{variable:?} {header:?}"
                );
            }
        }
    }

    #[test]
    fn a_signature_belongs_to_one_secret_and_one_message() {
        let proof = Proof::of("s3cret");
        let signature = proof.sign("message").unwrap();
        assert!(proof.has_signed("message", &signature));
        assert!(!proof.has_signed("messages", &signature) && !proof.has_signed("message", &signature[1..]));
        assert!(!Proof::of("s3cret2").has_signed("message", &signature));
        assert_eq!(Proof::of("").sign("message"), None);
        assert!(!Proof::of("").has_signed("message", ""));
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert!(!format!("{:?}", Proof::of("s3cret")).contains("s3cret"));
    }
}
