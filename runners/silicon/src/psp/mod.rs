//! AMD's secure processor: the firmware that launches SEV, SEV-ES and SEV-SNP guests (55766, 56860).
//!
//! A command is a function of its buffer, memory and the firmware's state, and answers with a [`Status`]. Nothing
//! happens between commands.

mod asid;
mod attestation;
mod certificate;
mod command;
mod debug;
mod ecdsa;
mod entropy;
mod guest;
mod identity;
mod launch;
mod mailbox;
mod packet;
mod platform;
mod policy;
#[cfg(test)]
mod random;
mod receive;
mod secret;
mod send;
mod session;
mod snp;
mod status;
mod surroundings;
#[cfg(test)]
mod test_machine;

use serde::{Deserialize, Serialize};

pub use asid::AsidRange;
pub use command::Command;
pub use mailbox::{Effect, Mailbox};
pub use status::Status;
pub use surroundings::{HostSetup, Surroundings};

use crate::encryption::Key;
use crate::{Rule, Rules};
use asid::Asids;
use entropy::Entropy;
use identity::Identity;
use platform::Sev;
pub use snp::TcbLayout;
use snp::{Snp, SnpSettings};

/// Version that the firmware reports everywhere. SNP guests need 1.51, SNP_INIT_EX 1.52.
const API_MAJOR: u8 = 1;
const API_MINOR: u8 = 55;
const BUILD: u8 = 25;

/// What differs from chip to chip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chip {
    /// All keys of the chip and all random numbers follow from it.
    pub seed: [u8; 32],
    /// ASIDs that the processors have.
    pub asids: AsidRange,
    /// How many processors have to execute WBINVD before a flush.
    pub processors: usize,
    /// Whether the firmware knows SNP.
    pub snp: bool,
    /// How it tells its versions there.
    pub tcb: TcbLayout,
}

/// The firmware and all that it knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Psp {
    seed: [u8; 32],
    entropy: Entropy,
    keys: u32,
    identity: Identity,
    asids: Asids,
    /// The platform of SEV and SEV-ES, if it is initialised.
    sev: Option<Sev>,
    /// The platform of SNP, if it is initialised.
    snp: Option<Snp>,
    offers_snp: bool,
    snp_settings: SnpSettings,
    rules: Rules,
}

impl Psp {
    /// Firmware after power-on.
    #[must_use]
    pub fn new(chip: &Chip) -> Psp {
        Psp {
            seed: chip.seed,
            entropy: Entropy::new(chip.seed),
            keys: 0,
            identity: Identity::default(),
            asids: Asids::new(chip.asids, chip.processors),
            sev: None,
            snp: None,
            offers_snp: chip.snp,
            snp_settings: SnpSettings::new(chip.tcb),
            rules: Rules::default(),
        }
    }

