//! What an operator can set of the policy: a preset, and numbers of it. The keys are those of the policy file; see `docs/policy.md`.

use super::eyes::Sights;
use super::units::{Bytes, Share, Time};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use userswap_policy::chromium::Browser;
use userswap_policy::{Claim, Limiter, Limits, Off, Policy, Proactive, Within, chromium, proactive};

/// Which policy, with which numbers. What isn't said is as usual.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PolicySettings {
    /// Who decides.
    pub preset: Preset,
    /// How a limit is held, by any preset that does.
    pub limit: LimitSettings,
    /// The numbers of `chromium`.
    pub chromium: ChromiumSettings,
    /// The numbers of `proactive`.
    pub proactive: ProactiveSettings,
    /// What programs may have beside others, by their names.
    pub clients: BTreeMap<String, ClientSettings>,
}

/// How a limit is held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LimitSettings {
    /// Who has more than its share by weight gives first.
    pub fair: bool,
}

/// What a program may have beside others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClientSettings {
    /// Its share.
    pub weight: u32,
    /// What it keeps in any case, while the limit allows.
    pub minimum: Bytes,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self { weight: Claim::default().weight, minimum: Bytes(Claim::default().minimum) }
    }
}

/// The policies there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Moves nothing by itself, whatever the limits.
    Off,
    /// Holds to the limits.
    #[default]
    Limit,
    /// And does as the browser does that the contract comes from.
    Chromium,
    /// And takes what programs don't miss.
    Proactive,
}

/// The browser's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[allow(missing_docs)] // they are those of `chromium::Knobs`, by the same names
pub struct ChromiumSettings {
    pub pages_per_region: u32,
    pub min_free_disk: Bytes,
    pub max_total: Bytes,
    pub max_client: Bytes,
    pub regions_per_round: u32,
    pub blocked_refault: Time,
    pub walk_every: Time,
    pub client_every: Time,
    pub idle: Time,
    pub on_freeze: bool,
    pub on_pressure: bool,
    pub shuffle: bool,
    /// Whose waiting for memory counts.
    pub pressure: Source,
    /// From which share of the time on it is scarce.
    pub scarce: Share,
}

/// The settings of `proactive`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[allow(missing_docs)] // they are those of `proactive::Knobs`, by the same names
pub struct ProactiveSettings {
    pub stall: Share,
    pub promotion: Share,
    pub interval: Time,
    pub first: Share,
    pub most: Share,
    pub backoff: Time,
    pub restore: Share,
    /// Whose waiting for the kernel's memory counts as stall, too.
    pub pressure: Source,
}

/// Where it is read how long somebody waited for memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere.
    Off,
    /// `/proc/pressure/memory`.
    Machine,
    /// Another file like it, such as a control group's `memory.pressure`.
    File(PathBuf),
}

/// What is true of no settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {sentence}")]
pub struct SettingsError {
    /// Which key.
    pub key: &'static str,
    /// What is wrong with it.
    pub sentence: &'static str,
}

impl Preset {
    /// All of them, by their names.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("off", Self::Off),
        ("limit", Self::Limit),
        ("chromium", Self::Chromium),
        ("proactive", Self::Proactive),
    ];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, preset)| *preset)
    }
}

impl From<Preset> for PolicySettings {
    fn from(preset: Preset) -> Self {
        Self { preset, ..Self::default() }
    }
}

impl PolicySettings {
    /// Whether the numbers make sense.
    ///
    /// # Errors
    /// The first that doesn't.
    pub fn check(&self) -> Result<(), SettingsError> {
        let (browser, proactive) = (&self.chromium, &self.proactive);
        let pages = browser.pages_per_region;
        let laws = [
            ("chromium.pages-per-region", (1..=512).contains(&pages), "it is from 1 to 512"),
            ("chromium.scarce", browser.scarce.0 > 0.0, "it is more than 0: memory would always be scarce"),
            (
                "proactive.stall",
                proactive.stall.0 > 0.0,
                "it is more than 0; for no stall at all take `limit`",
            ),
            ("proactive.interval", !proactive.interval.0.is_zero(), "it is more than 0"),
            ("proactive.first", proactive.first.0 > 0.0, "it is more than 0: nothing would ever be probed"),
            ("proactive.most", proactive.most.0 >= proactive.first.0, "it is no less than `first`"),
        ];
        if self.clients.values().any(|client| client.weight == 0) {
            return Err(SettingsError { key: "clients", sentence: "a weight is 1 or more" });
        }
        let broken = laws.into_iter().find(|(_, holds, _)| !holds);
        broken.map_or(Ok(()), |(key, _, sentence)| Err(SettingsError { key, sentence }))
    }

