//! `--policy PRESET|FILE`

use crate::config::toml_failure;
use crate::failure::{Failure, Status};
use std::path::{Path, PathBuf};
use userswap::daemon::settings::{PolicySettings, Preset};
use userswap_stores::spec::Spec;

/// A preset by its name, or what a file says.
pub(crate) fn read(text: &str) -> Result<PolicySettings, Failure> {
    if let Some(preset) = Preset::named(text) {
        return Ok(preset.into());
    }
    let path = Path::new(text);
    let wrong = |sentence: String| Failure::new(Status::Usage, sentence);
    let file = std::fs::read_to_string(path).map_err(|error| {
        let names = Preset::NAMES.map(|(name, _)| name).join(", ");
        wrong(format!("--policy: '{text}' is no preset ({names}), and no file that can be read: {error}"))
    })?;
    let settings: PolicySettings =
        toml::from_str(&file).map_err(|error| toml_failure(path, &file, &error))?;
    settings.check().map_err(|error| wrong(format!("{text}: {error}")))?;
    Ok(settings)
}

/// The file or directory that a store's pages go to, if they go to one.
pub(crate) fn disk(spec: &Spec) -> Option<PathBuf> {
    match spec {
        Spec::File(file) => Some(file.path.clone()),
        Spec::Zram(zram) => zram.backing.as_ref().and_then(disk),
        Spec::Tier { stores, .. } => stores.iter().find_map(disk),
        Spec::Layered { inside, .. } => disk(inside),
        _ => None,
    }
}

/// The settings as a file that says the same: of presets the table of its own alone, and what limits are held by.
pub(crate) fn as_file(settings: &PolicySettings) -> String {
    let all = serde_json::to_value(settings).unwrap_or_default();
    let preset = all.get("preset").cloned().unwrap_or_default();
    let name = preset.as_str().unwrap_or_default();
    let mut text = format!("preset = {preset}\n");
    let mut table = |name: &str, values: Option<&serde_json::Value>| {
        if let Some(values) = values.and_then(serde_json::Value::as_object) {
            text.push_str(&format!("\n[{name}]\n"));
            for (key, value) in values {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
    };
    if name != "off" {
        table("limit", all.get("limit"));
    }
    if name != "limit" {
        table(name, all.get(name));
    }
    for (client, values) in all.get("clients").and_then(serde_json::Value::as_object).into_iter().flatten() {
        table(&format!("clients.{}", serde_json::Value::from(client.as_str())), Some(values));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_a_policy_file() {
        for (_, preset) in Preset::NAMES {
            let mut settings = PolicySettings::from(preset);
            settings.clients.insert("a b".to_owned(), Default::default());
            let text = as_file(&settings);
            assert_eq!(toml::from_str::<PolicySettings>(&text).unwrap(), settings, "{text}");
        }
    }

    #[test]
    fn the_disk_of_a_store_is_found_wherever_it_is() {
        let of = |spec: &str| disk(&userswap_stores::spec::parse(spec).unwrap());
        assert_eq!((of("ram:lz4"), of("file:/var/tmp")), (None, Some("/var/tmp".into())));
        for spec in ["tier:ram:lz4?capacity=64M>file:/var/tmp", "checked+file:/var/tmp", "zram:file:/var/tmp"]
        {
            assert_eq!(of(spec), Some("/var/tmp".into()), "{spec}");
        }
    }
}