    /// From here on only these rules hold.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        self.asids.set_rules(rules);
    }

    /// Answers `status` where a rule demands what is not so.
    fn demand(&self, rule: Rule, is_so: bool, status: Status) -> Result<(), Status> {
        if is_so || !self.rules.hold(rule) { Ok(()) } else { Err(status) }
    }

    /// The key with which VMRUN runs a guest of this ASID; none before its launch is finished.
    #[must_use]
    pub fn runnable_key(&self, asid: u16) -> Option<Key> {
        self.asids.runnable_key(asid)
    }

    /// A processor has executed WBINVD.
    pub fn written_back(&mut self, processor: usize) {
        self.asids.written_back(processor);
    }

    /// Whether SNP_INIT has succeeded: the IOMMU enforces SNP, and firmware buffers go by its rules.
    #[must_use]
    pub fn snp_initialised(&self) -> bool {
        self.snp.is_some()
    }

    /// Executes the command of this number with the buffer at system-physical address `buffer`.
    pub fn execute(&mut self, around: &mut Surroundings<'_>, id: u16, buffer: u64) -> Status {
        let Some(command) = Command::numbered(id) else { return Status::InvalidCommand };
        if !command.is_legacy() && !self.offers_snp {
            return Status::InvalidCommand;
        }
        match self.dispatch(around, command, buffer) {
            Ok(()) => Status::Success,
            Err(status) => status,
        }
    }

    fn dispatch(&mut self, around: &mut Surroundings<'_>, command: Command, at: u64) -> Result<(), Status> {
        match command {
            Command::Init => self.init(around, at),
            Command::InitEx => self.init_ex(around, at),
            Command::Shutdown => self.shutdown(),
            Command::FactoryReset => self.factory_reset(),
            Command::PekGen => self.pek_gen(),
            Command::PekCsr => self.pek_csr(around, at),
            Command::PekCertImport => self.pek_cert_import(around, at),
            Command::PdhCertExport => self.pdh_cert_export(around, at),
            Command::PdhGen => self.pdh_gen(),
            Command::PlatformStatus => self.platform_status(around, at),
            Command::DfFlush | Command::SnpDfFlush => self.asids.flush(),
            Command::GetId => self.get_id(around, at),
            Command::Activate => self.activate(around, at),
            Command::Deactivate => self.deactivate(around, at),
            Command::Decommission => self.decommission(around, at),
            Command::GuestStatus => self.guest_status(around, at),
            Command::LaunchStart => self.launch_start(around, at),
            Command::LaunchUpdateData => self.launch_update_data(around, at),
            Command::LaunchUpdateVmsa => self.launch_update_vmsa(around, at),
            Command::LaunchMeasure => self.launch_measure(around, at),
            Command::LaunchSecret => self.launch_secret(around, at),
            Command::AttestationReport => self.attestation_report(around, at),
            Command::LaunchFinish => self.launch_finish(around, at),
            Command::SendStart => self.send_start(around, at),
            Command::SendUpdateData => self.send_update_data(around, at),
            Command::SendFinish => self.send_finish(around, at),
            Command::SendCancel => self.send_cancel(around, at),
            Command::ReceiveStart => self.receive_start(around, at),
            Command::ReceiveUpdateData => self.receive_update_data(around, at),
            Command::ReceiveFinish => self.receive_finish(around, at),
            Command::DbgDecrypt => self.dbg_decrypt(around, at),
            Command::DbgEncrypt => self.dbg_encrypt(around, at),
            Command::SnpInit => self.snp_init(around),
            Command::SnpInitEx => self.snp_init_ex(around, at),
            Command::SnpShutdown => self.snp_shutdown(around),
            Command::SnpShutdownEx => self.snp_shutdown_ex(around, at),
            Command::SnpPlatformStatus => self.snp_platform_status(around, at),
            Command::SnpConfig => self.snp_config(around, at),
            Command::SnpCommit => self.snp_commit(around, at),
            Command::SnpFeatureInfo => self.snp_feature_info(around, at),
            Command::SnpVlekLoad => self.snp_vlek_load(around, at),
            Command::SnpGctxCreate => self.snp_gctx_create(around, at),
            Command::SnpDecommission => self.snp_decommission(around, at),
            Command::SnpActivate => self.snp_activate(around, at),
            Command::SnpGuestStatus => self.snp_guest_status(around, at),
            Command::SnpGuestRequest => self.snp_guest_request(around, at),
            Command::SnpLaunchStart => self.snp_launch_start(around, at),
            Command::SnpLaunchUpdate => self.snp_launch_update(around, at),
            Command::SnpLaunchFinish => self.snp_launch_finish(around, at),
            Command::SnpDbgDecrypt => self.snp_dbg_decrypt(around, at),
            Command::SnpDbgEncrypt => self.snp_dbg_encrypt(around, at),
            Command::SnpPageReclaim => self.snp_page_reclaim(around, at),
            _ => Err(Status::Unsupported),
        }
    }

    /// A key that nothing has been encrypted with.
    fn new_key(&mut self) -> Key {
        self.keys += 1;
        Key::numbered(self.keys)
    }

    /// Whether the firmware may write these bytes: with SNP initialised, in pages of state Firmware or Default only.
    fn check_output(&self, around: &mut Surroundings<'_>, pa: u64, length: u64) -> Result<(), Status> {
        use crate::rmp::PageState;
        around.check_range(pa, length)?;
        let pages = (pa & !0xFFF..pa + length).step_by(4096);
        for page in pages.take_while(|_| self.snp.is_some() && self.rules.hold(Rule::FirmwarePages)) {
            match around.entry(page).map(|entry| entry.state) {
                None | Some(PageState::Firmware) => {}
                Some(_) => return Err(Status::InvalidPageState),
            }
        }
        Ok(())
    }
}
