//! vCPUs of a TD: TDH.VP.*, but for TDH.VP.ENTER (TDX module ABI).

use privet_cpu::CpuState;
use serde::{Deserialize, Serialize};

use super::TDVPS_PAGES;
use super::Tdx;
use super::field::Field;
use super::pamt::{PAGE, PageType};
use super::status::{Code, Operand, Status};
use super::surroundings::{Registers, Surroundings};
use super::td::Control;
use super::virtual_apic::{self, VIRTUAL_APIC};
use crate::virtual_apic::VirtualApic;

/// What the host sets about a vCPU, by TDH.VP.WR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostControls {
    /// The vector by which a processor learns of posted interrupts.
    pub notification_vector: u16,
    /// The posted-interrupt descriptor.
    pub posted_interrupts: u64,
    /// Pin-based controls: process posted interrupts.
    pub process_posted: bool,
    /// The root of the tables of shared addresses.
    pub shared_eptp: u64,
    /// Secondary controls: bit 30 bus-lock detection, bit 31 notify window.
    pub secondary: u32,
    /// The notify window.
    pub notify_window: u32,
    /// An NMI waits.
    pub pending_nmi: bool,
}

/// Of a vCPU that TDH.VP.INIT has initialised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Initialised {
    /// Its number among those of its TD.
    pub(super) index: u32,
    pub(super) x2apic_id: u32,
    /// What its RCX and R8 are in the beginning.
    pub(super) first_argument: u64,
    /// The processor that may hold its state.
    pub(super) processor: Option<usize>,
    pub(super) host: HostControls,
    pub(super) ve: Option<VeInfo>,
    /// It has shut down and never runs again.
    pub(super) disabled: bool,
    pub(super) running: bool,
    /// On which processor, and in which epoch, it ran last.
    pub(super) last_run: Option<(usize, u64)>,
    /// Its registers while it does not run; none before it has run.
    pub(super) guest: Option<Box<CpuState>>,
    /// The registers that the host gives back at the next entry, as TDG.VP.VMCALL has named them.
    pub(super) vmcall: Option<u64>,
    pub(super) apic: VirtualApic,
}

/// Why a #VE was raised, until the TD asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VeInfo {
    /// Exit reason of VMX.
    pub reason: u32,
    /// Exit qualification of VMX.
    pub qualification: u64,
    /// Guest linear address.
    pub gla: u64,
    /// Guest physical address.
    pub gpa: u64,
    /// Length of the instruction.
    pub length: u32,
    /// Information about the instruction.
    pub information: u32,
}

/// A vCPU, from TDH.VP.CREATE on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Vcpu {
    /// The TDR of its TD.
    pub(super) td: u64,
    /// Pages besides the root.
    pub(super) tdcx: Vec<u64>,
    pub(super) state: Option<Box<Initialised>>,
}

impl Vcpu {
    /// Leaves about a vCPU that is initialised.
    pub(super) fn initialised(&mut self) -> Result<&mut Initialised, Status> {
        self.state.as_deref_mut().ok_or(Code::VcpuStateIncorrect.into())
    }
}

impl Initialised {
    /// The processor is going to hold the vCPU's state. Nobody else may.
    pub(super) fn associate(&mut self, processor: usize, control: &mut Control) -> Result<(), Status> {
        match self.processor {
            Some(own) if own == processor => Ok(()),
            Some(_) => Err(Code::VcpuAssociated.on(Operand::Tdvpr)),
            None => {
                self.processor = Some(processor);
                control.associated += 1;
                Ok(())
            }
        }
    }
}

/// The only element of a field that is written: its bits in `mask`, all of which may be written.
fn merged(old: u64, value: u64, mask: u64, writable: u64) -> Result<u64, Status> {
    match mask & !writable {
        0 => Ok(old & !mask | value & mask),
        _ => Err(Code::MetadataWrMaskNotValid.on(Operand::R9)),
    }
}

impl HostControls {
    /// A field that TDH.VP.RD reads.
    fn read(&self, field: Field) -> Option<u64> {
        Some(match (field.class, field.code) {
            (0, 0x0002) => self.notification_vector.into(),
            (0, 0x2016) => self.posted_interrupts,
            (0, 0x4000) => u64::from(self.process_posted) << 7,
            (0, 0x203C) => self.shared_eptp,
            (0, 0x401E) => self.secondary.into(),
            (0, 0x4024) => self.notify_window.into(),
            (32, 11) => self.pending_nmi.into(),
            _ => return None,
        })
    }

