//! The registers through which the host talks to the secure processor (drivers/crypto/ccp: sp-pci.c, sev-dev.c).

use serde::{Deserialize, Serialize};

use super::{Command, Psp, Status, Surroundings};

/// Offsets in BAR 2 of function 1022:14CA (sp-pci.c: pspv4, sevv2).
mod register {
    pub(super) const INTERRUPT_ENABLE: u64 = 0x1_0690;
    pub(super) const INTERRUPT_STATUS: u64 = 0x1_0694;
    pub(super) const COMMAND_RESPONSE: u64 = 0x1_0980;
    pub(super) const BUFFER_LOW: u64 = 0x1_09E0;
    pub(super) const BUFFER_HIGH: u64 = 0x1_09E4;
    pub(super) const BOOTLOADER: u64 = 0x1_09EC;
    pub(super) const FEATURES: u64 = 0x1_09FC;
}

const INTERRUPT_ON_COMPLETION: u32 = 1 << 0;
const RESPONSE: u32 = 1 << 31;
const COMMAND_SHIFT: u32 = 16;
const COMMAND_MASK: u32 = 0x7FF << COMMAND_SHIFT;
/// Bit of the interrupt registers for a completed SEV command.
const COMMAND_COMPLETE: u32 = 1 << 1;
/// Capabilities: SEV, and no TEE.
const FEATURE_SEV: u32 = 1 << 0;
/// Version of the boot loader that Linux shows in sysfs.
const BOOTLOADER_VERSION: u32 = 0x001A_0055;

/// The mailbox, which executes a command while the host writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mailbox {
    buffer: [u32; 2],
    command_response: u32,
    interrupt_enable: u32,
    interrupt_status: u32,
}

/// What follows from a write to the mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effect {
    /// The function raises its interrupt: a command has completed.
    pub interrupt: bool,
    /// What the firmware knows and does not offer, by name.
    pub unoffered: Option<String>,
}

impl Default for Mailbox {
    fn default() -> Mailbox {
        Mailbox { buffer: [0; 2], command_response: RESPONSE, interrupt_enable: 0, interrupt_status: 0 }
    }
}

impl Mailbox {
    /// Reads the register of 4 bytes at this offset of the BAR. Where there is none it reads as zero.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            register::INTERRUPT_ENABLE => self.interrupt_enable,
            register::INTERRUPT_STATUS => self.interrupt_status,
            register::COMMAND_RESPONSE => self.command_response,
            register::BUFFER_LOW => self.buffer[0],
            register::BUFFER_HIGH => self.buffer[1],
            register::BOOTLOADER => BOOTLOADER_VERSION,
            register::FEATURES => FEATURE_SEV,
            _ => 0,
        }
    }

    /// Writes the register of 4 bytes at this offset of the BAR; what follows from it.
    pub fn write(&mut self, offset: u64, value: u32, psp: &mut Psp, around: &mut Surroundings<'_>) -> Effect {
        match offset {
            register::INTERRUPT_ENABLE => self.interrupt_enable = value,
            register::INTERRUPT_STATUS => self.interrupt_status &= !value,
            register::BUFFER_LOW => self.buffer[0] = value,
            register::BUFFER_HIGH => self.buffer[1] = value,
            register::COMMAND_RESPONSE if value & RESPONSE == 0 => return self.ring(value, psp, around),
            _ => {}
        }
        Effect::default()
    }

    fn ring(&mut self, value: u32, psp: &mut Psp, around: &mut Surroundings<'_>) -> Effect {
        let id = ((value & COMMAND_MASK) >> COMMAND_SHIFT) as u16;
        let buffer = u64::from(self.buffer[1]) << 32 | u64::from(self.buffer[0]);
        let status: Status = psp.execute(around, id, buffer);
        self.command_response = RESPONSE | value & COMMAND_MASK | u32::from(status.code());
        self.interrupt_status |= COMMAND_COMPLETE;
        Effect {
            interrupt: value & INTERRUPT_ON_COMPLETION != 0 && self.interrupt_enable & COMMAND_COMPLETE != 0,
            unoffered: unoffered(id, status),
        }
    }
}

/// What of a command is not offered, if that is why it has this status.
fn unoffered(id: u16, status: Status) -> Option<String> {
    const VLEK_LOAD: u16 = Command::SnpVlekLoad as u16;
    match (id, status) {
        (_, Status::Unsupported) => Some(format!("command {id:#x} of the secure processor, or its parameters")),
        (VLEK_LOAD, Status::BadMeasurement) => {
            Some("SNP_VLEK_LOAD of a VLEK, which AMD's key server alone could wrap for this chip".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::psp::test_machine::TestMachine;

    /// As sev-dev.c: __sev_do_cmd_locked and psp-dev.c: psp_irq_handler do it.
    #[test]
    fn a_command_completes_with_an_interrupt() {
        let mut machine = TestMachine::new();
        let mut mailbox = Mailbox::default();
        let (psp, mut around) = machine.parts();
        mailbox.write(register::INTERRUPT_ENABLE, u32::MAX, psp, &mut around);
        mailbox.write(register::BUFFER_LOW, 0x1000, psp, &mut around);
        mailbox.write(register::BUFFER_HIGH, 0, psp, &mut around);
        let completed = mailbox.write(register::COMMAND_RESPONSE, 0x04 << 16 | 1, psp, &mut around);
        assert_eq!(completed, Effect { interrupt: true, unoffered: None });
        assert_eq!(mailbox.read(register::COMMAND_RESPONSE), 0x8004_0000);
        assert_eq!(mailbox.read(register::INTERRUPT_STATUS), 2);
        mailbox.write(register::INTERRUPT_STATUS, 2, psp, &mut around);
        assert_eq!(mailbox.read(register::INTERRUPT_STATUS), 0);
        let unknown = mailbox.write(register::COMMAND_RESPONSE, 0x7FF << 16, psp, &mut around);
        assert_eq!(unknown, Effect::default(), "nobody asked for an interrupt");
        assert_eq!(mailbox.read(register::COMMAND_RESPONSE), 0x87FF_0011);
        let known = mailbox.write(register::COMMAND_RESPONSE, 0x42 << 16, psp, &mut around);
        let told = "command 0x42 of the secure processor, or its parameters".to_owned();
        assert_eq!(known, Effect { interrupt: false, unoffered: Some(told) });
        assert_eq!(unoffered(0xCD, Status::InvalidParameter), None);
        assert!(unoffered(0xCD, Status::BadMeasurement).unwrap().contains("SNP_VLEK_LOAD"));
    }
}
