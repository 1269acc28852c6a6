//! The options of the rig's kernel: asked for in a fragment, checked in the configuration that came out.

use std::collections::BTreeMap;

/// The options that every rig needs, see the file for why.
pub(crate) const FRAGMENT: &str = include_str!("../kernel.config");

/// The options of a fragment that the configuration does not have, as the fragment writes them. Of several
/// settings of one option the last counts.
pub(crate) fn not_taken(fragment: &str, configuration: &str) -> Vec<String> {
    let have = options(configuration);
    let differs = |(option, value): &(&str, &str)| have.get(option).copied().unwrap_or("n") != *value;
    options(fragment).into_iter().filter(differs).map(|(option, value)| format!("{option}={value}")).collect()
}

fn options(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim();
            match line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set")) {
                Some(option) => Some((option, "n")),
                None => line.split_once('=').filter(|(option, _)| option.starts_with("CONFIG_")),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_options_are_named() {
        let fragment =
            "# why\nCONFIG_A=y\nCONFIG_B=m\nCONFIG_C=y\n# CONFIG_D is not set\nCONFIG_E=n\nCONFIG_F=\"text\"\n";
        let configuration = "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=y\nCONFIG_F=\"text\"\n";
        assert_eq!(not_taken(fragment, configuration), ["CONFIG_B=m", "CONFIG_C=y", "CONFIG_D=n"]);
    }

    #[test]
    fn a_later_setting_replaces_an_earlier_one() {
        assert!(not_taken("CONFIG_A=y\n# CONFIG_A is not set\n", "").is_empty());
        assert_eq!(not_taken("CONFIG_A=n\nCONFIG_A=y\n", ""), ["CONFIG_A=y"]);
    }

    #[test]
    fn the_fragment_asks_for_what_upm_needs() {
        let fragment = options(FRAGMENT);
        for (option, value) in [
            ("CONFIG_KVM", "m"),
            ("CONFIG_KVM_AMD", "m"),
            ("CONFIG_KVM_SW_PROTECTED_VM", "y"),
            ("CONFIG_VIRTIO_CONSOLE", "y"),
        ] {
            assert_eq!(fragment.get(option), Some(&value), "{option}");
        }
    }
}