    /// Writes a field of TDH.VP.WR. What it was.
    fn write(&mut self, field: Field, value: u64, mask: u64) -> Result<u64, Status> {
        let old = self.read(field).ok_or(Code::MetadataFieldNotWritable.on(Operand::Rdx))?;
        let invalid = || Code::MetadataFieldValueNotValid.on(Operand::R8);
        match (field.class, field.code) {
            (0, 0x0002) => {
                let vector = merged(old, value, mask, 0xFFFF)?;
                self.notification_vector = u8::try_from(vector).map_err(|_| invalid())?.into();
            }
            (0, 0x2016) => {
                let descriptor = merged(old, value, mask, u64::MAX)?;
                self.posted_interrupts = Some(descriptor).filter(|pa| pa.is_multiple_of(64)).ok_or_else(invalid)?;
            }
            (0, 0x4000) => self.process_posted = merged(old, value, mask, 1 << 7)? != 0,
            (0, 0x203C) => {
                let root = merged(old, value, mask, u64::MAX)?;
                self.shared_eptp = Some(root).filter(|pa| pa.is_multiple_of(PAGE)).ok_or_else(invalid)?;
            }
            (0, 0x401E) => self.secondary = merged(old, value, mask, 3 << 30)? as u32,
            (0, 0x4024) => self.notify_window = merged(old, value, mask, u32::MAX.into())? as u32,
            (32, 11) => self.pending_nmi = merged(old, value, mask, 0xFF)? != 0,
            _ => return Err(Code::MetadataFieldNotWritable.on(Operand::Rdx)),
        }
        Ok(old)
    }
}

/// VCPU_STATE_DETAILS, class and code: bit 0 (VMXIP) says that the virtual APIC has an interrupt for the vCPU.
const STATE_DETAILS: (u8, u32) = (17, 0x100);

impl Tdx {
    /// The vCPU whose TDVPR an operand names.
    pub(super) fn vcpu(&mut self, tdvpr: u64, operand: Operand) -> Result<&mut Vcpu, Status> {
        self.pamt.check(&self.chip, tdvpr, PageType::Tdvpr, operand)?;
        self.vcpus.get_mut(&tdvpr).ok_or(Code::PageMetadataIncorrect.on(operand))
    }

    /// An initialised vCPU of a TD that is alive, and the TD's control structure.
    pub(super) fn live_vcpu(&mut self, tdvpr: u64) -> Result<(&mut Initialised, &mut Control), Status> {
        self.pamt.check(&self.chip, tdvpr, PageType::Tdvpr, Operand::Rcx)?;
        let vcpu = self.vcpus.get_mut(&tdvpr).ok_or(Code::PageMetadataIncorrect.on(Operand::Rcx))?;
        let td = self.tds.get_mut(&vcpu.td).ok_or(Code::PageMetadataIncorrect.on(Operand::Tdr))?;
        let control = td.control()?;
        Ok((vcpu.initialised()?, control))
    }

    /// The vCPU that a processor runs, and its TD's control structure, whatever has become of the TD.
    pub(super) fn running_vcpu(&mut self, tdvpr: u64) -> Result<(&mut Initialised, &mut Control), Status> {
        let vcpu = self.vcpus.get_mut(&tdvpr).ok_or(Code::VcpuStateIncorrect)?;
        let td = self.tds.get_mut(&vcpu.td).ok_or(Code::VcpuStateIncorrect)?;
        let control = td.control.as_deref_mut().ok_or(Code::VcpuStateIncorrect)?;
        Ok((vcpu.initialised()?, control))
    }

    /// TDH.VP.CREATE.
    pub(super) fn vp_create(&mut self, around: &mut Surroundings<'_>, registers: &Registers) -> Result<(), Status> {
        let Registers { rcx: tdvpr, rdx: tdr, .. } = *registers;
        self.td(tdr, Operand::Rdx)?.control()?;
        self.take_page(around, tdvpr, PageType::Tdvpr, tdr, Operand::Rcx)?;
        self.vcpus.insert(tdvpr, Vcpu { td: tdr, tdcx: Vec::new(), state: None });
        Ok(())
    }

    /// TDH.VP.ADDCX.
    pub(super) fn vp_addcx(&mut self, around: &mut Surroundings<'_>, registers: &Registers) -> Result<(), Status> {
        let Registers { rcx: page, rdx: tdvpr, .. } = *registers;
        let vcpu = self.vcpu(tdvpr, Operand::Rdx)?;
        if vcpu.state.is_some() {
            return Err(Code::VcpuStateIncorrect.into());
        }
        if vcpu.tdcx.len() + 1 >= TDVPS_PAGES {
            return Err(Code::TdcxNumIncorrect.on(Operand::Tdcx));
        }
        let tdr = vcpu.td;
        self.td(tdr, Operand::Tdr)?.control()?;
        self.take_page(around, page, PageType::Tdcx, tdr, Operand::Rcx)?;
        self.vcpu(tdvpr, Operand::Rdx)?.tdcx.push(page);
        Ok(())
    }

