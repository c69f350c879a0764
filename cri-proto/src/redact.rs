//! Debug of the one message that carries secrets.

use std::fmt;

use crate::v1::AuthConfig;

/// Says which secrets are set, never what they are: requests are logged with `{:?}`.
impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn hidden(secret: &str) -> &'static str {
            if secret.is_empty() { "" } else { "[redacted]" }
        }
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &hidden(&self.password))
            .field("auth", &hidden(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &hidden(&self.identity_token))
            .field("registry_token", &hidden(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use crate::v1::{AuthConfig, PullImageRequest};

    #[test]
    fn debug_never_prints_a_secret() {
        let auth = AuthConfig {
            username: "someone".into(),
            password: "s3cret-1".into(),
            auth: "s3cret-2".into(),
            server_address: "registry.example".into(),
            identity_token: "s3cret-3".into(),
            registry_token: "s3cret-4".into(),
        };
        let text = format!("{:#?}", PullImageRequest { auth: Some(auth), ..Default::default() });
        assert!(!text.contains("s3cret"), "{text}");
        assert!(text.contains("someone") && text.contains("registry.example"), "{text}");
        assert_eq!(text.matches("[redacted]").count(), 4, "{text}");
    }
}
