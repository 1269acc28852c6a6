//! What the environment says about the machine that is modelled; read once, when `/dev/kvm` is first used.

use std::ffi::OsString;
use std::sync::OnceLock;

use crate::defect::Defect;
use crate::personality::Personality;

/// `amd`, `intel` or `plain`; without it, `plain`.
pub const PERSONALITY: &str = "PRIVET_MODEL_PERSONALITY";
/// Module parameters and CPU options, as `name=Y` or `name=N`, separated by commas.
pub const OPTIONS: &str = "PRIVET_MODEL_OPTIONS";
/// The name of a [`Defect`].
pub const DEFECT: &str = "PRIVET_MODEL_DEFECT";
/// `stderr` or a path: what programs ask for that the model does not know is told there.
pub const LOG: &str = "PRIVET_MODEL_LOG";

/// The machine that is modelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Whose CPU and KVM module.
    pub personality: Personality,
    /// `kvm.mmio_caching`.
    pub mmio_caching: bool,
    /// `kvm.tdp_mmu`; without it there are no private VM types.
    pub tdp_mmu: bool,
    /// `kvm_amd.nrips`: KVM uses it if the CPU tells where the next instruction is.
    pub nrips: bool,
    /// CPUID offers 5-level paging.
    pub la57: bool,
    /// The deviation that is switched on.
    pub defect: Option<Defect>,
}

/// Why the environment describes no machine.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadOption {
    /// An unknown name where a personality or defect was expected.
    #[error("{variable}={value}: there is no such {what}; there is {known}")]
    Unknown {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What the value should name.
        what: &'static str,
        /// The names that there are.
        known: String,
    },
    /// Not `name=Y` or `name=N`.
    #[error(
        "{OPTIONS}: `{0}` is not understood: give mmio_caching, tdp_mmu, nrips or la57 with =Y or =N, separated by commas"
    )]
    Switch(String),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            personality: Personality::Plain,
            mmio_caching: true,
            tdp_mmu: true,
            nrips: true,
            la57: false,
            defect: None,
        }
    }
}

impl Options {
    /// The machine that these variables describe.
    ///
    /// # Errors
    /// The first variable that is not understood.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, BadOption> {
        let text = |name| variable(name).map(|value| value.to_string_lossy().into_owned());
        let mut options = Self::default();
        if let Some(value) = text(PERSONALITY) {
            let known = || Personality::ALL.map(Personality::name).join(", ");
            options.personality = Personality::named(&value).ok_or_else(|| BadOption::Unknown {
                variable: PERSONALITY,
                value,
                what: "personality",
                known: known(),
            })?;
        }
        if let Some(value) = text(DEFECT).filter(|value| !value.is_empty()) {
            let known = || Defect::ALL.iter().map(|defect| defect.name()).collect::<Vec<_>>().join(", ");
            options.defect = Some(Defect::named(&value).ok_or_else(|| BadOption::Unknown {
                variable: DEFECT,
                value,
                what: "defect",
                known: known(),
            })?);
        }
        for switch in text(OPTIONS).iter().flat_map(|value| value.split(',')).filter(|switch| !switch.is_empty()) {
            let bad = || BadOption::Switch(switch.to_owned());
            let (name, value) = switch.split_once('=').ok_or_else(bad)?;
            let value = match value {
                "Y" | "y" | "1" => true,
                "N" | "n" | "0" => false,
                _ => return Err(bad()),
            };
            *match name {
                "mmio_caching" => &mut options.mmio_caching,
                "tdp_mmu" => &mut options.tdp_mmu,
                "nrips" => &mut options.nrips,
                "la57" => &mut options.la57,
                _ => return Err(bad()),
            } = value;
        }
        Ok(options)
    }

    /// The machine of this process.
    ///
    /// # Errors
    /// As [`from_variables`](Self::from_variables).
    pub(crate) fn of_process() -> Result<&'static Self, &'static BadOption> {
        static OPTIONS: OnceLock<Result<Options, BadOption>> = OnceLock::new();
        OPTIONS.get_or_init(|| Self::from_variables(|name| std::env::var_os(name))).as_ref()
    }

    /// Whether KVM learns from the CPU where the next instruction is. AMD's since 2009 tell, unless `nrips` is off;
    /// QEMU's emulation, after which the plain machine is made, does not; Intel's always do.
    pub(crate) fn knows_next_rip(&self) -> bool {
        match self.personality {
            Personality::Intel => true,
            Personality::Amd => self.nrips,
            Personality::Plain => false,
        }
    }

    /// Whether this deviation is switched on.
    pub(crate) fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Options, BadOption> {
        Options::from_variables(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn an_empty_environment_is_a_plain_machine_without_defects() {
        assert_eq!(parse(&[]), Ok(Options::default()));
        assert_eq!(parse(&[(DEFECT, ""), (OPTIONS, "")]), Ok(Options::default()));
    }

    #[test]
    fn switches_and_names_are_understood() {
        let options =
            parse(&[(PERSONALITY, "intel"), (OPTIONS, "mmio_caching=N,la57=1"), (DEFECT, "hole-not-zeroed")]).unwrap();
        assert_eq!(options.personality, Personality::Intel);
        assert_eq!((options.mmio_caching, options.tdp_mmu, options.la57), (false, true, true));
        assert!(options.has(Defect::HoleNotZeroed));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (variable, value) in
            [(PERSONALITY, "amdd"), (DEFECT, "none"), (OPTIONS, "mmio_caching"), (OPTIONS, "x=Y"), (OPTIONS, "la57=2")]
        {
            let message = parse(&[(variable, value)]).unwrap_err().to_string();
            assert!(message.contains(variable) && message.contains(value), "{message}");
        }
    }
}
