//! An encrypted VM as far as a row wants it launched.

use privet_harness::case::Case;
use privet_harness::mapping::Mapping;
use privet_harness::outcome::Outcome;
use privet_harness::platform::Platform;
use privet_harness::sev::{Commands, Device, Memory, Refused, SevPolicy, SnpPolicy};
use privet_harness::units::PAGE_SIZE;
use privet_harness::vm::Vm;

use crate::expect::expect_done;

/// A VM of the row's type, and the way to the firmware.
pub(super) struct SevVm {
    pub(super) vm: Vm,
    pub(super) device: Device,
    platform: Platform,
}

impl SevVm {
    /// Fresh from `KVM_CREATE_VM`.
    pub(super) fn new(t: &Case) -> Outcome<SevVm> {
        Ok(SevVm { vm: t.vm()?, device: Device::open()?, platform: t.platform() })
    }

    /// After `INIT2`.
    pub(super) fn initialized(t: &Case) -> Outcome<SevVm> {
        let sev = Self::new(t)?;
        expect_done("INIT2", sev.commands().init2(Default::default()))?;
        Ok(sev)
    }

    /// After `LAUNCH_START`, with nothing forbidden.
    pub(super) fn started(t: &Case) -> Outcome<SevVm> {
        let sev = Self::initialized(t)?;
        expect_done("LAUNCH_START", sev.start())?;
        Ok(sev)
    }

    /// The row's platform.
    pub(super) fn platform(&self) -> Platform {
        self.platform
    }

    /// All commands.
    pub(super) fn commands(&self) -> Commands<'_> {
        Commands::new(&self.vm, &self.device)
    }

    /// The `LAUNCH_START` of the VM's type, with nothing forbidden.
    pub(super) fn start(&self) -> Result<(), Refused> {
        self.start_through(self.commands())
    }

    /// The same with the descriptor that `commands` have.
    pub(super) fn start_through(&self, commands: Commands<'_>) -> Result<(), Refused> {
        match self.platform {
            Platform::Snp => commands.snp_launch_start(SnpPolicy::DEFAULT, 0),
            _ => commands.launch_start(0, self.policy(), None).map(drop),
        }
    }

    /// The policy of a SEV or SEV-ES guest for which nothing is forbidden.
    pub(super) fn policy(&self) -> SevPolicy {
        match self.platform {
            Platform::SevEs => SevPolicy::ES,
            _ => SevPolicy::NONE,
        }
    }

    /// `LAUNCH_MEASURE` of a SEV or SEV-ES guest: the 48 bytes.
    pub(super) fn measure(&self) -> Outcome<[u8; 48]> {
        let blob = Mapping::anonymous(PAGE_SIZE)?;
        expect_done("LAUNCH_MEASURE", self.commands().launch_measure(Memory::In(&blob, 0), 48).0)?;
        let mut bytes = [0; 48];
        blob.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// `LAUNCH_MEASURE` and `LAUNCH_FINISH` of a SEV or SEV-ES guest.
    pub(super) fn finish(&self) -> Outcome {
        self.measure()?;
        expect_done("LAUNCH_FINISH", self.commands().launch_finish())
    }
}

/// `bytes` bytes of `mapping` from `offset` on.
pub(super) fn bytes_of(mapping: &Mapping, offset: u64, bytes: usize) -> Outcome<Vec<u8>> {
    let mut content = vec![0; bytes];
    mapping.read(offset, &mut content)?;
    Ok(content)
}

/// What a row of this group expects where its types differ.
pub(super) struct BySevType<T> {
    pub(super) sev: T,
    pub(super) sev_es: T,
    pub(super) snp: T,
}

impl<T> BySevType<T> {
    /// That of the row's own type.
    ///
    /// # Panics
    /// In a row that is told for other types, too.
    pub(super) fn of(self, t: &Case) -> T {
        match t.platform() {
            Platform::Sev => self.sev,
            Platform::SevEs => self.sev_es,
            Platform::Snp => self.snp,
            other => panic!("{} is launched without commands", other.vm_type()),
        }
    }
}
