//! A failed TLS handshake in words: what is wrong with whose certificate, and what to do about it.

use rustls::{AlertDescription, CertificateError, InvalidMessage};
use std::error::Error;
use std::io;

/// The sentence for `cause`, if it is TLS's own error.
pub(super) fn explain(cause: &(dyn Error + 'static)) -> Option<String> {
    // An io::Error names as its source what the error within it names, itself it is skipped; and TLS's errors come
    // within one such, or two.
    innermost(cause).downcast_ref::<rustls::Error>().map(sentence)
}

/// What the io::Errors around it hold; `error` itself if it is none, or an empty one.
fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => innermost(inner),
        None => error,
    }
}

fn sentence(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => of_server(error),
        rustls::Error::AlertReceived(alert) => by_alert(*alert),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it does not speak TLS: if plain HTTP is meant, say server = \"http://…\" in its hosts.toml"
                .into()
        }
        other => format!("TLS handshake: {other}"),
    }
}

fn of_server(error: &CertificateError) -> String {
    let hint = match error {
        // A bad signature: a trusted authority has the name of the signer, but another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            return "its certificate is signed by no authority that this host trusts: name its CA as `ca` in the \
                    registry's hosts.toml, or install it on this host"
                .into();
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "renew it, or set this host's clock"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "set this host's clock"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "ask by a name that is in it, or have it made for this one"
        }
        _ => "it must be replaced on the registry",
    };
    // rustls writes the times and the names itself.
    format!("its certificate cannot be used: {error}: {hint}")
}

/// The registry ended the handshake. `BadCertificate` is what Go before 1.21 says when there was none.
fn by_alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::BadCertificate => {
            "it wants a client certificate: give one that it accepts as `client` in the registry's hosts.toml"
                .into()
        }
        AlertDescription::UnknownCA
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::AccessDenied => {
            format!(
                "it refuses our client certificate ({alert:?}): replace the `client` in the registry's hosts.toml"
            )
        }
        other => format!("it ended the TLS handshake ({other:?})"),
    }
}