    /// TDH.VP.INIT. Version 0 numbers x2APIC ids as the vCPUs are.
    pub(super) fn vp_init(
        &mut self,
        around: &Surroundings<'_>,
        registers: &Registers,
        version: u8,
    ) -> Result<(), Status> {
        let Registers { rcx: tdvpr, rdx: first_argument, r8, .. } = *registers;
        let vcpu = self.vcpu(tdvpr, Operand::Rcx)?;
        if vcpu.state.is_some() {
            return Err(Code::VcpuStateIncorrect.into());
        }
        if vcpu.tdcx.len() + 1 != TDVPS_PAGES {
            return Err(Code::TdcxNumIncorrect.on(Operand::Tdvpr));
        }
        let apic = virtual_apic::of_page(vcpu.tdcx[VIRTUAL_APIC]);
        let tdr = vcpu.td;
        let control = self.td(tdr, Operand::Tdr)?.control()?;
        if control.vcpus.len() >= usize::from(control.max_vcpus) {
            return Err(Code::MaxVcpusExceeded.into());
        }
        let index = control.vcpus.len() as u32;
        let x2apic_id = match version {
            0 => index,
            _ => u32::try_from(r8).map_err(|_| Code::OperandInvalid.on(Operand::R8))?,
        };
        if !control.x2apic_ids.insert(x2apic_id) {
            return Err(Code::X2apicIdNotUnique.into());
        }
        control.vcpus.push(tdvpr);
        let mut state = Initialised {
            index,
            x2apic_id,
            first_argument,
            processor: None,
            host: HostControls::default(),
            ve: None,
            disabled: false,
            running: false,
            last_run: None,
            guest: None,
            vmcall: None,
            apic,
        };
        state.associate(around.processor, control)?;
        self.vcpu(tdvpr, Operand::Rcx)?.state = Some(Box::new(state));
        Ok(())
    }

    /// TDH.VP.FLUSH.
    pub(super) fn vp_flush(&mut self, around: &Surroundings<'_>, registers: &Registers) -> Result<(), Status> {
        let vcpu = self.vcpu(registers.rcx, Operand::Rcx)?;
        let tdr = vcpu.td;
        let state = vcpu.initialised()?;
        match state.processor {
            None => return Err(Code::VcpuNotAssociated.into()),
            Some(own) if own != around.processor => return Err(Code::VcpuAssociated.into()),
            Some(_) => state.processor = None,
        }
        if let Some(control) = self.tds.get_mut(&tdr).and_then(|td| td.control.as_mut()) {
            control.associated = control.associated.saturating_sub(1);
        }
        Ok(())
    }

    /// TDH.VP.RD.
    pub(super) fn vp_rd(&mut self, around: &mut Surroundings<'_>, registers: &mut Registers) -> Result<(), Status> {
        registers.r8 = 0;
        let field = Field::of(registers.rdx);
        let (vcpu, control) = self.live_vcpu(registers.rcx)?;
        vcpu.associate(around.processor, control)?;
        registers.r8 = match (field.class, field.code) {
            STATE_DETAILS => u64::from(self.has_interrupt(around.memory, registers.rcx)),
            _ => vcpu.host.read(field).ok_or(Code::MetadataFieldNotReadable.on(Operand::Rdx))?,
        };
        Ok(())
    }

