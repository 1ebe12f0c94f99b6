//! Which pack is awake: one at a time, the one of the domain that was asked for last.
//!
//! A domain that is not in the map is the default domain; a domain without a pack is the base alone. A pack that was
//! not asked for longer than the time to live is put to sleep at the next request. The router changes its mind only
//! after the pack is attached: a pack that cannot be woken leaves the model and the router as they were.

use super::error::{Error, Result};
use crate::atomic::FileError;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Domain of the base alone, where the map does not say otherwise.
pub const CORE: &str = "core";

/// Domains and the packs they are served by; `None`: the base alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DomainMap(BTreeMap<String, Option<String>>);

impl DomainMap {
    /// From a file with a JSON object, or from text such as `taxi=pack1,med=pack2`.
    ///
    /// # Errors
    /// When it is neither, names nothing, or names a domain twice.
    pub fn read(text: &str) -> Result<DomainMap> {
        let path = Path::new(text);
        if path.is_file() {
            let bytes = crate::atomic::read_bounded(path, 16 << 20).map_err(FileError::at("reading", path))?;
            return DomainMap::from_json(&bytes).map_err(|reason| Error::file(path, reason));
        }
        if !text.contains('=') {
            return Err(Error::Name(format!(
                "{text}: no such file; expected a JSON file such as {{\"core\": null, \"taxi\": \"pack1\"}}, or taxi=pack1,med=pack2"
            )));
        }
        let mut map = DomainMap::default();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let halves = part.split_once('=').filter(|(domain, pack)| ![domain.trim(), pack.trim()].contains(&""));
            let (domain, pack) = halves.ok_or_else(|| {
                Error::Usage(format!(
                    "{part:?} of the domain map is not of the form DOMAIN=PACK (core is the base alone)"
                ))
            })?;
            map.add(domain, pack).map_err(Error::Usage)?;
        }
        Ok(map)
    }

    /// From a JSON object.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(bytes: &[u8]) -> std::result::Result<DomainMap, String> {
        let shape = "a JSON object such as {\"core\": null, \"taxi\": \"pack1\"}";
        let Entries(entries) = serde_json::from_slice(bytes).map_err(|e| match e.is_data() {
            true => format!("expected {shape}"),
            false => format!("is not valid JSON ({e}); expected {shape}"),
        })?;
        let mut map = DomainMap::default();
        for (domain, pack) in &entries {
            let pack = match pack {
                Value::Null => "",
                Value::String(pack) => pack,
                _ => return Err(format!("domain {domain:?}: expected the name of a pack, or null for the base alone")),
            };
            map.add(domain, pack)?;
        }
        Ok(map)
    }

    fn add(&mut self, domain: &str, pack: &str) -> std::result::Result<(), String> {
        let pack = pack.trim();
        let pack = (!["", "core", "base"].contains(&pack)).then(|| pack.to_owned());
        let domain = normal(domain);
        if domain.is_empty() {
            return Err(format!("a domain without a name has pack {}; name it", pack.as_deref().unwrap_or(CORE)));
        }
        match self.0.insert(domain.clone(), pack) {
            None => Ok(()),
            Some(_) => Err(format!("domain {domain:?} is there twice")),
        }
    }

    /// Packs that are named, each once.
    pub fn packs(&self) -> Vec<&str> {
        let mut packs: Vec<&str> = self.0.values().flatten().map(String::as_str).collect();
        packs.sort_unstable();
        packs.dedup();
        packs
    }
}

/// The entries of a JSON object as they stand there: a name that is there twice is two entries.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Entries, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        from.deserialize_map(Each)
    }
}

fn normal(domain: &str) -> String {
    domain.trim().to_lowercase()
}

/// What a request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A pack was put on the bare base.
    Attach,
    /// A pack took the place of another.
    Switch,
    /// The pack was taken off.
    Detach,
    /// Nothing had to be done.
    Noop,
    /// The pack could not be woken; everything is as it was.
    Failed,
}