    /// The policy, within these limits.
    pub fn policy(&self, limits: Limits) -> Box<dyn Policy> {
        let limiter = Limiter::new(limits).fair(self.limit.fair);
        match self.preset {
            Preset::Off => {
                let mut off = Off::default();
                off.set_limits(limits);
                Box::new(off)
            }
            Preset::Limit => Box::new(limiter),
            Preset::Chromium => {
                let browser = Browser::new(self.chromium.knobs(), self.chromium.scarce.0);
                Box::new(Within::new(limiter, browser))
            }
            Preset::Proactive => Box::new(Within::new(limiter, Proactive::new(self.proactive.knobs()))),
        }
    }

    /// Where the policy looks; `disk` is where pages go, if to one.
    pub fn sights(&self, disk: Option<PathBuf>) -> Sights {
        let source = match self.preset {
            Preset::Off | Preset::Limit => &Source::Off,
            Preset::Chromium => &self.chromium.pressure,
            Preset::Proactive => &self.proactive.pressure,
        };
        let pressure = match source {
            Source::Off => None,
            Source::Machine => Some(PathBuf::from("/proc/pressure/memory")),
            Source::File(path) => Some(path.clone()),
        };
        let claim = |client: &ClientSettings| Claim { weight: client.weight, minimum: client.minimum.0 };
        let claims = self.clients.iter().map(|(name, client)| (name.clone(), claim(client))).collect();
        Sights { pressure, disk, claims }
    }
}

impl ChromiumSettings {
    fn knobs(&self) -> chromium::Knobs {
        chromium::Knobs {
            enabled: true,
            pages_per_region: self.pages_per_region,
            min_free_disk: self.min_free_disk.0,
            max_total: self.max_total.0,
            max_client: self.max_client.0,
            regions_per_round: self.regions_per_round,
            blocked_refault: self.blocked_refault.0,
            walk_every: self.walk_every.0,
            client_every: self.client_every.0,
            idle: self.idle.0,
            on_freeze: self.on_freeze,
            on_pressure: self.on_pressure,
            shuffle: self.shuffle,
            // Whether pages are compressed is the store's.
            ..chromium::Knobs::default()
        }
    }
}

impl Default for ChromiumSettings {
    fn default() -> Self {
        let knobs = chromium::Knobs::default();
        Self {
            pages_per_region: knobs.pages_per_region,
            min_free_disk: Bytes(knobs.min_free_disk),
            max_total: Bytes(knobs.max_total),
            max_client: Bytes(knobs.max_client),
            regions_per_round: knobs.regions_per_round,
            blocked_refault: Time(knobs.blocked_refault),
            walk_every: Time(knobs.walk_every),
            client_every: Time(knobs.client_every),
            idle: Time(knobs.idle),
            on_freeze: knobs.on_freeze,
            on_pressure: knobs.on_pressure,
            shuffle: knobs.shuffle,
            pressure: Source::Machine,
            scarce: Share(0.05),
        }
    }
}

impl ProactiveSettings {
    fn knobs(&self) -> proactive::Knobs {
        proactive::Knobs {
            stall: self.stall.0,
            promotion: self.promotion.0,
            interval: self.interval.0,
            first: self.first.0,
            most: self.most.0,
            backoff: self.backoff.0,
            restore: self.restore.0,
        }
    }
}