    /// TDH.VP.WR.
    pub(super) fn vp_wr(&mut self, around: &Surroundings<'_>, registers: &mut Registers) -> Result<(), Status> {
        let (field, value, mask) = (Field::of(registers.rdx), registers.r8, registers.r9);
        registers.r8 = 0;
        let (vcpu, control) = self.live_vcpu(registers.rcx)?;
        vcpu.associate(around.processor, control)?;
        registers.r8 = vcpu.host.write(field, value, mask)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tdx::HostLeaf;
    use crate::tdx::test_machine::{TDR, TestMachine, tdvpr, vcpu_page};

    #[test]
    fn a_vcpu_is_made_in_the_order_of_linux() {
        let mut machine = TestMachine::with_td();
        assert_eq!(machine.call(HostLeaf::VpCreate, [tdvpr(0), TDR, 0, 0]), 0);
        machine.refuses(HostLeaf::VpWr, [tdvpr(0), 2, 0xF2, 0xFFFF], Code::VcpuStateIncorrect);
        for index in 0..5 {
            machine.refuses_version_1(HostLeaf::VpInit, [tdvpr(0), 7, 0, 0], Code::TdcxNumIncorrect.on(Operand::Tdvpr));
            assert_eq!(machine.call(HostLeaf::VpAddcx, [vcpu_page(0, index), tdvpr(0), 0, 0]), 0);
        }
        machine.refuses(HostLeaf::VpAddcx, [vcpu_page(0, 5), tdvpr(0), 0, 0], Code::TdcxNumIncorrect.on(Operand::Tdcx));
        assert_eq!(machine.call_version_1(HostLeaf::VpInit, [tdvpr(0), 7, 0, 0]), 0);
        machine.refuses_version_1(HostLeaf::VpInit, [tdvpr(0), 7, 0, 0], Code::VcpuStateIncorrect);
        machine.refuses(HostLeaf::VpAddcx, [vcpu_page(0, 5), tdvpr(0), 0, 0], Code::VcpuStateIncorrect);
    }

    #[test]
    fn vcpus_have_ids_of_their_own_and_are_few() {
        let mut machine = TestMachine::with_td();
        machine.build_vcpu(0);
        machine.build_vcpu(1);
        machine.build_vcpu(2);
        let wide = [tdvpr(0), 0, 1 << 32, 0];
        machine.refuses_version_1(HostLeaf::VpInit, wide, Code::OperandInvalid.on(Operand::R8));
        assert_eq!(machine.call_version_1(HostLeaf::VpInit, [tdvpr(0), 0, 5, 0]), 0);
        machine.refuses_version_1(HostLeaf::VpInit, [tdvpr(1), 0, 5, 0], Code::X2apicIdNotUnique);
        assert_eq!(machine.call_version_1(HostLeaf::VpInit, [tdvpr(1), 0, 6, 0]), 0);
        machine.refuses_version_1(HostLeaf::VpInit, [tdvpr(2), 0, 7, 0], Code::MaxVcpusExceeded);
    }

    #[test]
    fn a_vcpu_is_one_processors_until_that_flushes_it() {
        let mut machine = TestMachine::with_vcpu();
        let write = [tdvpr(0), 2, 0xF2, 0xFFFF];
        assert_eq!(machine.call(HostLeaf::VpWr, write), 0);
        machine.processor = 1;
        machine.refuses(HostLeaf::VpWr, write, Code::VcpuAssociated.on(Operand::Tdvpr));
        machine.refuses(HostLeaf::VpFlush, [tdvpr(0), 0, 0, 0], Code::VcpuAssociated);
        machine.processor = 0;
        assert_eq!(machine.call(HostLeaf::VpFlush, [tdvpr(0), 0, 0, 0]), 0);
        machine.refuses(HostLeaf::VpFlush, [tdvpr(0), 0, 0, 0], Code::VcpuNotAssociated);
        machine.processor = 1;
        assert_eq!(machine.call(HostLeaf::VpWr, write), 0, "now it is the other's");
    }

    /// arch/x86/kvm/vmx/tdx.c: the fields that it writes.
    #[test]
    fn linux_writes_the_fields_that_it_needs() {
        let mut machine = TestMachine::with_vcpu();
        for (field, value, mask) in [
            (0x0002, 0xF2, 0xFFFF),
            (0x2016, 0x7_0040, u64::MAX),
            (0x4000, 0x80, 0x80),
            (0x203C, 0x7_1000, u64::MAX),
            (0x401E, 1 << 30, 1 << 30),
            (0x2000_0000_0000_000B, 1, 0xFF),
        ] {
            assert_eq!(machine.call(HostLeaf::VpWr, [tdvpr(0), field, value, mask]), 0, "{field:#x}");
            assert_eq!(machine.registers.r8, 0, "what it was");
            assert_eq!(machine.call(HostLeaf::VpRd, [tdvpr(0), field, 0, 0]), 0);
            assert_eq!(machine.registers.r8, value, "{field:#x}");
        }
    }

    #[test]
    fn nothing_else_can_be_written() {
        let mut machine = TestMachine::with_vcpu();
        let rip = [tdvpr(0), 0x681E, 0, u64::MAX];
        machine.refuses(HostLeaf::VpWr, rip, Code::MetadataFieldNotWritable.on(Operand::Rdx));
        machine.refuses(HostLeaf::VpRd, rip, Code::MetadataFieldNotReadable.on(Operand::Rdx));
        let other_bits = [tdvpr(0), 0x4000, 0x81, 0x81];
        machine.refuses(HostLeaf::VpWr, other_bits, Code::MetadataWrMaskNotValid.on(Operand::R9));
        for (field, value) in [(0x0002, 0x100), (0x2016, 0x20), (0x203C, 0x800)] {
            let mask = if field == 2 { 0xFFFF } else { u64::MAX };
            let write = [tdvpr(0), field, value, mask];
            machine.refuses(HostLeaf::VpWr, write, Code::MetadataFieldValueNotValid.on(Operand::R8));
        }
    }
}