/// One request, as mlx-plastic-rank writes it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteEvent {
    /// What was asked for.
    pub requested_domain: String,
    /// The domain that serves it.
    pub resolved_domain: String,
    /// What was done.
    pub action: Action,
    /// The domain whose pack is awake afterwards.
    pub active_domain: Option<String>,
    /// That pack.
    pub pack: Option<String>,
    /// Why.
    pub reason: String,
}

/// What a router moves.
pub trait Packs {
    /// Puts a pack in the place of what is attached, or leaves everything as it is.
    ///
    /// # Errors
    /// Then.
    fn wake(&mut self, pack: &str) -> Result<()>;
    /// Takes off what is attached.
    fn rest(&mut self);
}

/// Options of a router.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Domain of requests that name none or an unknown one.
    pub default_domain: String,
    /// Seconds after which an idle pack is put to sleep; 0: never.
    pub ttl: f64,
    /// Domains that are remembered as recent.
    pub recent: usize,
}

/// Decides which pack is awake.
#[derive(Debug)]
pub struct Router {
    map: DomainMap,
    rules: Rules,
    /// Domain, pack and time of the last request for it.
    active: Option<(String, String, f64)>,
    recent: Vec<String>,
    expirations: usize,
}

impl Router {
    /// A router with nothing awake.
    pub fn new(mut map: DomainMap, mut rules: Rules) -> Router {
        rules.default_domain = normal(&rules.default_domain);
        map.0.entry(rules.default_domain.clone()).or_insert(None);
        Router { map, rules, active: None, recent: Vec::new(), expirations: 0 }
    }

    /// Domains asked for last, the newest at the end.
    pub fn recent(&self) -> &[String] {
        &self.recent
    }

    /// Packs put to sleep because nobody asked for them.
    pub fn expirations(&self) -> usize {
        self.expirations
    }