impl Default for ProactiveSettings {
    fn default() -> Self {
        let knobs = proactive::Knobs::default();
        Self {
            stall: Share(knobs.stall),
            promotion: Share(knobs.promotion),
            interval: Time(knobs.interval),
            first: Share(knobs.first),
            most: Share(knobs.most),
            backoff: Time(knobs.backoff),
            restore: Share(knobs.restore),
            pressure: Source::Off,
        }
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "machine" => Ok(Self::Machine),
            path if path.starts_with('/') => Ok(Self::File(path.into())),
            _ => Err(format!("'{text}' is no source: write off, machine, or a file's whole path")),
        }
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::Machine => serializer.serialize_str("machine"),
            Self::File(path) => serializer.collect_str(&path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Every key with its default, as it would be written in a file.
    fn defaults() -> BTreeMap<String, String> {
        let mut all = PolicySettings::default();
        all.clients.insert("NAME".to_owned(), ClientSettings::default());
        let mut all = serde_json::to_value(all).unwrap();
        let client = all["clients"]["NAME"].take();
        all.as_object_mut().unwrap().remove("clients");
        all["clients.NAME"] = client;
        let mut keys = BTreeMap::new();
        for (table, value) in all.as_object().unwrap() {
            match value.as_object() {
                Some(values) => {
                    keys.extend(values.iter().map(|(key, value)| (format!("{table}.{key}"), plain(value))));
                }
                None => drop(keys.insert(table.clone(), plain(value))),
            }
        }
        keys
    }

    fn plain(value: &serde_json::Value) -> String {
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    #[test]
    fn every_key_is_documented_with_its_default() {
        let page = include_str!("../../docs/policy.md");
        let section = page.split("## The policy file").nth(1).unwrap().split("\n## ").next().unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let documented: BTreeMap<String, String> = rows
            .map(|row| {
                let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
                (cells.nth(1).unwrap(), cells.next().unwrap())
            })
            .collect();
        assert_eq!(documented, defaults());
    }

    #[test]
    fn what_is_shown_is_read_again() {
        let mut settings = PolicySettings::from(Preset::Proactive);
        settings.proactive.pressure = Source::File("/sys/fs/cgroup/a/memory.pressure".into());
        settings.proactive.stall = Share(0.002);
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<PolicySettings>(&text).unwrap(), settings);
        assert_eq!(
            settings.sights(None).pressure.as_deref(),
            Some("/sys/fs/cgroup/a/memory.pressure".as_ref())
        );
    }

    #[test]
    fn what_there_isnt_is_refused_by_name() {
        for (text, named) in [
            (r#"{"preset":"greedy"}"#, "greedy"),
            (r#"{"chromium":{"pages":3}}"#, "pages"),
            (r#"{"proactive":{"stall":"2x"}}"#, "2x"),
            (r#"{"proactive":{"interval":7}}"#, "a time"),
            (r#"{"chromium":{"pressure":"here"}}"#, "here"),
            (r#"{"chromium":{"max-total":-1}}"#, "negative"),
        ] {
            let error = serde_json::from_str::<PolicySettings>(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused_by_their_key() {
        assert_eq!(PolicySettings::default().check(), Ok(()));
        for (text, key) in [
            (r#"{"chromium":{"pages-per-region":0}}"#, "chromium.pages-per-region"),
            (r#"{"proactive":{"stall":0}}"#, "proactive.stall"),
            (r#"{"proactive":{"first":"6%"}}"#, "proactive.most"),
            (r#"{"clients":{"a":{"weight":0}}}"#, "clients"),
        ] {
            let settings: PolicySettings = serde_json::from_str(text).unwrap();
            assert_eq!(settings.check().unwrap_err().key, key);
        }
    }

    #[test]
    fn each_preset_is_what_it_is_called() {
        for (name, preset) in Preset::NAMES {
            assert_eq!(serde_json::to_string(&preset).unwrap(), format!("\"{name}\""));
            let settings = PolicySettings::from(Preset::named(name).unwrap());
            let limits = Limits { resident: Some(1 << 20), ..Limits::default() };
            assert_eq!(settings.policy(limits).limits(), limits);
        }
        let wants = |preset| PolicySettings::from(preset).policy(Limits::default()).wants();
        assert!(wants(Preset::Chromium).ranges && wants(Preset::Proactive).activity);
        assert_eq!(wants(Preset::Limit), wants(Preset::Off));
    }
}
