//! What the service is told by its environment: read once, refused by name.

use std::fmt::Display;
use std::net::SocketAddr;

use axum::http::HeaderName;
use tenant_gate::Blind;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use crate::registry::{Login, trust};

/// The settings. `README.md` has them as a table.
pub struct Settings {
    /// LISTEN: where proxies ask.
    pub listen: SocketAddr,
    /// REDIS_URL.
    pub redis_url: String,
    /// BASE_DOMAIN: tenants are below it.
    pub base_domain: String,
    /// APP_DATABASE_URL and POSTGRES_CA_BUNDLE: the registry, as the product's own role.
    pub login: Login,
    /// HOST_HEADER: what the proxy writes the client's host into.
    pub host_header: HeaderName,
    /// WHEN_BLIND: what happens where neither Redis nor the registry can be asked.
    pub when_blind: Blind,
}

/// Settings that the service cannot start with: all of them, by name.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused(Vec<String>);

impl Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the settings were refused: {}", self.0.join("; "))
    }
}

impl std::error::Error for Refused {}

impl Settings {
    /// Reads them, each by its name.
    ///
    /// # Errors
    /// When some are missing or wrong. What a URL holds is not repeated: it may be a password.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Refused> {
        let mut variables = Variables { variable, problems: Vec::new() };
        let listen = variables.read("LISTEN", Some("127.0.0.1:8081"), |text| {
            text.parse().map_err(|_| "must be an address and a port, such as 127.0.0.1:8081")
        });
        let redis_url = variables.read("REDIS_URL", None, |text| {
            let known = ["redis://", "rediss://"].iter().any(|scheme| text.starts_with(scheme));
            known.then(|| text.to_owned()).ok_or("must begin with redis:// or rediss://")
        });
        let base_domain = variables.read("BASE_DOMAIN", None, domain);
        let database = variables.read("APP_DATABASE_URL", None, |text| {
            text.parse::<Config>().map_err(|_| "must be a URL such as postgres://tenantry_app:password@host/registry")
        });
        let tls = variables.read("POSTGRES_CA_BUNDLE", Some(""), |path| match path {
            "" => Ok(None),
            path => trust(path).map(Some).map_err(|why| format!("must be a PEM file with certificates: {path}: {why}")),
        });
        let host_header = variables.read("HOST_HEADER", Some("Host"), |text| {
            text.parse().map_err(|_| "must be the name of a header, such as Host or X-Forwarded-Host")
        });
        let when_blind = variables.read("WHEN_BLIND", Some("closed"), str::parse);
        if let (Some(database), Some(None)) = (&database, &tls)
            && database.get_ssl_mode() == SslMode::Require
        {
            variables.refuse("POSTGRES_CA_BUNDLE", "must be given where APP_DATABASE_URL has sslmode=require");
        }
        match (listen, redis_url, base_domain, database, tls, host_header, when_blind) {
            (
                Some(listen),
                Some(redis_url),
                Some(base_domain),
                Some(database),
                Some(tls),
                Some(host_header),
                Some(when_blind),
            ) if variables.problems.is_empty() => {
                let login = Login::new(database, tls);
                Ok(Settings { listen, redis_url, base_domain, login, host_header, when_blind })
            }
            _ => Err(Refused(variables.problems)),
        }
    }
}

/// Variables, and what is wrong with them.
struct Variables<F> {
    variable: F,
    problems: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    /// One that must be there unless it has a default; empty counts as absent. `None` when there is a problem with it.
    fn read<T, W: Display>(
        &mut self,
        name: &str,
        default: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, W>,
    ) -> Option<T> {
        let given = (self.variable)(name).filter(|text| !text.is_empty());
        let Some(text) = given.as_deref().or(default) else {
            self.refuse(name, "must be set");
            return None;
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.refuse(name, why);
                None
            }
        }
    }

    fn refuse(&mut self, name: &str, why: impl Display) {
        self.problems.push(format!("{name} {why}"));
    }
}

/// A domain name in lower case: RFC 1035's labels, at most 253 characters.
fn domain(text: &str) -> Result<String, &'static str> {
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(plain);
    let named = text.len() <= 253 && text.split('.').all(label);
    if named { Ok(text) } else { Err("must be a domain name, such as app.example.com") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[(&str, &str)] = &[
        ("REDIS_URL", "redis://127.0.0.1"),
        ("BASE_DOMAIN", "App.example.com."),
        ("APP_DATABASE_URL", "postgres://tenantry_app:secret@127.0.0.1/registry"),
    ];

    /// Reads the good settings with others in front of them.
    fn read(others: &[(&str, &str)]) -> Result<Settings, String> {
        let all = [others, GOOD].concat();
        let find = |name: &str| all.iter().find(|(named, _)| *named == name).map(|(_, value)| (*value).to_owned());
        Settings::read(find).map_err(|refused| refused.to_string())
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let settings = read(&[]).unwrap_or_else(|refused| panic!("{refused}"));
        assert_eq!(settings.listen.to_string(), "127.0.0.1:8081");
        assert_eq!((settings.host_header.as_str(), settings.when_blind), ("host", Blind::Closed));
        assert_eq!(settings.base_domain, "app.example.com");
        assert!(read(&[("WHEN_BLIND", "open")]).is_ok_and(|settings| settings.when_blind == Blind::Open));
    }

    #[test]
    fn every_wrong_setting_is_named_and_no_password_told() {
        let wrong = [
            ("LISTEN", "8081"),
            ("REDIS_URL", "http://:secret@127.0.0.1"),
            ("BASE_DOMAIN", "https://app.example.com"),
            ("APP_DATABASE_URL", "mysql://tenantry_app:secret@127.0.0.1"),
            ("POSTGRES_CA_BUNDLE", "/nowhere/ca.pem"),
            ("HOST_HEADER", "X Forwarded Host"),
            ("WHEN_BLIND", "half"),
        ];
        let Err(refused) = read(&wrong) else { panic!("accepted") };
        for (name, _) in wrong {
            assert!(refused.contains(&format!("{name} must ")), "{name} is not among {refused}");
        }
        assert!(!refused.contains("secret"), "{refused}");
        let missing = Settings::read(|_| None).err().map(|refused| refused.to_string()).unwrap_or_default();
        for (name, _) in GOOD {
            assert!(missing.contains(&format!("{name} must be set")), "{name} is not among {missing}");
        }
    }

    #[test]
    fn tls_that_nothing_could_verify_is_refused() {
        let url = ("APP_DATABASE_URL", "postgres://tenantry_app@127.0.0.1/registry?sslmode=require");
        let Err(refused) = read(&[url]) else { panic!("accepted") };
        assert!(refused.contains("POSTGRES_CA_BUNDLE must be given"), "{refused}");
    }
}