    /// Serves a request at a time in seconds; times do not run backwards.
    pub fn route(&mut self, domain: Option<&str>, now: f64, packs: &mut dyn Packs) -> RouteEvent {
        if self.rules.ttl > 0.0 && self.active.as_ref().is_some_and(|(.., last)| now - last >= self.rules.ttl) {
            packs.rest();
            self.active = None;
            self.expirations += 1;
        }
        let requested =
            domain.map(normal).filter(|d| !d.is_empty()).unwrap_or_else(|| self.rules.default_domain.clone());
        let resolved =
            if self.map.0.contains_key(&requested) { &requested } else { &self.rules.default_domain }.clone();
        let target = self.map.0.get(&resolved).cloned().flatten();
        self.recent.retain(|d| *d != resolved);
        self.recent.push(resolved.clone());
        let extra = self.recent.len().saturating_sub(self.rules.recent.max(1));
        self.recent.drain(..extra);
        let (action, reason) = match (target, &mut self.active) {
            (None, None) => (Action::Noop, "already_on_core".to_owned()),
            (None, Some(_)) => {
                packs.rest();
                self.active = None;
                (Action::Detach, "route_to_core".to_owned())
            }
            (Some(_), Some((active, _, last))) if *active == resolved => {
                *last = now;
                (Action::Noop, "already_active".to_owned())
            }
            (Some(pack), before) => match packs.wake(&pack) {
                Err(e) => (Action::Failed, e.to_string()),
                Ok(()) => {
                    let action = if before.is_some() { Action::Switch } else { Action::Attach };
                    self.active = Some((resolved.clone(), pack, now));
                    (action, "domain_route".to_owned())
                }
            },
        };
        RouteEvent {
            requested_domain: requested,
            resolved_domain: resolved,
            action,
            active_domain: self.active.as_ref().map(|a| a.0.clone()),
            pack: self.active.as_ref().map(|a| a.1.clone()),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    /// Notes what it is told; packs named `bad` cannot be woken.
    #[derive(Default)]
    struct Noted {
        calls: Vec<Value>,
        on: Option<String>,
    }

    impl Packs for Noted {
        fn wake(&mut self, pack: &str) -> Result<()> {
            if pack == "bad" {
                return Err(Error::Name("no pack bad".into()));
            }
            // A wake replaces what is attached; the Python program takes it off first.
            if self.on.replace(pack.to_owned()).is_some() {
                self.calls.push(json!(["detach"]));
            }
            self.calls.push(json!(["apply", pack]));
            Ok(())
        }

        fn rest(&mut self) {
            self.on = None;
            self.calls.push(json!(["detach"]));
        }
    }

    fn router(map: &str, ttl: f64, recent: usize) -> Router {
        let map = DomainMap::from_json(map.as_bytes()).unwrap();
        Router::new(map, Rules { default_domain: CORE.into(), ttl, recent })
    }

    #[test]
    fn events_are_those_of_the_python_program() {
        let golden: Value = serde_json::from_str(include_str!("../../../tests/golden/packs/judge.json")).unwrap();
        let golden = &golden["router"];
        let recent = golden["max_recent_domains"].as_u64().unwrap() as usize;
        let mut r = router(&golden["map"].to_string(), golden["ttl_seconds"].as_f64().unwrap(), recent);
        let mut packs = Noted::default();
        for step in golden["events"].as_array().unwrap() {
            packs.calls.clear();
            let event = r.route(step["domain"].as_str(), step["t"].as_f64().unwrap(), &mut packs);
            assert_eq!(serde_json::to_value(&event).unwrap(), step["event"], "{step}");
            assert_eq!(json!(packs.calls), step["manager_calls"], "{step}");
            assert_eq!(json!(r.recent()), step["recent"]);
            assert_eq!(json!(r.expirations()), step["expirations"]);
        }
    }

    #[test]
    fn a_pack_that_cannot_be_woken_is_never_taken_for_active() {
        let mut r = router("{\"taxi\": \"t\", \"med\": \"bad\"}", 0.0, 8);
        let mut packs = Noted::default();
        r.route(Some("taxi"), 0.0, &mut packs);
        for t in [1.0, 2.0] {
            let e = r.route(Some("med"), t, &mut packs);
            assert_eq!(
                (e.action, e.active_domain.as_deref(), e.pack.as_deref()),
                (Action::Failed, Some("taxi"), Some("t"))
            );
            assert!(e.reason.contains("no pack bad"), "{e:?}");
        }
        assert_eq!(packs.on.as_deref(), Some("t"));
        assert_eq!(r.route(Some("taxi"), 3.0, &mut packs).action, Action::Noop);
        // Without a time to live nothing expires.
        assert_eq!(r.route(Some("taxi"), 1e9, &mut packs).reason, "already_active");
    }

    #[test]
    fn maps_are_checked() {
        let text = DomainMap::read("taxi=a, Med = b,core=base").unwrap();
        assert_eq!(text.packs(), ["a", "b"]);
        assert_eq!(text, DomainMap::from_json(b"{\"taxi\": \"a\", \"med\": \"b\", \"core\": null}").unwrap());
        let error = |text: &str| DomainMap::read(text).unwrap_err().to_string();
        assert!(error("map.json").contains("no such file"));
        assert!(error("taxi=a,b").contains("not of the form DOMAIN=PACK"));
        assert!(error("taxi=a,TAXI=b").contains("is there twice"));
        for bad in ["=b", "t=", " = "] {
            assert!(error(bad).contains("not of the form DOMAIN=PACK"), "{bad}");
        }
        for (bad, why) in [
            ("[]", "expected a JSON object"),
            ("{", "not valid JSON"),
            ("{\"a\": 3}", "the name of a pack"),
            ("{\"t\": \"b\", \"t\": \"a\"}", "is there twice"),
            ("{\" \": \"b\"}", "without a name"),
        ] {
            assert!(DomainMap::from_json(bad.as_bytes()).unwrap_err().contains(why), "{bad}");
        }
    }
}
